"""Processes of this machine: our own supervisor.

      driver process                                        template process            worker process (one of many)
    ┌────────────────────────────┐   spawn + 2 descriptors ┌────────────────┐  fork    ┌──────────────────────────────┐
    │ engine.py   tickets        │ ───────────────────────►│ template.py    │ ────────►│ worker_loop.py               │
    │ pool.py     warm workers   │                         │ one thread,    │          │   recv, run, reply           │
    │ handle.py   one worker     │                         │ reaps, notes   │          │   watcher thread: dies with  │
    │ obituary.py how it died    │        its stderr       │ exit statuses  │   fd 2   │   the driver                 │
    └───────────┬────────────────┘ ◄───────────────────────│ tee.py         │ ◄────────│ stacks.py    where it is     │
                │                                          └───────┬────────┘          └───────┬──────────────────────┘
                │  one private socket per worker (channel.py): small messages, in order        │
                ├──────────────────────────────────────────────────────────────────────────────┤
                │  segments of shared memory (segments.py): everything large, both ways        │
                ├──────────────────────────────────────────────────────────────────────────────┤
                │  one control page per worker: which item it is on, what it has finished of   │
                │  its chunk, what to stop, how it died                                        │
                └──────────────────────────────────────────────────────────────────────────────┘

In the driver, handle.py knows what one worker has, and what it does. Beside it stand what is said to it (line.py), the program
that all workers share (program.py), the results that come (handover.py), and its end: of an item whose time is over
(expiry.py), how it died (obituary.py), and what became of its tickets then (fates.py).

Nothing is shared between workers: no queue, no lock, no semaphore. So a killed worker can hold nothing that another needs.
Nothing has a name: sockets and memory vanish with their last user, whoever is killed and however.

The template is a fresh interpreter with our code imported and a single thread, so that forking it is safe and takes 2 ms.
It never imports the user's script; of the libraries that the work needs it imports those that bear a fork (imports.py).
"""
