#!/usr/bin/env bash
# A throw-away, real Slurm on one machine, for tests. Needs root; touches nothing outside DIR.
#
#   cluster.sh install           install Slurm's packages if they are missing (Debian, Ubuntu)
#   cluster.sh fg DIR            make a cluster in the empty folder DIR, print "ready", end it when stdin closes
#   cluster.sh run DIR CMD...    run CMD on the login host, in the current directory and environment
#   cluster.sh on DIR NODE CMD   run CMD on NODE, likewise
#   cluster.sh logs DIR          the ends of the daemons' logs, for a test that failed
#
# fg reads from the environment: NODES (2), CPUS and GPUS a node (4, 2; both may exceed what there is).
#
# A host is a set of namespaces (pid, mount, net, uts, ipc): an own name, address, process table and /dev/shm. `fg`
# becomes the host "login", with munged, slurmctld and a bridge; inside it, each node is a nested set, with slurmd and
# one end of a virtual cable. No route leads out. When pid 1 of "login" ends, the kernel ends all the rest, so that
# nothing is left behind however the test ends.
set -euo pipefail

SELF=$(readlink -f "${BASH_SOURCE[0]}")
NET=10.77.0
NAMESPACES=(--pid --mount --net --uts --ipc)
export NODES=${NODES:-2} CPUS=${CPUS:-4} GPUS=${GPUS:-2}

die() {
  echo "cluster.sh: $*" >&2
  exit 1
}

install() {
  local program
  for program in slurmctld slurmd sbatch munged ip unshare nsenter pkill; do
    command -v "$program" >/dev/null && continue
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
      slurm-wlm munge iproute2 util-linux procps >/dev/null
    return
  done
}

# ---- settings ------------------------------------------------------------------------------------

configure() { # DIR
  mkdir -p "$1"
  cd "$1"
  [ -z "$(ls -A)" ] || die "$1 is not empty: a controller that finds an old state holds its jobs' processors"
  mkdir etc log run state spool dev
  head -c 1024 /dev/urandom >etc/munge.key
  chmod 400 etc/munge.key
  touch etc/cgroup.conf etc/plugstack.conf
  echo "127.0.0.1 localhost" >etc/hosts
  echo "$NET.254 login" >>etc/hosts
  for ((i = 1; i <= NODES; i++)); do echo "$NET.$i node$i" >>etc/hosts; done
  echo "Name=gpu File=$1/dev/gpu[0-$((GPUS - 1))]" >etc/gres.conf
  slurm_conf "$1" >etc/slurm.conf
}

slurm_conf() { # DIR. The times are the shortest that work; cred_expire is also the wait before a requeued job's start.
  cat <<CONF
ClusterName=test
SlurmctldHost=login($NET.254)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$1/run/munge.socket,cred_expire=5
StateSaveLocation=$1/state
SlurmdSpoolDir=$1/spool/%n
SlurmctldPidFile=$1/run/slurmctld.pid
SlurmdPidFile=$1/run/slurmd.%n.pid
SlurmctldLogFile=$1/log/slurmctld.log
SlurmdLogFile=$1/log/slurmd.%n.log
PlugStackConfig=$1/etc/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
MailProg=/bin/true
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=100000,batch_sched_delay=0
JobRequeue=1
ReturnToService=2
KillWait=4
MessageTimeout=5
TCPTimeout=2
MinJobAge=3600
NodeName=node[1-$NODES] CPUs=$CPUS RealMemory=4000 Gres=gpu:$GPUS State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
}

# ---- the hosts, from inside ----------------------------------------------------------------------

become_host() { # NAME
  hostname "$1"
  mount -t tmpfs tmpfs /dev/shm
  ip link set lo up
}

login() { # DIR; pid 1 of the host "login"
  local dir=$1 number
  become_host login
  mount --bind "$dir/etc/hosts" /etc/hosts
  mount -t tmpfs tmpfs "$dir/dev"
  # Devices that only get counted, all of them /dev/null.
  for ((number = 0; number < GPUS; number++)); do mknod "$dir/dev/gpu$number" c 1 3; done
  ip link add bridge type bridge
  ip address add "$NET.254/24" dev bridge
  ip link set bridge up

  # --force: else it refuses a socket in a folder that other users cannot enter, such as pytest's.
  munged --force --foreground --socket="$dir/run/munge.socket" --key-file="$dir/etc/munge.key" \
    --pid-file="$dir/run/munged.pid" --log-file="$dir/log/munged.log" --seed-file="$dir/state/munge.seed" \
    </dev/null >"$dir/log/munged.out" 2>&1 &
  until_true 10 test -S "$dir/run/munge.socket" || die "munged does not start: $(cat "$dir/log/munged.out")"
  slurmctld -D </dev/null >"$dir/log/slurmctld.out" 2>&1 &

  exec 8</proc/self/ns/net # how a node reaches the bridge
  for ((number = 1; number <= NODES; number++)); do
    unshare "${NAMESPACES[@]}" --fork --mount-proc bash "$SELF" _node "$dir" "$number" \
      </dev/null >"$dir/log/node$number.out" 2>&1 &
    echo $! >"$dir/run/node$number"
  done
  exec 8<&-
  until_true 30 all_idle || {
    logs "$dir" >&2
    die "the nodes do not become idle"
  }
  echo ready
  cat >/dev/null
}

all_idle() { [ "$(timeout 5 sinfo --noheader --states=idle --format=%D 2>/dev/null)" = "$NODES" ]; }

until_true() { # SECONDS CMD...
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < end)) || return 1
    sleep 0.05
  done
}

node() { # DIR NUMBER; pid 1 of a node
  local name=node$2
  become_host "$name"
  ip link add eth0 type veth peer name "$name" netns /proc/self/fd/8
  nsenter --net=/proc/self/fd/8 ip link set "$name" master bridge up
  exec 8<&-
  ip address add "$NET.$2/24" dev eth0
  ip link set eth0 up
  mkdir -p "$1/spool/$name"
  slurmd -D -N "$name" &
  wait # as pid 1 it also reaps what its jobs leave behind, which slurmd would not
}

# ---- from outside --------------------------------------------------------------------------------

# `unshare` itself stays outside of the pid namespace that it made for its child, but names it.
enter() { # PID CMD...
  local pid=$1
  shift
  nsenter --target="$pid" --mount --net --uts --ipc --pid="/proc/$pid/ns/pid_for_children" --wd="$PWD" -- "$@"
}

logs() { tail -n 25 "$1"/log/*; } # DIR

verb=${1:-}
[ "$verb" = install ] || [ -n "${2:-}" ] || die "usage: cluster.sh install | fg DIR | run DIR CMD... | on DIR NODE CMD... | logs DIR"
[ "$verb" = install ] || DIR=$(readlink -m "$2")
export SLURM_CONF=${DIR:-}/etc/slurm.conf
case $verb in
  install) install ;;
  fg)
    configure "$DIR"
    echo $$ >run/login
    exec unshare "${NAMESPACES[@]}" --fork --kill-child --mount-proc bash "$SELF" _login "$DIR"
    ;;
  run) enter "$(cat "$DIR/run/login")" "${@:3}" ;;
  on) enter "$(cat "$DIR/run/login")" bash "$SELF" _on "$DIR" "${@:3}" ;;
  logs) logs "$DIR" ;;
  _on) enter "$(cat "$DIR/run/$3")" "${@:4}" ;;
  _login) login "$DIR" ;;
  _node) node "$DIR" "$3" ;;
  *) die "what is '$verb'?" ;;
esac
