"""Step 3, execute: run a chunk inside a worker, one outcome per item, whatever happens.

    chunk.py       Program: the function and how it runs; the loop over blocks of a chunk
    troubles.py    an exception becomes a Trouble: text, type, the exception itself when it can travel
    pickling.py    objects to bytes with the large buffers beside them; names the path when that fails
    current.py     which item runs here: its index, its random numbers
    remote.py      a Program for another process: parcels in, parcels out
    objects.py     chunks and results as they are, for engines in this process
    parcels.py     chunks and results as parcels
    forward.py     print, logging and warnings of a worker reach the driver's own

Needs the standard library, cloudpickle (and NumPy for seeds); knows no engine.
"""
