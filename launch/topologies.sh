#!/usr/bin/env bash
# Usage: launch/topologies.sh [FOLDER]
#
# The figure of the README: one run (digits, batch 718, LARS, float64) on 1, 2, 3 and 4 processes. Draws the losses, and the
# distance of the weights from the run on one process: with a pinned micro-batch, with ordered sums, and with neither.
# FOLDER is runs/topologies by default. Takes about three minutes on two cores. Finished runs are not repeated.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/setup_venv.sh
source "$here/setup_venv.sh" ""

folder=${1:-runs/topologies}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
train() { # NAME PROCESSES [KEY=VALUE ...]
    local run=$folder/$1-$2
    [[ -f $run/summary.json ]] || torchrun --standalone --nproc-per-node "$2" -m largebatch train \
        experiment=digits_large_lars precision=fp64 observers.metrics.every=1 \
        observers.checkpoint.every=5steps observers.checkpoint.keep=20 \
        run.dir="$run" logger=none observers.progress=false resume=auto "${@:3}" >/dev/null
}
for processes in 1 2 3 4; do
    train pinned "$processes"
done
for processes in 1 4; do
    train ordered "$processes" batch.reduction=ordered
    train free "$processes" batch.micro=null batch.max_micro=null # batch norm sees the share of a rank
done
python - "$folder" <<'EOF'
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from safetensors.torch import load_file

from largebatch.records.trackers import read_metrics

folder, STEPS, FLOOR = Path(sys.argv[1]), range(5, 61, 5), 1e-18


def losses(name, processes):
    rows = read_metrics(folder / f"{name}-{processes}" / "metrics.jsonl")
    return [row["train/loss"] for row in rows if "train/loss" in row]


def weights(name, processes, step):
    saved = load_file(folder / f"{name}-{processes}" / "checkpoints" / f"step_{step:08d}" / "model.safetensors")
    # Parameters only, without the running statistics of batch norm.
    return torch.cat([one.flatten() for key, one in sorted(saved.items()) if key.endswith(("weight", "bias"))])


def distances(name, processes):
    """|w - w of one process| / |w of one process|."""
    for step in STEPS:
        one = weights(name, 1, step)
        yield float((weights(name, processes, step) - one).norm() / one.norm())


figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for processes, style in zip((1, 2, 3, 4), ("-", "--", "-.", ":")):
    label = "1 process" if processes == 1 else f"{processes} processes"
    values = losses("pinned", processes)
    left.plot(range(1, len(values) + 1), values, style, lw=6 - processes, label=label)
left.set(yscale="log", xlabel="optimizer step", ylabel="loss of the global batch")
left.set_title("The same run on 1, 2, 3 and 4 processes")
left.legend(frameon=False)

cases = [("free", 4, "4 processes, micro-batches not pinned", "#D55E00")]
cases += [("pinned", n, f"{n} processes, pinned", colour) for n, colour in ((2, "#56B4E9"), (3, "#0072B2"), (4, "#003f66"))]
cases += [("ordered", 4, "4 processes, ordered sums: exactly 0", "#009E73")]
print(f"{'sums':10} {'processes':>9} {'largest distance of the weights':>32}")
for name, processes, label, colour in cases:
    values = list(distances(name, processes))
    print(f"{name:10} {processes:9} {max(values):32.1e}")
    right.plot(STEPS, [max(one, FLOOR) for one in values], "o-", ms=3, label=label, color=colour)
right.axhline(2**-53, color="grey", lw=0.8, ls=":")
right.text(40, 2**-53 * 0.1, "rounding of float64", color="grey", fontsize=8)
right.set(yscale="log", ylim=(FLOOR / 5, 30), xlabel="optimizer step", ylabel="|difference| / |weights|")
right.set_title("Weights against those of one process")
right.legend(frameon=False, fontsize=8, loc="center right", bbox_to_anchor=(1, 0.55))
for ax in (left, right):
    ax.spines[["top", "right"]].set_visible(False)
figure.savefig(folder / "topologies.png", dpi=120)
print(f"picture: {folder / 'topologies.png'}")
EOF
