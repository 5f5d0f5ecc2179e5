"""`largebatch checkpoint verify|export`: checks every byte of checkpoints, and exports weights for other programs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from largebatch.cli.arguments import with_arguments
from largebatch.cli.composition.choices import list_choices
from largebatch.cli.process.leaving import EXIT_DONE, EXIT_FAILED
from largebatch.records.regular_files import printable

if TYPE_CHECKING:
    from torch import Tensor

    from largebatch.records.checkpoint import Checkpoint

SUBJECTS = {
    "verify": "check every byte of checkpoints, or folders of them, against their manifests: `verify PATH...`",
    "export": "write the weights of a checkpoint as one plain safetensors file: `export PATH --out FILE`",
}


def main(arguments: Sequence[str]) -> int:
    """`checkpoint verify PATH...` or `checkpoint export PATH --out FILE`.

    Returns 0; 1 if a checkpoint is damaged; 2 for wrong input.
    """
    if not arguments or arguments[0] not in SUBJECTS:
        return list_choices("checkpoint", SUBJECTS, arguments)
    what, *rest = arguments
    return with_arguments(_parser(what), rest, _verify if what == "verify" else _export, lambda options, code: code)


def _parser(what: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"largebatch checkpoint {what}", description=SUBJECTS[what])
    if what == "verify":
        parser.add_argument("paths", metavar="PATH", nargs="+", help="a checkpoint, a run, or a folder of runs")
    else:
        parser.add_argument(
            "path",
            metavar="PATH",
            help="a checkpoint; or a run, or a folder of checkpoints (RUN/checkpoints/best): its newest valid one",
        )
        parser.add_argument("--ema", action="store_true", help="the averaged weights in place of the last ones")
        parser.add_argument("--out", metavar="FILE", help="must not exist; default: ./step_N.safetensors")
    return parser


def _verify(options: argparse.Namespace) -> int:
    """Print a table of all checkpoints below the paths."""
    from largebatch.records.checkpoint import CheckpointError, require_run_values, verify_checkpoint
    from largebatch.records.trackers import print_table

    rows, damaged = [], 0
    for path in [one for text in options.paths for one in _checkpoints(Path(text))]:
        size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
        try:
            checkpoint = verify_checkpoint(path)
            if "identity" in checkpoint.values:  # written by a run; other loops may store any values
                require_run_values(checkpoint)
            step, verdict = str(checkpoint.step), "valid"
        except CheckpointError as error:
            step, verdict, damaged = "", str(error), damaged + 1
        rows.append((printable(path), step, f"{size:,}", printable(verdict)))
    print_table(("checkpoint", "step", "bytes", "verdict"), rows, title="every byte against the manifests")
    print(f"{len(rows) - damaged} valid, {damaged} damaged")
    return EXIT_FAILED if damaged else EXIT_DONE


def _checkpoints(path: Path) -> list[Path]:
    """The checkpoints at or below a path; a directory named like one counts even without a manifest.

    Raises:
        ValueError: if the path holds no checkpoint.
    """
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder. Give a checkpoint, a run, or a folder of runs.")
    if (path / "MANIFEST.json").is_file() or path.name.startswith("step_"):
        return [path]
    found = sorted(one for one in path.rglob("step_*") if one.is_dir())
    if not found:
        raise ValueError(f"{path}: holds no checkpoint (step_*). Give a checkpoint, a run, or a folder of runs.")
    return found


def _exported(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The averaged weights, with buffers and frozen parameters of the run."""
    weights, averages = checkpoint.tensors["model"], checkpoint.tensors.get("ema")
    if averages is None:
        raise ValueError(f"{checkpoint.path}: has no average, which a run keeps with ema.half_life. Leave out --ema.")
    if strangers := sorted(averages.keys() - weights.keys()):
        raise ValueError(f"{checkpoint.path}: the model saves {strangers[0]} under another name: export without --ema.")
    return weights | {name: one.to(weights[name].dtype) for name, one in averages.items()}


def _export(options: argparse.Namespace) -> int:
    """Write only the model's tensors, for other programs."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from largebatch.records.checkpoint import CheckpointError, find_valid
    from largebatch.records.durable_files import NotWrittenError, replacing

    path = Path(options.path)
    try:
        if not path.is_dir():
            raise ValueError(f"{path}: no such folder. Give a checkpoint, a folder of checkpoints, or a run.")
        checkpoint, passed_over = find_valid(path)
        if checkpoint is None:
            raise CheckpointError(f"{path}: no valid checkpoint. " + " ".join(passed_over or ["There is none at all."]))
        if "model" not in checkpoint.tensors:
            raise CheckpointError(f"{checkpoint.path}: holds no model.safetensors. Use an older checkpoint.")
    except CheckpointError as error:
        print(f"largebatch checkpoint export: {printable(error)}", file=sys.stderr)
        return EXIT_FAILED
    for note in passed_over:
        print(f"passed over: {printable(note)}", file=sys.stderr)
    of = "-ema" * options.ema
    target = Path(options.out) if options.out else Path(f"{checkpoint.path.name}{of}.safetensors")
    if os.path.lexists(target):
        raise ValueError(f"{target} exists already. Choose another name with --out FILE.")
    weights = _exported(checkpoint) if options.ema else checkpoint.tensors["model"]
    try:
        if not target.parent.is_dir():  # a typo must not create a folder
            raise FileNotFoundError(f"there is no folder {target.parent}")
        with replacing(target) as draft:
            save_file(weights, draft, metadata={"format": "pt", "step": str(checkpoint.step)})
    except (OSError, SafetensorError) as error:
        fact = error if isinstance(error, NotWrittenError) else f"{target} cannot be written: {error}"
        raise ValueError(f"{fact}. Choose another place with --out FILE.") from None
    print(f"{target}: {len(weights)} tensors of step {checkpoint.step}, {target.stat().st_size:,} bytes")
    return EXIT_DONE
