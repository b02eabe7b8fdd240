#!/bin/sh
# Run the tests that a Python can make a difference to, on every supported one that is here other than that of .venv, at once.
set -eu
main=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')

# These are about this machine, its processes and its disk, or about decisions without either: one Python is enough.
alike="cli crashes demo docs fault_matrix faults interrupts journal leak_check memory runs_cli seams simulated_bugs simulation
storm timeouts"
ignored=$(for name in $alike; do echo "--ignore=tests/test_$name.py"; done)

versions=
for version in 3.11 3.12 3.13; do
    [ "$version" = "$main" ] && continue
    python=$(scripts/find_python.sh "$version") || {
        echo "python $version: not here, skipped"
        continue
    }
    make --no-print-directory ".venv-$version/.test-ready" "PYTHON=$python"
    versions="$versions $version"
done

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
for version in $versions; do
    echo "python $version: the tests that a Python can make a difference to"
    # shellcheck disable=SC2086
    (".venv-$version/bin/python" -m pytest -q -m "not slow" $ignored >"$logs/$version" 2>&1 && touch "$logs/$version.ok") &
done
wait
failed=
for version in $versions; do
    if [ -e "$logs/$version.ok" ]; then
        echo "python $version: $(tail -n 1 "$logs/$version")"
    else
        cat "$logs/$version"
        failed="$failed $version"
    fi
done
[ -z "$failed" ] || { echo "failed on python$failed" >&2; exit 1; }
