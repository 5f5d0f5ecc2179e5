#!/usr/bin/env bash
# Usage: launch/torchrun.sh NUM_PROCESSES [KEY=VALUE ...]
#
# Trains on NUM_PROCESSES processes of this machine: usually one per GPU ("gpu" counts them), any number on a CPU.
#   launch/torchrun.sh 8 data=cifar10 data.path=FOLDER model=resnet18 optimizer=lars batch.total=8192
# Ctrl-C once: finish the step, save, exit. Twice: exit at once. Continue with run.dir=FOLDER resume=auto.
# Exit codes as of `largebatch train`: 75 after a signal, 130 after Ctrl-C.
#
#   OMP_NUM_THREADS                  threads of each process; default: 1. On a CPU: cores / NUM_PROCESSES.
#   TORCH_ELASTIC_SHUTDOWN_TIMEOUT   seconds to save in after a signal; default: 100 (torchrun's own: 30)

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ ! ${1:-} =~ ^([1-9][0-9]*|gpu|cpu|auto)$ ]]; then
    sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
num_processes=$1
shift
# shellcheck source=launch/setup_venv.sh
source "$here/setup_venv.sh" ""

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}}"
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-100}"
# In the environment, because releases of torch without this option ignore it there.
export PET_SIGNALS_TO_HANDLE="${PET_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1}"
# --standalone picks a free port, so two jobs on one machine do not collide.
exec python "$here/bounded_torchrun.py" --standalone --nproc-per-node "$num_processes" -m largebatch train "$@"
