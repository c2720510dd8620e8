#!/usr/bin/env bash
# What one GPU has to show, in one command of under 9 minutes on an H100 and without a network:
#
#   bash benchmarks/gpu.sh [--cpu] [--only "PART ..."] [OUTPUT]      OUTPUT: a new folder, by default $OUT or runs/gpu
#
# In this order: what decides most comes first.
#
#   train      trainer/m3p/recipes/m3p_base.yaml on this GPU, generated data: MFU, tokens/s, memory (metrics.jsonl)
#   tests      the tests that need a GPU: kernels and attention against their references
#   step       a step of BATCH texts and pairs of the published size in bf16 against transformers (masked words alone; the logits
#              of all slots do not fit), with sdpa and, where installed, flash attention; step-128, with both peers where they fit
#   train-128, train-joined    turns of 128 samples, turn by turn and all turns of a step in one pass (run.join_turns)
#   train-*    the recipe with other kernels of ours (recipe section `kernels`)
#   train-profile, profile     traces of such a run and of a step alone, and tables of where the time goes
#   plan       what `m3p plan` predicts of the run
#   step-*     the step with other kernels of ours
#   head       time and memory of the word head, 250,002 words
#   runs       whole runs on the GPU against the CPU's: ZeRO stages, precisions, visual sources, stopping and going on
#   scenes, demo    the quickstart: draws scenes, trains on them and finds them in six languages
#
# benchmarks/variants.py measures operations one by one, in another call.
# A part that fails does not stop the others; the exit code says whether one did. OUTPUT holds summary.txt (read it first)
# and results.tar.gz with everything. --cpu runs every part at a tiny size, to see that it runs at all.
# DEADLINE is the seconds after which nothing more starts, BATCH the samples of a micro-batch: by default 512, or what a smaller
# memory holds. PYTHON names the interpreter; WHEELS a folder of wheels to use where packages are missing and cannot be fetched.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
python=${PYTHON:-python3}
device=cuda precision=bfloat16
only=
while [ $# -gt 0 ]; do
  case $1 in
    --cpu) device=cpu precision=float32; shift ;;
    --only) only=${2:?names of parts, in one word}; shift 2 ;;
    -*) echo 'usage: bash benchmarks/gpu.sh [--cpu] [--only "PART ..."] [OUTPUT]' >&2; exit 2 ;;
    *) break ;;
  esac
done
output=${1:-${OUT:-runs/gpu}}
mkdir -p -- "$output" && output=$(cd -- "$output" && pwd) || exit
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/results"
export PYTHONPATH=$PWD/trainer:$PWD PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore HF_HUB_OFFLINE=1
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --target "$work/site" "$WHEELS"/*.whl || exit
  export PYTHONPATH=$PYTHONPATH:$work/site PATH=$work/site/bin:$PATH
fi

if [ "$device" = cuda ]; then
  memory=$("$python" -c 'import torch; print(torch.cuda.get_device_properties(0).total_memory >> 30)') || exit
  # Training takes 49 GiB with 512 samples and 27 with 256; both peers at 128 came near the end of an H200's 139.
  if [ "$memory" -ge 70 ]; then batch=512; elif [ "$memory" -ge 40 ]; then batch=256; else batch=128; fi
  batch=${BATCH:-$batch} warmup=10
  peers=all
  [ "$memory" -ge 130 ] || peers=masked
  network=(--layers 12 --width 768 --words 250002 --samples "$batch" --repetitions 10)
  head=(--rows "4000,16000")
  data=(--pairs 1024 --texts 4096) few=128
  shape='{layers: 12, width: 768, heads: 12, feed_forward: 3072}'
  # Half of a turn of the recipe in one micro-batch; smaller ones leave a Hopper GPU waiting for Python.
  run=(run.steps=24 data.workers=12)
  scenes=() demo=()
  kind=$("$python" -c 'import torch; print(torch.cuda.get_device_name())') || exit
else
  network=(--layers 1 --width 64 --words 300 --samples 2 --repetitions 1)
  head=(--rows 16 --width 8)
  data=(--words 300 --pairs 8 --texts 8 --feature-size 2048) few=2
  shape='{layers: 1, width: 64, heads: 1, feed_forward: 64}'
  run=(run.steps=3 data.workers=0)
  scenes=(--train 64 --held-out 10) demo=(run.steps=3 schedule.warmup_steps=1)
  batch=2 warmup=1 peers=all kind=cpu
  export OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu
fi
network+=(--device "$device" --precision "$precision" --head-rows 0)
failed=() known=" data " deadline=${DEADLINE:-510}

part() { # part NAME SECONDS COMMAND...: run it, keep its output, note how it went; false where it is left out
  local name=$1 limit=$2 began=$SECONDS left=$((deadline - SECONDS)) code
  shift 2
  known+="$name "
  [ -z "$only" ] || [[ " data $only " = *" $name "* ]] || return 1
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

overrides=(run.evaluate=false run.checkpoint_every=100000 "${run[@]}" schedule.warmup_steps=1
  model.initialise=null "model.tokenizer=$work/data/tokenizer" "model.shape=$shape"
  objectives.{multilingual_text,image_caption,code_switched}.{batch_size,micro_batch}="$batch"
  "objectives.multilingual_text.sources.0.path=$work/data/text/*"
  objectives.{image_caption,code_switched}.sources.0.path="$work/data/cc3m"
  "objectives.code_switched.switching.dictionary=$work/data/dictionary")
recipe=(--recipe trainer/m3p/recipes/m3p_base.yaml --deepspeed_config ds_configs/zero1.json)

train() { # train NAME OVERRIDES...
  local name=$1
  shift
  part "$name" 120 "$python" trainer/run.py "${recipe[@]}" "run.folder=$work/$name" "${overrides[@]}" "$@" || return
  cp "$work/$name/metrics.jsonl" "$work/results/$name.metrics.jsonl"
  "$python" benchmarks/steady_state.py "$work/$name" --skip "$warmup" --json "$work/results/$name.json" 2>&1 |
    tee -a "$output/summary.txt"
}

"$python" benchmarks/machine.py | tee "$output/summary.txt"
part data 60 "$python" benchmarks/generated.py "$work/data" "${data[@]}"
train train
part tests 100 "$python" -m pytest -q -p no:cacheprovider -m gpu tests/kernels tests/model tests/test_batch.py
step step --peers masked
train train-128 objectives.{multilingual_text,image_caption,code_switched}.{batch_size,micro_batch}="$few" run.join_turns=false
# A turn fills a third of a micro-batch, so that the three of a step are one pass.
train train-joined objectives.{multilingual_text,image_caption,code_switched}.batch_size="$few" \
  objectives.{multilingual_text,image_caption,code_switched}.micro_batch=$((3 * few)) run.join_turns=true
if [ "$device" = cuda ]; then
  train train-compiled kernels.layers=compiled
  train train-triton kernels.layer_norm=triton kernels.gelu=triton
fi
part train-profile 120 "$python" benchmarks/train_profile.py "$work/results/train-profile" --after "$warmup" --steps 2 \
  "${recipe[@]}" "run.folder=$work/train-profile" "${overrides[@]}"
part plan 30 "$python" -m m3p plan trainer/m3p/recipes/m3p_base.yaml ds_configs/zero1.json "${overrides[@]}" --gpus 1 --kind "$kind"
step step-128 --samples "$few" --peers "$peers"
part profile 80 "$python" benchmarks/step.py "${network[@]}" --profile "$work/results/profile" --peers none
if [ "$device" = cuda ]; then
  if "$python" -c 'import flash_attn' 2>/dev/null; then
    step step-flash --attention flash_attention_2
    step step-ours-flash --peers none --kernels attention=flash_attn
  fi
  step step-triton --peers none --kernels layer_norm=triton,gelu=triton
fi
part head 120 "$python" benchmarks/head.py --device "$device" --json "$work/results/head.json" "${head[@]}"
part runs 300 "$python" -m pytest -v --tb=short -p no:cacheprovider -m gpu tests/test_gpu.py
part scenes 60 "$python" -m m3p prepare scenes --output "$work/scenes" "${scenes[@]}"
part demo 100 "$python" trainer/run.py --recipe trainer/m3p/recipes/demo.yaml --deepspeed_config ds_configs/zero1.json \
  "run.folder=$work/demo" "model.tokenizer=$work/scenes/tokenizer" "${demo[@]}" \
  "objectives.multilingual_text.sources.0.path=$work/scenes/text/*" "evaluation.dev.path=$work/scenes/dev" \
  objectives.{image_caption,code_switched}.sources.0.path="$work/scenes/train" \
  "objectives.code_switched.switching.dictionary=$work/scenes/dictionary"
for name in $only; do
  [[ $known = *" $name "* ]] || failed+=("$name (no part of this name here)")
done
tar -czf "$output/results.tar.gz" -C "$work/results" .
echo "${#failed[@]} part(s) failed${failed[*]:+: ${failed[*]}}; $SECONDS s in all; see $output" | tee -a "$output/summary.txt"
[ "${#failed[@]}" -eq 0 ]
