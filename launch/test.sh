#!/usr/bin/env bash
# Usage: launch/test.sh [quick | faults | soak] [PYTEST ARGUMENT ...]
#
# Installs what is needed and runs all checks: lint, format, types, tests. The last line is pytest's.
#   launch/test.sh -x tests/unit        only these tests, up to the first failure
#   launch/test.sh quick                between two edits: lint, types and the core tests, in a minute
#   launch/test.sh faults               only the tests of the fault matrix; prints it, with outcome and time of each row
#   launch/test.sh soak                 the long seeded campaigns: kills of real jobs, random faults, hostile files; prints their tables

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/setup_venv.sh
source "$here/setup_venv.sh" dev

cd "$here/.."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
unset PYTHONDONTWRITEBYTECODE           # hundreds of processes import the same files of the checkout
export LARGEBATCH_TEST_ORACLES=required # a comparison with another implementation must not be skipped silently
# The files that contain tests with a mark, so that pytest does not import the others.
marked() {
    grep -rlF --include='test_*.py' "pytest.mark.$1" tests
}
case "${1:-}" in
    faults)
        shift
        mapfile -t files < <(marked fault)
        exec python -m pytest -q -n 2 -m "fault and not soak" "${files[@]}" "$@"
        ;;
    soak)
        shift
        exec python -m pytest -q -s -m soak "${@:-tests}"
        ;;
esac
ruff check .
ruff format --check .
mypy &
types=$!
if [[ ${1:-} == quick ]]; then
    shift
    mapfile -t files < <(marked quick)
    set -- -m "quick and not soak" "${files[@]}" "$@"
elif [[ $# == 0 ]]; then
    # With torch's baseline kernels: no number in a test may depend on the processor.
    mapfile -t files < <(marked other_processor)
    ATEN_CPU_CAPABILITY=default python -m pytest -q -m "other_processor and not soak" "${files[@]}"
fi
wait "$types"
# By file, in the order of tests/conftest.py. Three workers on two cores, since fault tests mostly wait; a later -n wins.
exec python -m pytest -q -n 3 --no-loadscope-reorder "$@"
