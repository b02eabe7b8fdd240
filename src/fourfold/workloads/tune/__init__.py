"""Tuning: trials as items.

asha.py    `ff.ASHA`, `ff.Hyperband`        rungs.py    ... what they decide: pure
search/    `ff.SearchCV`
"""
