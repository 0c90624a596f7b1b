#!/usr/bin/env bash
# The rows of one version of vLLM, for the table of versions (`versions.py`): a model of random weights (4 layers, hidden 1024, vocabulary 32,000),
# 16 references of about 300 tokens, 16 tokens each, one by one (OUT/base) and in batches of four (OUT/batch4), eager mode: the settings of verdicts.sh.
#   versions.sh OUT [key=value …]          further arguments go to both sweeps
# Environment: RUNNERS (v1,v2; v1 where a version has no second runner), QUANT, JOBS (6) of each sweep.
set -euo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd); shift
shape=synthetic:layers=4,hidden=1024,mlp=3072,heads=8,kv_heads=4,head=128,vocab=32000,seed=0
common=(model=synthetic "model.checkpoint.none='$shape'" backend=vllm backend.max_model_len=1024 backend.max_num_batched_tokens=4096
  backend.gpu_memory_utilization=0.02 backend.kv_cache_memory_bytes=200000000 backend.model_runner="${RUNNERS:-v1,v2}"
  quant="${QUANT:-none,awq_marlin,awq_machete,gptq,gptq_marlin,gptq_machete}" capture=topk capture.k=5 capture.components=16
  capture.prefill_positions=8 'metric=[l2]' 'analysis=[noise_floor]' 'report.formats=[txt]' hydra/launcher=joblib hydra.launcher.n_jobs="${JOBS:-6}"
  prompts=pydoc prompts.references=16 prompts.snippet_tokens=256 generate.tokens=16 repeats=1 "$@")
failed=0
one() { # NAME key=value …
  local folder=$out/$1 status=0; shift
  mkdir -p "$folder"
  python3 -m qdx -m "${common[@]}" "$@" hydra.sweep.dir="$folder" >"$folder/log.txt" 2>&1 || status=$?
  echo "$(date +%s) $folder ended with exit status $status"
  [ $status = 0 ] || { tail -n 20 "$folder/log.txt"; return 1; }
}
one base &
base=$!
one batch4 batch_size=4 &
wait $! || failed=1
wait $base || failed=1
exit $failed
