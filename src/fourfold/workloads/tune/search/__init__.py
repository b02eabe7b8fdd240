"""`ff.SearchCV`: scikit-learn's searches over parameters, each fit an item of `fourfold.map`.

space ──candidates──> dicts of parameters ──rounds──> units ──fits, in workers──> scores ──> cv_results_
          ▲                                                                        │
          └──── halving, tpe: the next ones depend on the scores of those before ──┘

estimator.py   the class: what users see, and `fit`
asked.py       whether its arguments can be used, in a sentence where not
spaces.py      lists, and distributions of SciPy and Optuna, as each method wants them
candidates.py  which are tried: all, drawn, or proposed
tpe.py         candidates from Optuna's TPE, in batches
rounds.py      candidates × folds -> units -> results, and what becomes of those that kill their worker
placed.py      X and y, on each machine from the first round to the last
prefixes.py    which candidates share the first steps of a pipeline, and how these are fitted once
incremental.py budgets of `partial_fit`, and who gets more of it
datasets.py    rows that are not in memory
done.py        the table of all that was evaluated
failed.py      fits without a score: who they are, and what is said of them
shown.py       how far a search is, and its best score
fits.py        what a worker does: all candidates of a unit, on one fold
noted.py       scorers that keep what they raise
"""
