#!/usr/bin/env bash
# A SLURM cluster of this one machine, to try jobs on: munge, the controller and one node, all in one folder.
#
#     bash scripts/slurm_one_machine.sh start FOLDER    prints the line that lets a shell use it
#     bash scripts/slurm_one_machine.sh stop FOLDER
#
# Needs root and Debian's packages slurm-wlm and munge. Runs without systemd and control groups, as in a container, so
# it limits neither memory nor processors. Nothing is written outside of FOLDER.
set -euo pipefail
action="${1:?start or stop}"
mkdir -p "${2:?the folder of the cluster}"
folder="$(cd "$2" && pwd)"

stop() {
    for daemon in slurmd slurmctld munged; do
        if [ -s "$folder/$daemon.pid" ]; then
            kill "$(cat "$folder/$daemon.pid")" 2> /dev/null || true
            rm -f "$folder/$daemon.pid"
        fi
    done
}

configure() {
    local host cpus memory
    host="$(hostname -s)"
    cpus="$(nproc)"
    memory="$(awk '/^MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)"
    cat > "$folder/slurm.conf" << CONFIGURATION
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${SLURMCTLD_PORT:-26817}
SlurmdPort=${SLURMD_PORT:-26818}
SlurmUser=root
AuthType=auth/munge
# a requeued job starts anew after that many seconds; by default after two minutes
AuthInfo=socket=$folder/munge.socket,cred_expire=5
CredType=cred/munge
CryptoType=crypto/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_min_interval=100000,requeue_setup_env_fail
ReturnToService=2
JobRequeue=1
MpiDefault=none
SlurmdParameters=config_overrides
KillWait=5
NodeName=$host NodeAddr=127.0.0.1 Sockets=1 CoresPerSocket=$cpus ThreadsPerCore=1 RealMemory=$memory State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONFIGURATION
    # a container's control groups cannot be changed
    echo "CgroupAutomount=no" > "$folder/cgroup.conf"
}

start() {
    stop
    mkdir -p "$folder/state" "$folder/spool"
    chmod 755 "$folder"
    configure
    if [ ! -s "$folder/munge.key" ]; then
        (umask 077 && head -c 1024 /dev/urandom > "$folder/munge.key")
    fi
    # --force: the folders above may be writable to others, as /tmp is
    /usr/sbin/munged --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" \
        --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munge.seed" 2> /dev/null
    export SLURM_CONF="$folder/slurm.conf"
    slurmctld -f "$SLURM_CONF" -c
    slurmd -f "$SLURM_CONF" -N "$(hostname -s)"
    for _ in $(seq 60); do
        if sinfo -h -o %t 2> /dev/null | grep -q idle; then
            echo "export SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep 0.5
    done
    echo "The cluster did not start within 30 s; see $folder/slurmctld.log and $folder/slurmd.log" >&2
    stop
    return 1
}

"$action"
