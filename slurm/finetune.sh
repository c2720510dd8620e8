#!/bin/bash
# Fine-tune under Slurm: the trainer and the starts of pretrain.sh, by default on one node.
#
#   sbatch [sbatch options] slurm/finetune.sh RECIPE DS_CONFIG [section.key=value ...]
#
# What it starts from is the recipe's model.weights, the run folder of the pre-training; see
# trainer/m3p/recipes/multi30k.yaml. Stopping, starting again, STOP and chains: see pretrain.sh.
#SBATCH --job-name=finetune
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
#SBATCH --signal=B:USR1@300
set -uo pipefail # no -e: what follows a failed srun is the point
M3P_HOME=${M3P_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}
# shellcheck source=slurm/common.sh
. "$M3P_HOME/slurm/common.sh" || { echo "no checkout at $M3P_HOME: submit from it, or set M3P_HOME" >&2 && exit 1; }

train "$@"
