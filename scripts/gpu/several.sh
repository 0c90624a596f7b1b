#!/usr/bin/env bash
# Several GPUs: the same four configs one at a time and GPUS (2) at a time, and each parallel size as a class of its own.
#   several.sh OUT [key=value …]          further arguments go to every sweep
# Qwen3-8B's shape, random weights, 4 references of about 256 tokens, 32 tokens each, 3 repeats, one by one, eager mode. Prints the seconds of
# each sweep, whether the rows of two at a time are those of one at a time, and whether parallel sizes repeat and share rows with one GPU.
# Environment: GPUS (2), QUANT (four kernels), PARALLEL ("2x1": tensor x pipeline, separated by spaces; "2x1 4x1 1x2" on four cards), SHAPE.
# The first sweep of one job fills caches (checkpoints, Triton's kernels, files in memory) and is printed apart.
set -euo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd); shift
here=$(cd "$(dirname "$0")" && pwd)
gpus=${GPUS:-2}
shape=${SHAPE:-synthetic:layers=36,hidden=4096,mlp=12288,heads=32,kv_heads=8,head=128,vocab=151936,seed=0}
common=(model=synthetic "model.checkpoint.none='$shape'" backend=vllm backend.max_model_len=1024 backend.max_num_batched_tokens=2048
  backend.gpu_memory_utilization=0.5 capture=topk 'metric=[l2]' 'analysis=[noise_floor]' 'report.formats=[txt]' prompts=pydoc
  prompts.references=4 prompts.snippet_tokens=256 generate.tokens=32 repeats=3 "$@")
quant=${QUANT:-awq_marlin,awq_machete,gptq_marlin,gptq_machete}
failed=0

sweep() { # NAME key=value …
  local name=$1 status=0 begun; shift
  begun=$(date +%s%N)
  python3 -m qdx -m "${common[@]}" "$@" hydra.sweep.dir="$out/$name" >"$out/$name.log" 2>&1 || status=$?
  printf '%-12s %6.1f s   exit %s\n' "$name" "$(($(date +%s%N) / 100000000 - begun / 100000000))e-1" "$status"
  [ $status = 0 ] || { tail -n 15 "$out/$name.log"; failed=1; }
}

sweep first quant="${quant%%,*}" repeats=1
for form in awq gptq; do # checkpoints of both formats, so that no timed sweep makes one
  python3 -c "import sys; from qdx.models import resolve; resolve(sys.argv[1], format=sys.argv[2], progress=False)" "$shape" $form
done
CUDA_VISIBLE_DEVICES=0 sweep one quant="$quant"
sweep several quant="$quant" hydra/launcher=joblib hydra/sweeper=gpus hydra.sweeper.max_batch_size="$gpus" hydra.launcher.n_jobs="$gpus"
for size in ${PARALLEL:-2x1}; do
  sweep "tp$size" quant="${quant%%,*}" backend.tensor_parallel_size="${size%x*}" backend.pipeline_parallel_size="${size#*x}"
done
echo "rows of one at a time and of $gpus at a time:"
python3 "$here/compare_hashes.py" "$out/one/sweep.nc" "$out/several/sweep.nc" || failed=1
for size in ${PARALLEL:-2x1}; do
  echo "tensor x pipeline parallel $size against one GPU, and its own repeats:"
  python3 "$here/compare_hashes.py" "$out/one/sweep.nc" "$out/tp$size/sweep.nc" || failed=1
  python3 "$here/compare_hashes.py" "$out/tp$size/sweep.nc" || failed=1
done
exit $failed
