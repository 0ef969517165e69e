#!/usr/bin/env bash
# A Slurm of one node on this machine, for tests: real daemons, loopback only, no systemd.
#
#   slurm_cluster.sh start DIR     then: export SLURM_CONF=DIR/slurm.conf
#   slurm_cluster.sh stop DIR
#
# Debian: apt-get install --no-install-recommends munge slurmctld slurmd slurm-client
set -euo pipefail

action=$1
dir=$(realpath -m -- "$2")
export SLURM_CONF=${dir}/slurm.conf

running() {  # running NAME: its pid file names a live process of that name
    local pid
    pid=$(cat "${dir}/$1.pid" 2>/dev/null) \
        && tr '\0' ' ' 2>/dev/null < "/proc/${pid}/cmdline" | grep -q "^\([^ ]*/\)\?$1 "
}

start() {
    local host user
    host=$(hostname -s)
    user=$(id -un)
    mkdir -p "${dir}"/{state,spool}
    install -d -m 0700 "${dir}/munge"
    (umask 077; head -c 1024 /dev/urandom > "${dir}/munge/key")
    # Partitions as ESPnet's conf/slurm.conf names them. A requeued job waits until its old
    # credential has expired (cred_expire).
    cat > "${SLURM_CONF}" << CONF
ClusterName=test
SlurmctldHost=${host}(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=${user}
SlurmdUser=${user}
SlurmdParameters=config_overrides
AuthType=auth/munge
AuthInfo=socket=${dir}/munge.socket,cred_expire=5
StateSaveLocation=${dir}/state
SlurmdSpoolDir=${dir}/spool
SlurmctldPidFile=${dir}/slurmctld.pid
SlurmdPidFile=${dir}/slurmd.pid
SlurmctldLogFile=${dir}/slurmctld.log
SlurmdLogFile=${dir}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=${dir}/jobs.txt
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=0
MinJobAge=5
KillWait=3
NodeName=localhost NodeHostname=${host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=cpu Nodes=localhost Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=localhost MaxTime=INFINITE State=UP
CONF
    munged --key-file="${dir}/munge/key" --socket="${dir}/munge.socket" \
        --pid-file="${dir}/munged.pid" --log-file="${dir}/munged.log" \
        --seed-file="${dir}/munge/seed"
    slurmctld -f "${SLURM_CONF}"
    slurmd -f "${SLURM_CONF}"
    SECONDS=0
    until [ "$(timeout 5 sinfo -h -n localhost -p cpu -o %t 2>/dev/null)" = idle ]; do
        if [ "${SECONDS}" -gt 30 ]; then
            tail -n 20 "${dir}"/*.log 1>&2
            stop
            exit 1
        fi
        sleep 0.2
    done
}

stop() {
    local name
    timeout 10 scancel --user="$(id -un)" 2>/dev/null || true
    timeout 10 bash -c 'while [ -n "$(squeue -h)" ]; do sleep 0.2; done' || true
    for name in slurmd slurmctld munged; do
        if running "${name}"; then
            kill "$(cat "${dir}/${name}.pid")"
            timeout 20 bash -c "$(declare -f running); dir='${dir}'
                while running ${name}; do sleep 0.1; done"
        fi
    done
}

"${action}"
