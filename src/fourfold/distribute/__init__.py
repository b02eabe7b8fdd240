"""Step 2, distribute: chunks to workers.

schedule.py    every decision about chunks, retries, blame and stopping: a pure state machine
events.py      what the schedule is told and what it answers
sizes.py       how many items a chunk has, and how many chunks are in flight: pure
admission.py   how many may run at once, as memory allows: pure
faults.py      what may go wrong in the simulation, as probabilities
memory.py      looks at memory now and then, for the schedule
verdict.py     loop or workers? decided from measurements: pure
chooser.py     when `engine="auto"` goes on with workers: asked between chunks of the loop
driver.py      the loop that does what the schedule says, with one engine or with the loop and then an engine
inbox.py       what comes back: outcomes become events for the schedule and segments for the user
returned.py    items that came back unfinished
lane.py        an engine, what speaks to it, and how long a chunk should take there
engine.py      the contract of everything that runs workers
engines/       on this thread, threads, processes, Spark, Ray, Dask; and a simulated one with a virtual clock
"""
