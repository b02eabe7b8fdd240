"""Logistic regression from all rows: each iteration sends the coefficients out and one loss and gradient per part back.

looking.py    the first pass: classes, weights, mean and deviation of each column
objective.py  the loss of some rows, and its gradient; the penalty
optimiser.py  L-BFGS and OWL-QN, as generators that ask for values
newton.py     Newton's method for two classes, where the optimum is all that is wanted
training.py   the recipe: these joined
memory.py     passes over rows in memory, on threads
estimator.py  `fourfold.LogisticRegression`

Source: Apache Spark, `ml/classification/LogisticRegression.scala` and `ml/optim/aggregator`; Breeze, `optimize/LBFGS.scala`.
"""
