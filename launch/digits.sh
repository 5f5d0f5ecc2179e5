#!/usr/bin/env bash
# Usage: launch/digits.sh [FOLDER]
#
# The comparison of largebatch/experiments/README.md on the embedded digits, three seeds each: batch 32 with SGD, batch 718
# with SGD and linear scaling, batch 718 with LARS. Prints the table and draws FOLDER/digits.png (default: runs/digits).
# Takes about three minutes on two cores. Finished runs are not repeated.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/setup_venv.sh
source "$here/setup_venv.sh" ""

folder=${1:-runs/digits}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
for experiment in digits_baseline digits_large_sgd digits_large_lars; do
    for seed in 0 1 2; do
        run=$folder/$experiment-$seed
        [[ -f $run/summary.json ]] || python -m largebatch train experiment=$experiment seed=$seed run.dir="$run" \
            logger=none observers.progress=false observers.metrics.every=1 resume=auto >/dev/null
    done
done
python - "$folder" <<'EOF'
import json, statistics, sys
from pathlib import Path

from largebatch.records.figures.comparison_figures import comparison_figures
from largebatch.records.figures.draw_png import draw_panels
from largebatch.records.trackers import read_metrics

folder, runs = Path(sys.argv[1]), []
print(f"{'experiment':20} {'steps':>6} {'validation accuracy':>20}   seeds 0, 1, 2")
for name, label in (
    ("digits_baseline", "batch 32, SGD"),
    ("digits_large_sgd", "batch 718, SGD, linear scaling"),
    ("digits_large_lars", "batch 718, LARS"),
):
    folders = [folder / f"{name}-{seed}" for seed in range(3)]
    runs += [(label, read_metrics(one / "metrics.jsonl")) for one in folders]
    summaries = [json.loads((one / "summary.json").read_text()) for one in folders]
    values = [one["eval/val_accuracy"] for one in summaries]
    spread = f"{statistics.mean(values):.4f} ± {statistics.stdev(values) / 3**0.5:.4f}"
    print(f"{name:20} {summaries[0]['steps']:6} {spread:>20}   {', '.join(f'{value:.4f}' for value in values)}")
optimizers = {label: "LARS" if "LARS" in label else "SGD" for label, _ in runs}
figures = comparison_figures(runs, optimizers=optimizers)
picture = draw_panels(figures, folder / "digits.png", title="digits: mean and range of three seeds")
print(f"picture: {picture}")
EOF
