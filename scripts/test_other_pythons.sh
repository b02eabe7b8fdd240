#!/bin/sh
# Run the quick tests on every supported Python that is here, other than the one of .venv.
set -eu
main=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')

for version in 3.11 3.12 3.13; do
    [ "$version" = "$main" ] && continue
    python=$(scripts/find_python.sh "$version") || {
        echo "python $version: not here, skipped"
        continue
    }
    venv=.venv-$version
    make --no-print-directory "$venv/.test-ready" "PYTHON=$python"
    echo "python $version: the tests that are not slow"
    "$venv/bin/python" -m pytest -q -m "not slow"
done
