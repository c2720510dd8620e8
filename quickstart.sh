#!/usr/bin/env bash
# The whole of M3P in minutes on two CPU cores, offline after the first start: draws scenes, trains on English captions,
# text and word lists, and finds scenes from queries in six languages, five of which no picture was ever captioned in.
# Extra arguments are recipe overrides: ./quickstart.sh run.folder=runs/other objectives.code_switched.weight=0
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

[ -e data_shards/scenes/dev/manifest.json ] || m3p prepare scenes --output data_shards/scenes
recipe=demo
run=$(m3p show "$recipe" "$@" --field run.folder)
# One rank a core, as on a cluster one a GPU.
ranks=$(python -c 'import torch, os; print(torch.cuda.device_count() or min(2, len(os.sched_getaffinity(0))))')
deepspeed --num_gpus "$ranks" trainer/run.py --recipe "$recipe" --deepspeed_config zero1 "$@"

cat <<EOF

What to open next:
  $run/evaluation/dev.html        the pictures that it found, for queries in each language
  tensorboard --logdir $run       losses, rates, realised mix, recall (then http://localhost:6006)
  $run/evaluation/dev.json        the figures above
EOF
