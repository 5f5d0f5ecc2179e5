#!/usr/bin/env bash
# Usage: launch/test.sh [PYTEST ARGUMENT ...]
#
# Installs what is needed and runs all checks: lint, format, types, tests. The last line is pytest's.
#   launch/test.sh -x tests/unit        only these tests, up to the first failure

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/setup_venv.sh
source "$here/setup_venv.sh" dev

cd "$here/.."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export LARGEBATCH_TEST_ORACLES=required # a comparison with another implementation must not be skipped unseen
ruff check .
ruff format --check .
mypy
exec python -m pytest -q -n 2 "$@" # two workers, by file; a later -n counts
