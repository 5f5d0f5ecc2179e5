#!/usr/bin/env bash
# Usage: launch/multinode.sh NUM_NODES NUM_PROCESSES HOST:PORT RUN_ID [KEY=VALUE ...]
#
# Trains on several machines. Start it on each of them, with the same arguments and within a few minutes:
#   NUM_NODES        number of machines
#   NUM_PROCESSES    processes on each: usually one per GPU ("gpu" counts them), any number on a CPU (gloo)
#   HOST:PORT        where they meet: one of the machines, by a name or address that all of them reach, and a free port
#   RUN_ID           any word: the same on all machines, a new one for every job
#   launch/multinode.sh 2 8 node1:29400 monday-lars data=cifar10 data.path=FOLDER model=resnet18 optimizer=lars batch.total=16384
# To resume the run, its folder (run.dir, run.root) must be on a disk that all machines share.
# Anyone who reaches HOST:PORT can join the job: use it only in trusted networks.
#
#   RENDEZVOUS_TIMEOUT    seconds that each machine waits for all others, then it reports an error; default: 300
#   NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME    network interface, if torch picks the wrong one
#   OMP_NUM_THREADS, TORCH_ELASTIC_SHUTDOWN_TIMEOUT    as in torchrun.sh

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ -n ${JOIN_TIMEOUT:-} ]]; then
    echo "largebatch: JOIN_TIMEOUT=$JOIN_TIMEOUT: the variable is called RENDEZVOUS_TIMEOUT now. Set that one." >&2
    exit 2
fi
timeout=${RENDEZVOUS_TIMEOUT:-300}
if [[ ! ${1:-} =~ ^[1-9][0-9]*$ || ! ${2:-} =~ ^([1-9][0-9]*|gpu|cpu|auto)$ || ! ${3:-} =~ ^.+:[0-9]+$ ||
    ! ${4:-} =~ ^[^=]+$ || ! $timeout =~ ^[1-9][0-9]*$ ]]; then
    sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
num_nodes=$1 num_processes=$2 endpoint=$3 run_id=$4
shift 4
# shellcheck source=launch/setup_venv.sh
source "$here/setup_venv.sh" ""

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}}"
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-100}"
export PET_SIGNALS_TO_HANDLE="${PET_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1}"
# The rendezvous assigns node ranks; their order does not change the run.
exec python "$here/bounded_torchrun.py" --nnodes "$num_nodes" --nproc-per-node "$num_processes" \
    --rdzv-backend c10d --rdzv-endpoint "$endpoint" --rdzv-id "$run_id" \
    --rdzv-conf "join_timeout=$timeout" \
    -m largebatch train "$@"
