#!/usr/bin/env bash
# What one GPU has to show, in one command of under 9 minutes on an H100 and without a network:
#
#   bash benchmarks/gpu.sh [--cpu] [OUTPUT]        OUTPUT: a new folder, by default $OUT or runs/gpu
#
#   tests      the tests that need a GPU: kernels and attention against their references
#   head       time and memory of the word head, 250,002 words
#   step       a step of the published size in bf16 against transformers, with sdpa and, where installed, flash attention
#   step-*     the same with other kernels of ours (recipe section `kernels`)
#   train      trainer/recipes/m3p_base.yaml on this GPU, generated data: MFU, tokens/s, memory (metrics.jsonl)
#   profile    a profiler trace of steps, and a table of where the time goes
#
# A part that fails does not stop the others; the exit code says whether one did. OUTPUT holds summary.txt (read it first)
# and results.tar.gz with everything. --cpu runs every part at a tiny size, to see that it runs at all.
# PYTHON names the interpreter; WHEELS a folder of wheels to use where packages are missing and cannot be fetched.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
python=${PYTHON:-python3}
device=cuda precision=bfloat16
if [ "${1:-}" = --cpu ]; then device=cpu precision=float32; shift; fi
output=${1:-${OUT:-runs/gpu}}
mkdir -p "$output"
output=$(cd "$output" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/results"
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore HF_HUB_OFFLINE=1
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --target "$work/site" "$WHEELS"/*.whl || exit
  export PYTHONPATH=$PWD:$work/site
fi

if [ "$device" = cuda ]; then
  network=(--layers 12 --width 768 --words 250002 --samples 64 --repetitions 10)
  head=(--rows "1000,4000,16000")
  data=(--pairs 1024 --texts 4096)
  shape='{layers: 12, width: 768, heads: 12, feed_forward: 3072}'
  # What one of 4 GPUs has of the recipe's turns, in one micro-batch.
  run=(run.steps=40 data.workers=12)
  batch=256 warmup=20
else
  network=(--layers 1 --width 64 --words 300 --samples 2 --repetitions 1)
  head=(--rows 16 --width 8)
  data=(--words 300 --pairs 8 --texts 8 --feature-size 2048)
  shape='{layers: 1, width: 64, heads: 1, feed_forward: 64}'
  run=(run.steps=3 data.workers=0)
  batch=2 warmup=1
  export OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu
fi
network+=(--device "$device" --precision "$precision" --head-rows 0)
failed=() deadline=510

part() { # part NAME SECONDS COMMAND...: run it, keep its output, note how it went
  local name=$1 limit=$2 began=$SECONDS left=$((deadline - SECONDS)) code
  shift 2
  # Whatever hangs, the whole ends in time; what there is no time left for ends at once, with timeout's exit code.
  timeout "$((left < 1 ? 1 : limit < left ? limit : left))" "$@" >"$work/results/$name.log" 2>&1
  code=$?
  [ "$code" -eq 0 ] || failed+=("$name")
  { echo "== $name: exit code $code, $((SECONDS - began)) s"; grep -v '^\s*$' "$work/results/$name.log" | tail -40; } |
    tee -a "$output/summary.txt"
}

step() { # step NAME OPTIONS...
  local name=$1
  shift
  part "$name" 100 "$python" benchmarks/step.py "${network[@]}" --json "$work/results/$name.json" "$@"
}

train() { # train NAME OVERRIDES...
  local name=$1
  shift
  part "$name" 120 "$python" trainer/run.py --recipe trainer/recipes/m3p_base.yaml --deepspeed_config ds_configs/zero1.json \
    "run.folder=$work/$name" run.evaluate=false run.checkpoint_every=100000 "${run[@]}" schedule.warmup_steps=1 \
    model.initialise=null "model.tokenizer=$work/data/tokenizer" "model.shape=$shape" \
    objectives.multilingual_text.{batch_size,micro_batch}=$batch objectives.image_caption.{batch_size,micro_batch}=$batch \
    objectives.code_switched.{batch_size,micro_batch}=$batch "objectives.multilingual_text.sources.0.path=$work/data/text/*" \
    objectives.{image_caption,code_switched}.sources.0.path="$work/data/cc3m" \
    "objectives.code_switched.switching.dictionary=$work/data/dictionary" "$@"
  cp "$work/$name/metrics.jsonl" "$work/results/$name.metrics.jsonl"
  cp "$work/$name/environment.json" "$work/results/$name.environment.json"
  "$python" benchmarks/settled.py "$work/$name/metrics.jsonl" --skip "$warmup" 2>&1 | tee -a "$output/summary.txt"
}

"$python" benchmarks/machine.py | tee "$output/summary.txt"
part data 60 "$python" benchmarks/generated.py "$work/data" "${data[@]}"
part tests 100 "$python" -m pytest -q -p no:cacheprovider -m gpu tests/kernels tests/model tests/test_batch.py
train train
step step
part profile 80 "$python" benchmarks/step.py "${network[@]}" --profile "$work/results/profile" --ours
if [ "$device" = cuda ]; then
  if "$python" -c 'import flash_attn' 2>/dev/null; then
    step step-flash --attention flash_attention_2
    step step-ours-flash --ours --kernels attention=flash_attn
  fi
  step step-triton-norm --ours --kernels layer_norm=triton
  train train-triton-norm kernels.layer_norm=triton
fi
part head 120 "$python" benchmarks/head.py --device "$device" --json "$work/results/head.json" "${head[@]}"
tar -czf "$output/results.tar.gz" -C "$work/results" .
echo "${#failed[@]} part(s) failed${failed[*]:+: ${failed[*]}}; $SECONDS s in all; see $output" | tee -a "$output/summary.txt"
[ "${#failed[@]}" -eq 0 ]
