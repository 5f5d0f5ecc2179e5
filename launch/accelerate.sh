#!/usr/bin/env bash
# Usage: launch/accelerate.sh NUM_PROCESSES [KEY=VALUE ...]
#
# The same as torchrun.sh, with accelerate's launcher: NUM_PROCESSES processes of this machine.
#   launch/accelerate.sh 8 data=cifar10 data.path=FOLDER model=resnet18 optimizer=lars batch.total=8192
# It passes --multi_gpu even on a machine without GPU: without it, or with --cpu, `accelerate launch --num_processes 2`
# silently starts one process. It overrides settings of `accelerate config` that would change the run.
#
#   OMP_NUM_THREADS    threads of each process; default: 1. On a CPU: cores / NUM_PROCESSES.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ ! ${1:-} =~ ^[1-9][0-9]*$ ]]; then
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
options=(--num_processes "$num_processes" --num_machines 1 --mixed_precision no --dynamo_backend no)
if ((num_processes > 1)); then
    options+=(--multi_gpu --main_process_port 0) # 0: a free port; accelerate refuses --multi_gpu for one process
fi
exec accelerate launch "${options[@]}" -m largebatch train "$@"
