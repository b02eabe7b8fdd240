"""Step 4, aggregate: outcomes become the answer.

contract.py    Aggregator: identity, fold, combine, finish
results.py     Results: a list in input order, with the failures and the report
order.py       segments that arrive in any order leave in input order
tree.py        reduction by a tree that depends on the number of items only
failures.py    the items without a value, and their exceptions; kinds.py groups them
sinks.py       rows to jsonl, csv and parquet files, whole or not at all
"""
