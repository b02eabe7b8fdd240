"""Training from parts that can be merged: the estimator that comes back is the one its own `fit` makes of all rows.

recipe     ──Pass──>  "fold this over all rows"                    one generator per class of estimator
passes     pieces ──read, steps──> tables ──features──> Rows ──seen──> Rows ──fold──> state        in workers
           state, state, … ──combine, a fixed tree──> finish ──> sent back into the recipe         here
kept       rows that a recipe wants again stay where they were made, as files that a machine's workers share

contract.py    what a recipe and its parts are: Rows, Seen, Aggregator, Pass
registry.py    which class has which recipe
together.py    several recipes that share their passes
seen.py        rows as an estimator sees them: features of a table, what a fitted step makes of them, numbers
threads.py     how many a numerical library has: one
fitting.py     `Dataset.fit`
recipes/       one file per family of estimators
"""
