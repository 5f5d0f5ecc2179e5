#!/usr/bin/env bash
# Usage: launch/quickstart.sh [KEY=VALUE ...]
#
# Installs what is needed and trains on two processes of this machine, with or without GPU: a large batch, with LARS, on a
# data set that comes with the package. No account, no download of data. The results are under runs/quickstart.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/setup_venv.sh
source "$here/setup_venv.sh" ""

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec torchrun --standalone --nproc-per-node 2 -m largebatch train experiment=quickstart "$@"
