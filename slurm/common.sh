# shellcheck shell=bash
# What the batch scripts share; sourced by them. trainer/m3p/training/stop.py is the other side of the files named here.
#
# Files in the run folder, beside those of the trainer:
#   status       from the trainer: `done`, or `stopped WHY STEP`; absent after a crash
#   incarnation  from here: the job and its restart count that own the folder
#   idle         from here: how many starts in a row have brought no new checkpoint
#   logs/        one file a rank and start: JOB.RESTARTS.rankN.log
#   STOP         from you: stop with a checkpoint, and do not start again until it is removed
#
# Environment, all optional; everything exported at submission reaches the ranks (NCCL_SOCKET_IFNAME and the like):
#   M3P_HOME       the checkout; the folder that sbatch was called in
#   M3P_PYTHON     the interpreter; M3P_HOME/.venv/bin/python
#   M3P_MAX_FAILS  starts in a row without a new checkpoint before giving up; 3

: "${M3P_PYTHON:=$M3P_HOME/.venv/bin/python}" "${M3P_MAX_FAILS:=3}"
# A checkout's own code runs, whatever is installed; without one, the installed package.
[ ! -d "$M3P_HOME/trainer/m3p" ] || export PYTHONPATH=$M3P_HOME/trainer${PYTHONPATH:+:$PYTHONPATH}
# The folder that a job starts in may hold files of strangers, such as random.py: nothing is imported from it.
export PYTHONSAFEPATH=1

# A task of an array has a plain number too, but for one of them that number means the whole array.
job=${SLURM_ARRAY_TASK_ID:+${SLURM_ARRAY_JOB_ID:-${SLURM_JOB_ID:-}}_$SLURM_ARRAY_TASK_ID}
job=${job:-${SLURM_JOB_ID:-}}
restarts=${SLURM_RESTART_COUNT:-0}
run='' srun_pid='' signalled=''
trap 'forward USR1' USR1
trap 'forward TERM' TERM

log() { echo "[$(date '+%F %T')] job $job.$restarts: $*"; }
die() {
  log "$*" >&2
  exit 1
}
get() { cat "$run/$1" 2>/dev/null; }
put() { printf '%s\n' "$2" >"$run/$1.tmp" && mv "$run/$1.tmp" "$run/$1"; }

# check_start COUNT NAMES ARGUMENT...: leave unless this is a job with an interpreter and that many arguments.
check_start() {
  [ -n "$job" ] || die "this is a batch script: submit it with sbatch"
  [ $# -ge $(($1 + 2)) ] || die "arguments are missing: $2; the head of the script shows how"
  [ -x "$M3P_PYTHON" ] || die "no interpreter at $M3P_PYTHON: make it with ./quickstart.sh, or set M3P_PYTHON"
}

# train RECIPE DS_CONFIG [section.key=value ...]: one start of a run, from the claim of its folder to the requeue.
train() {
  check_start 2 "RECIPE DS_CONFIG [section.key=value ...]" "$@"
  local recipe=$1 ds_config=$2 before
  shift 2
  run=$("$M3P_PYTHON" -m m3p show "$recipe" --deepspeed_config "$ds_config" "$@" --field run.folder) ||
    die "RECIPE or DS_CONFIG is refused (above)"
  claim_folder
  before=$(newest_checkpoint)
  export_environment
  start_ranks -u -m m3p.training.main --recipe "$recipe" --deepspeed_config "$ds_config" "$@"
  decide "$before"
}

# Leave if there is nothing to do, which makes chains and arrays of the same job safe; else own the run folder.
claim_folder() {
  [ "$(get status)" != 'done' ] || { log "$run is done already (remove $run/status to train on)" && exit 0; }
  [ ! -e "$run/STOP" ] || { log "not starting: $run/STOP is there" && exit 0; }
  mkdir -p "$run/logs" || die "cannot make $run/logs"
  export M3P_INCARNATION=$job.$restarts
  put incarnation "$M3P_INCARNATION" || die "cannot write to $run"
  rm -f "$run/status"
  [ "$restarts" != 0 ] || rm -f "$run/idle"
}

newest_checkpoint() { readlink "$run/checkpoints/latest" || get checkpoints/latest; }

# What the ranks need beyond Slurm's own numbers. A port of the last start may still be held by its sockets.
export_environment() {
  MASTER_ADDR=$(first_host)
  MASTER_PORT=$((20000 + (${SLURM_JOB_ID:-0} * 7 + restarts) % 10000))
  export MASTER_ADDR MASTER_PORT
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONFAULTHANDLER=1
  # srun does not inherit sbatch's --cpus-per-task by itself.
  [ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
}

# The batch script runs on the first node of the job: its own name will do where Slurm's tools are not on this node's PATH.
first_host() {
  local found=''
  [ -z "${SLURM_JOB_NODELIST:-}" ] || found=$(scontrol show hostnames "$SLURM_JOB_NODELIST" 2>/dev/null | head -n 1)
  echo "${found:-${SLURMD_NODENAME:-$(hostname)}}"
}

# How many ranks srun will start, for the log; Slurm does not always say.
rank_count() {
  local nodes=${SLURM_JOB_NUM_NODES:-${SLURM_NNODES:-}} each=${SLURM_NTASKS_PER_NODE:-}
  if [ -n "${SLURM_NTASKS:-}" ]; then
    echo "$SLURM_NTASKS ranks"
  elif [[ $nodes =~ ^[0-9]+$ && $each =~ ^[0-9]+$ ]]; then
    echo "$((nodes * each)) ranks"
  else
    echo "ranks"
  fi
}

# start_ranks ARGUMENT...: one interpreter a task; returns when all have ended. One lost rank ends the others. The ranks
# leave together, but for rank 0, which still evaluates: --wait is its time for that, after which the job ends all the same.
start_ranks() {
  local code
  [ -z "$signalled" ] || return 0
  log "starting $(rank_count) on ${SLURM_JOB_NODELIST:-this node}, logs in $run/logs/$job.$restarts.rank*.log"
  srun --kill-on-bad-exit=1 --wait=3600 --export=ALL --output="$run/logs/$job.$restarts.rank%t.log" \
    "$M3P_PYTHON" "$@" &
  srun_pid=$!
  # A trap ends `wait` early; it runs at all only because srun is in the background.
  while
    wait "$srun_pid"
    code=$?
    kill -0 "$srun_pid" 2>/dev/null
  do :; done
  srun_pid=''
  log "srun ended with $code, status '$(get status)'"
}

# All ranks stop on USR1, whatever the signal was: srun passes it on, where TERM would end srun itself.
forward() {
  log "got SIG$1"
  signalled=$1
  [ -z "$srun_pid" ] || kill -USR1 "$srun_pid" 2>/dev/null
}

# decide BEFORE: exit, or start again. An exit code of srun says too little (a killed peer changes it); the files say it.
decide() {
  [ "$(get incarnation)" = "$M3P_INCARNATION" ] || { log "job $(get incarnation) has taken over $run" && exit 0; }
  local status idle=0
  status=$(get status)
  case $status in
    'done') exit 0 ;;
    'stopped signal '*) ;;
    'stopped '*) log "not requeued: $status" && exit 0 ;;
  esac
  [ "$(newest_checkpoint)" != "$1" ] || idle=$(($(get idle || echo 0) + 1))
  put idle "$idle"
  ((idle == 0 || idle < M3P_MAX_FAILS)) || die "giving up: $idle starts in a row without a new checkpoint"
  requeue "${status:-no status: the ranks ended without saving}; $idle starts without a new checkpoint, the run is given up at $M3P_MAX_FAILS"
}

requeue() { # WHY
  local state
  state=$(job_state)
  # Preempted jobs are RUNNING in their grace time. A cancelled one is COMPLETING for another reason.
  case $state in
    RUNNING* | 'COMPLETING TimeLimit' | unknown) ;;
    *) log "not requeued: cancelled, or requeued by Slurm already ($state)" && exit 0 ;;
  esac
  log "requeue: $1"
  trap '' TERM
  scontrol requeue "$job" || die "Slurm refuses to requeue: submit the same command again, it goes on from its checkpoint"
  exit 0 # at once: the new start waits for the end of this one
}

# "STATE REASON". A controller that is away for a moment must not be read as "cancelled".
job_state() {
  local answer
  for _ in {1..10}; do
    answer=$(squeue --noheader --states=all --jobs="$job" --format='%T %r') && [ -n "$answer" ] && echo "$answer" && return
    sleep 3
  done
  echo unknown
}
