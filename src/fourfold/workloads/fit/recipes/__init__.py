"""Recipes, one file per family of estimators: see `fourfold.workloads.fit.contract`."""
