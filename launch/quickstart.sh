#!/usr/bin/env bash
# Usage: launch/quickstart.sh [KEY=VALUE ...]
#
# Installs largebatch and trains a large batch with LARS on two processes of this machine, with or without GPU. The data set
# comes with the package: no account, no download of data. The results are under runs/quickstart.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/setup_venv.sh
source "$here/setup_venv.sh" ""

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}}"
exec torchrun --standalone --nproc-per-node 2 -m largebatch train experiment=quickstart "$@"
