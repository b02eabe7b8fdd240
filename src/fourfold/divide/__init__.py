"""Step 1, divide: what can be divided, and in what order.

    source.py      any iterable, pulled lazily by one thread; longest first under `cost=`
    files.py       rows of jsonl, csv, parquet and text files

How big a chunk is, is decided in distribute/sizes.py, where the measurements are.
"""
