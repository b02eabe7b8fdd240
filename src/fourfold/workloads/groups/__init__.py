"""One model per group of rows: `Dataset.fit_groups`.

    asked.py     what the user wants, checked         sources.py  where rows come from: a dataset, or a cluster's frame
    keys.py      which group a row is of              place.py    the folder in which rows wait, and its end
    spill.py     rows -> buckets, in files            merge.py    buckets -> groups
    one.py       the fit of one group, in a worker    rows.py     ... of its rows as an estimator sees them
    fitting.py   all of it, from here                 levels.py   what is kept of groups
    models.py    ... as users have it                 stored.py   ... on disk
    predicting.py   what their models say of rows     pickled.py   a model as bytes

A row goes through two files. Pieces are read once, and each writes a file whose rows are sorted by buckets, which are hashes
of keys; then each bucket is put together from all of these, so that a group is a slice of one file:

    piece 0 ─┐   0.0.rows  ▒▒░░██          bucket ▒   0.▒.groups   aaa bbbbbb cc
    piece 1 ─┼─► 0.1.rows  ▒░░░██    ──►   bucket ░   0.░.groups   dd ee fffffff       ──►  one fit each
    piece 2 ─┘   0.2.rows  ▒▒▒░░█          bucket █   0.█.groups   g h i

A group that is much larger than a bucket is left where it is, and put together by the worker that fits it.
"""
