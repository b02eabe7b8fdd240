#!/bin/sh
# Print the first Python that really runs and can make an environment: find_python.sh 3.11 3.12 ...
# `any` stands for python3, when it is 3.11 or newer. Exits 1, printing nothing, when none is here.
set -eu

# A name on PATH may be a shim of pyenv that fails, so each candidate is asked, not only looked up.
works() {
    "$1" -c 'import sys, venv, ensurepip
found = "%d.%d" % sys.version_info[:2]
sys.exit(not (sys.version_info >= (3, 11) and sys.argv[1] in (found, "any")))' "$2" </dev/null >/dev/null 2>&1
}

pyenv_root=${PYENV_ROOT:-$(pyenv root 2>/dev/null || echo "${HOME:-/nowhere}/.pyenv")}

for version in "$@"; do
    name=python$version
    [ "$version" = any ] && name=python3
    for candidate in "$name" "$pyenv_root/versions/$version"*/bin/"$name"; do
        if works "$candidate" "$version"; then
            command -v "$candidate"
            exit 0
        fi
    done
done
exit 1
