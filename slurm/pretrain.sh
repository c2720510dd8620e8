#!/bin/bash
# Pre-train under Slurm, over as many starts as it takes.
#
#   sbatch [sbatch options] slurm/pretrain.sh RECIPE DS_CONFIG [section.key=value ...]
#   sbatch --nodes=4 --time=24:00:00 slurm/pretrain.sh trainer/m3p/recipes/m3p_base.yaml ds_configs/zero1.json
#
# Before the time limit, and when preempted, the run saves a checkpoint and queues itself again. After a failure it
# does so too, until M3P_MAX_FAILS starts in a row have brought no new checkpoint. `touch RUN/STOP` ends it with a checkpoint;
# scancel ends it. Where users may not requeue, submit it several times with --dependency=singleton, or as --array=1-9%1:
# each goes on where the last one stopped, and those left over exit at once. slurm/common.sh has the settings.
#SBATCH --job-name=pretrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
#SBATCH --signal=B:USR1@300
# One task a GPU; cpus-per-task is the cores of a node divided by its GPUs. The signal comes 300 s before the time
# limit, which must be more than one step and one checkpoint take, and may come 60 s early.
set -uo pipefail # no -e: what follows a failed srun is the point
# Slurm runs a copy of this file from its spool folder, so its own path does not lead to its neighbours.
M3P_HOME=${M3P_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}
# shellcheck source=slurm/common.sh
. "$M3P_HOME/slurm/common.sh" || { echo "no checkout at $M3P_HOME: submit from it, or set M3P_HOME" >&2 && exit 1; }

train "$@"
