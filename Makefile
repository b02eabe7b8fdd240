# make demo | test | check | bench | clean. Each makes the environment that it needs.
.PHONY: demo test check bench clean
.DELETE_ON_ERROR:
# A recipe may install into an environment that another one is using: one at a time, also under -j.
.NOTPARALLEL:

FIND = scripts/find_python.sh
PYTHON ?= $(shell $(FIND) 3.11 3.12 3.13 any)
# The engines of clusters are tested on one Python.
CLUSTERS_OF_.venv = ,spark,ray,dask
INSTALLED_FROM = pyproject.toml constraints.txt

demo: .venv/.demo-ready
	.venv/bin/fourfold demo

check: .venv/.test-ready
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

# Tests start a thousand processes, which load the same files again and again: these are compiled once, whatever the caller has set.
COMPILED = env -u PYTHONDONTWRITEBYTECODE .venv/bin/python

# First `check`, and beside it the environments of other Pythons are made: both wait for downloads most of the time. Only files that
# have tests that must be alone are searched for them.
test:
	@$(if $(PYTHON),"$(PYTHON)" scripts/run_tests.py prepare,scripts/make_venv.sh .venv "")
	@$(COMPILED) -m compileall -q src
	$(COMPILED) -m pytest -m alone $$(grep -l 'mark\.alone' tests/test_*.py)
	@$(COMPILED) scripts/run_tests.py

bench: .venv-bench/.ready
	.venv-bench/bin/python benchmarks/run.py

clean:
	rm -rf .venv .venv-3.1? .venv-torch .venv-bench .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# A stamp in each environment says which extra is installed there, as of which pyproject.toml and constraints.txt.
# `test` contains `demo`, so its stamp serves for both.
.venv/.demo-ready: $(INSTALLED_FROM)
	@scripts/make_venv.sh .venv "$(PYTHON)" -e '.[demo]'
	@touch $@

# Of other Pythons a part of the tests runs: what they import is compiled then, and not ten thousand files now.
%/.test-ready: $(INSTALLED_FROM)
	@scripts/make_venv.sh $* "$(PYTHON)" $(if $(CLUSTERS_OF_$*),,--no-compile) -e '.[test$(CLUSTERS_OF_$*)]'
	@touch $*/.demo-ready $@

# What its tests need, and no more: torch itself takes 900 MB. scripts/run_tests.py says which one, and when.
.venv-torch/.test-ready: $(INSTALLED_FROM)
	@scripts/make_venv.sh .venv-torch "$(PYTHON)" --no-compile $(TORCH) -e . hypothesis pytest pytest-timeout
	@touch $@

# The peers have their own requirements, pinned there; constraints.txt holds for what both name.
.venv-bench/.ready: $(INSTALLED_FROM) benchmarks/requirements.txt
	@scripts/make_venv.sh .venv-bench "$(PYTHON)" -r benchmarks/requirements.txt -e .
	@touch $@
