"""The memory of a run: what `run=FOLDER` keeps, so that nothing that finished is lost with the driver.

Rooms:
    digest.py        a few bytes that are the same for an equal object in another process
    fingerprint.py   what a function and an item are, so that a later call can tell whether they are still the same
    place.py         the folder: private, ours, and one driver's at a time
    seal.py          the user's key, and the seals that tell our drivers' parcels from others'
    values.py        files of values, checksummed and sealed
    journal.py       which items are done: SQLite, written by the driver only
      tables.py      its tables, and what is written to them
      tail.py        what has finished since its last commit
      rhythm.py      when it writes: lines, commits, and to the disk itself
      torn.py        values that did not reach the disk
    recording.py     one call with `run=`: which items need not run again, and what has finished
      identity.py    whether it is the call that the folder was recorded by
      recall.py      what earlier calls have recorded, as it comes back
    story.py         what people read of a run, without unpickling anything
    upkeep.py        what is done to a run from outside

Files:
    RUN/journal.sqlite  RUN/values-0001.part …  RUN/program.pickle  RUN/lock
"""
