#!/usr/bin/env bash
# Usage: launch/textbook.sh [FOLDER]
#
# Runs the textbook chapter on batch size: every experiment of `largebatch textbook` into FOLDER/NAME, each with figures,
# a table and an answer computed from its numbers, then one page of all of them. FOLDER is runs/textbook by default.
# A few minutes on two cores. A finished experiment is not repeated; one that was cut off begins anew.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/setup_venv.sh
source "$here/setup_venv.sh" ""

folder=${1:-runs/textbook}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
names=$(python -c 'from largebatch.cli.textbook import EXPERIMENTS; print(*EXPERIMENTS)')
for name in $names; do
    made=$folder/$name
    [[ -f $made/textbook.json || -f $made/chapter.json ]] && continue # chapter.json: finished by an earlier version
    # Ends without textbook.json are of an experiment that was cut off: only what this script makes is removed.
    rm -rf "${made:?}/runs"
    python -m largebatch textbook "$name" run.dir="$made"
done
python -m largebatch textbook page "$folder" --out "$folder/report.html"
