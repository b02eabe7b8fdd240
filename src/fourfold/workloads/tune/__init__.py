"""Tuning: trials that are processes, and candidates that are items.

    optimizing.py  `ff.optimize`         desk.py      in the driver: which trial runs next; book.py: what became of each
    trial.py       in a worker           answers.py   ... what trials ask it
    line.py        between the two       proposing.py ... what trials draw, by their numbers; drawing.py: for one of them
    quiet.py       ... in a worker       ahead.py     ... trials that run before the study has them
    drivers.py     which process has a trial
    recorded.py    `run=`                resumed.py, checkpoints.py, reach.py, states.py, opened.py, said.py, sources.py
    asha.py        `ff.ASHA`, `ff.Hyperband`          rungs.py    ... what they decide: pure
    told.py        trials of a record, as people read them     again.py   ... and run one of them again
    search/        `ff.SearchCV`

A worker has tickets, not trials: with each it asks the desk for what is to run next. So a trial that was paused goes on in any
worker, one whose worker died is asked for again, and nothing but numbers and reports crosses the line.
"""
