#!/usr/bin/env bash
# Verdicts about real kernels: honest producers, false claims, and honest producers of another environment class.
#   verdicts.sh OUT [key=value …]
# OUT/made/base holds five configs' transcripts. Beside it the same configs are made in other classes, which a record states and which
# may change rows: a smaller cuBLAS workspace, cuBLASLt for cuBLAS, NVIDIA_TF32_OVERRIDE=0, vLLM's batch-invariant kernels, other attention,
# batches of four.
# Three verifiers' sweeps replay them, three repeats in processes of their own: OUT/verified/base those of its own class, .../others those of
# the other classes, .../batch4 the batches in batches. Further arguments go to every sweep.
# Environment: QUANT, OTHERS, REFERENCES, TOKENS, SNIPPET, MODEL (synthetic:…), BACKEND ("vllm" and its options), JOBS a sweep; STAGES (made verified).
# All sweeps of a stage run at once, JOBS (5) jobs of each. GPU memory goes by BACKEND's kv_cache_memory_bytes.
set -euo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd); shift
here=$(cd "$(dirname "$0")" && pwd)
others=${OTHERS:-workspace cublaslt tf32 invariant attention batch4}
quant=${QUANT:-awq,awq_marlin,awq_machete,gptq,gptq_marlin}
shape=${MODEL:-synthetic:layers=4,hidden=1024,mlp=3072,heads=8,kv_heads=4,head=128,vocab=32000,seed=0}
read -ra backend <<<"${BACKEND:-vllm backend.max_model_len=1024 backend.max_num_batched_tokens=4096 backend.gpu_memory_utilization=0.02 backend.kv_cache_memory_bytes=200000000}"
common=(model=synthetic "model.checkpoint.none='$shape'" backend="${backend[@]}" capture=topk capture.k=5 capture.components=16 capture.prefill_positions=8
  'metric=[l2]' 'analysis=[noise_floor]' 'report.formats=[txt]' hydra/launcher=joblib hydra.launcher.n_jobs="${JOBS:-5}" "$@")

sweep() { # FOLDER key=value …: a verdict's exit status (3, 4) is a result, any other one an error
  local folder=$1 status=0; shift
  mkdir -p "$folder"
  python3 -m qdx -m "${common[@]}" "$@" hydra.sweep.dir="$folder" >"$folder/log.txt" 2>&1 || status=$?
  echo "$(date +%s) ${folder#"$out"/} ended with exit status $status"
  case $status in 0 | 3 | 4) ;; *) tail -n 20 "$folder/log.txt"; return 1 ;; esac
}
made() { # NAME key=value …
  local name=$1 label=(); shift
  [ "$name" = base ] || label=("label='\${quant.name}-$name'")
  sweep "$out/made/$name" prompts=pydoc prompts.references="${REFERENCES:-16}" prompts.snippet_tokens="${SNIPPET:-256}" generate.tokens="${TOKENS:-16}" \
    repeats=1 quant="$quant" "${label[@]}" "$@"
}
verified() { # NAME PRODUCERS key=value …
  sweep "$out/verified/$1" prompts=transcripts prompts.path="$2" quant="$quant" "${@:3}"
}
failed=0
finish() { # waits for the background jobs; one that failed is the script's exit status, and the others' results are kept
  local job
  for job in $(jobs -p); do wait "$job" || failed=1; done
}

for stage in ${STAGES:-made verified}; do
  echo "$(date +%s) $stage"
  if [ "$stage" = made ]; then
    made base &
    for other in $others; do
      case $other in
        workspace) CUBLAS_WORKSPACE_CONFIG=:16:8 made workspace & ;;
        cublaslt) TORCH_BLAS_PREFER_CUBLASLT=1 made cublaslt & ;;
        tf32) NVIDIA_TF32_OVERRIDE=0 made tf32 & ;;
        invariant) # vLLM 0.20.2 refuses quantization=awq_marlin with these
          (quant=${quant/awq_marlin,/} quant=${quant/awq_machete,/}; VLLM_BATCH_INVARIANT=1 made invariant) & ;;
        attention) made attention backend.attention_backend=TRITON_ATTN & ;;
        batch4) made batch4 batch_size=4 & ;;
      esac
    done
    finish
    (cd "$out/made" && python3 "$here/verdicts.py" gather others $others)
  else
    claims=$(python3 "$here/verdicts.py" honest "$out/made/others/sweep.nc")
    verified base "$out/made/base/sweep.nc" &
    verified others "$out/made/others/sweep.nc" batch_size=1 "verify.claims=$claims" &
    if [ -d "$out/made/batch4" ]; then
      batched=$(python3 "$here/verdicts.py" honest "$out/made/batch4/sweep.nc")
      verified batch4 "$out/made/batch4/sweep.nc" "verify.claims=$batched" &
    fi
    finish
  fi
done
echo "$(date +%s) done"
exit $failed
