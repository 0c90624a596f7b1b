#!/usr/bin/env bash
# Which config made each transcript: 100 references, six configs, the demo model and Qwen3-8B's shape.
#   attribution.sh OUT              on the producers' machine: OUT/{demo,shape}/made, replayed by other engines in …/same
#   attribution.sh OUT PRODUCERS    on a verifier's: PRODUCERS/{demo,shape}/made/sweep.nc, replayed in OUT/{demo,shape}/other
# QUANT (all six) names the configs; vLLM from 0.24 on has no kernel for awq.
# JOBS (6) jobs run at once on the card; a sweep takes minutes, most of them the engines' start: byte-compile vllm first
# (python -m compileall) and unset PYTHONDONTWRITEBYTECODE.
set -euo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
made=$(cd "${2:-$1}" && pwd); here=$(cd "$(dirname "$0")" && pwd)
common=(quant="${QUANT:-awq,awq_marlin,awq_machete,gptq,gptq_marlin,gptq_machete}" backend=vllm capture=topk capture.prefill_positions=8
  backend.max_num_batched_tokens=4096 'report.formats=[txt]' hydra/launcher=joblib hydra.launcher.n_jobs="${JOBS:-6}")
declare -A model=(
  [demo]="backend.max_model_len=2048 backend.gpu_memory_utilization=0.02 backend.kv_cache_memory_bytes=150000000"
  [shape]="model=synthetic backend.max_model_len=512 backend.gpu_memory_utilization=0.05 backend.kv_cache_memory_bytes=600000000")
for name in demo shape; do
  read -ra options <<<"${model[$name]}"
  verifier=$out/$name/same
  if [ $# -gt 1 ]; then
    verifier=$out/$name/other
  else
    python3 -m qdx -m "${common[@]}" "${options[@]}" prompts=pydoc prompts.references=100 prompts.snippet_tokens=64 generate.tokens=16 \
      repeats=2 batch_size=20 hydra.sweep.dir="$out/$name/made"
  fi
  python3 -m qdx -m "${common[@]}" "${options[@]}" prompts=transcripts prompts.path="$made/$name/made/sweep.nc" repeats=1 hydra.sweep.dir="$verifier"
  python3 "$here/../strangers.py" "$made/$name/made" "$verifier" >"$verifier/strangers.txt"
done
