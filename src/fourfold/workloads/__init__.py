"""The workloads of machine learning on tables: what users write.

scan, dataset        a dataset: rows, and steps on them
transform, predict   fitted transformers and models as steps
models               what a model is: an estimator, a file, a class
batching             how many rows a model takes at once
"""
