#!/bin/bash
# Evaluate a run's newest checkpoint under Slurm, on one GPU.
#
#   sbatch [sbatch options] slurm/evaluate.sh RUN [arguments of `m3p evaluate`]
#
# Prints the table to the job's output and writes RUN/evaluation/.
#SBATCH --job-name=evaluate
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --output=%x-%j.out
set -uo pipefail
M3P_HOME=${M3P_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}
# shellcheck source=slurm/common.sh
. "$M3P_HOME/slurm/common.sh" || { echo "no checkout at $M3P_HOME: submit from it, or set M3P_HOME" >&2 && exit 1; }

check_start 1 "RUN [arguments of m3p evaluate]" "$@"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
exec "$M3P_PYTHON" -m m3p evaluate "$@"
