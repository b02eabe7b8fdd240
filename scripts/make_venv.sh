#!/bin/sh
# Make the environment DIR with PYTHON when it is missing or broken, and install this project into it:
# make_venv.sh DIR PYTHON PIP-ARGUMENTS...
set -eu
dir=$1
python=$2
shift 2

if [ -z "$python" ]; then
    echo "fourfold needs Python 3.11 or newer, with its venv module, and none was found on PATH or under pyenv." >&2
    echo "Install one (Debian, Ubuntu: apt install python3 python3-venv) and run make again." >&2
    exit 1
fi
if ! "$dir/bin/python" -m pip --version >/dev/null 2>&1 </dev/null; then
    echo "making $dir with $("$python" --version 2>&1)"
    rm -rf "$dir"
    "$python" -m venv "$dir" </dev/null
fi
echo "installing into $dir: $*"
# Twice quiet: errors only. Their reasons are said at a lower level, so what failed is run once more, aloud.
install() { "$dir/bin/python" -m pip install --no-input --disable-pip-version-check -c constraints.txt "$@" </dev/null; }
install -qq "$@" || install "$@"
