"""Reads the files of a run, and the records of measurements, without trusting them.

Every file is a regular one inside the folder and of a bounded size, every number that is used is checked here, and a
fault is a ValueError with the reason: nothing behind this module meets a value that it cannot draw.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from largebatch.records.figures.layer_maps import LAYER_PREFIXES
from largebatch.records.flat_config import flat
from largebatch.records.regular_files import read_regular
from largebatch.records.renamed import with_new_names
from largebatch.records.report.evidence import COLUMNS, MOST_LAYER_ROWS, MOST_LAYERS, JsonRecord, RunRecord
from largebatch.records.result import read_result
from largebatch.records.rows.columns import read_columns
from largebatch.records.rows.placed_rows import FURTHEST, Faults, Place, spread_rows, thinned
from largebatch.records.rows.row_file import Row
from largebatch.records.run_folder import RunFolder

_MOST_OF_CONFIG, _MOST_OF_JSON = 2**20, 2**25  # bytes
_MOST_SETTINGS = 20_000  # of a config, with what its aliases repeat
_MOST_DEPTH = 40
_LARGEST, _MOST_DIGITS = 2**53, 40
# Of plan.json: name -> whether it must be there.
_COUNTS = {
    "global_batch_size": True,
    "world_size": False,
    "num_samples": False,
    "max_micro_batch_size": False,
    "grad_accum_steps": False,
}
_PLACE = ("step", "samples_seen")
_MOST_NAMES = 10_000  # of layers that are looked at


def read_run(folder: Path) -> RunRecord:
    """Read a run; its partly damaged files are named in `damage`.

    Raises:
        OSError, ValueError: if it is not enough of a run.
    """
    files = RunFolder(folder)
    for file in (folder / "plan.json", folder / "config.yaml", files.metrics):
        if not _is_there(file):
            raise ValueError(f"{file.name} is missing")
    plan, settings = read_plan(folder), read_settings(folder)
    end = planned_end(plan)
    metrics = read_columns(files.metrics, COLUMNS.__contains__, inside=folder, end=end)
    if not metrics.num_rows and end != FURTHEST:  # then it is the plan that is wrong
        end = FURTHEST
        metrics = read_columns(files.metrics, COLUMNS.__contains__, inside=folder)
    if not metrics.num_rows:
        raise ValueError(f"{files.metrics.name} has no whole row")
    damage = [f"{files.metrics.name}: {fault}" for fault in metrics.faults]
    layers = _read_layers(files.layers, damage, end)
    return RunRecord(folder, folder.name, plan, settings, _read_summary(folder), metrics, layers, tuple(damage))


def read_plan(folder: Path) -> dict[str, Any]:
    """plan.json with its counts checked; errors as of `read_run`."""
    plan = read_json(folder / "plan.json")
    for key, is_needed in _COUNTS.items():
        value = plan.get(key)
        if value is None and not is_needed:
            plan.pop(key, None)
        elif value is None:
            raise ValueError(f"plan.json has no {key}")
        elif not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST:
            raise ValueError(f"plan.json: {key} is no whole number from 1 to 2^53")
    return plan


def planned_end(plan: dict[str, Any]) -> Place:
    """Twice the steps and samples of the plan: rows beyond are damage, if the plan is not."""
    step, samples = (
        2 * value if isinstance(value := plan.get(key), int) and value > 0 else FURTHEST[0]
        for key in ("num_steps", "total_samples")
    )
    return step, samples


def read_settings(folder: Path) -> dict[str, str]:
    """Dotted keys of config.yaml and their values as texts, nothing resolved; errors as of `read_run`."""
    import yaml
    from omegaconf import OmegaConf

    content = read_regular(folder / "config.yaml", most=_MOST_OF_CONFIG, inside=folder)
    try:
        text = content.decode()
        _require_plain(yaml.compose(text, Loader=yaml.SafeLoader))
        values = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
        if not isinstance(values, dict) or not values:
            raise ValueError("it holds no keys with values")
        settings = flat(with_new_names({str(key): part for key, part in values.items()}))
        return {key: str(value) for key, value in settings.items()}
    except RecursionError:
        raise ValueError("config.yaml cannot be read: it is too deep") from None
    except Exception as error:  # of omegaconf, or of the YAML reader behind it
        raise ValueError(f"config.yaml cannot be read: {error}") from error


def _require_plain(root: Any) -> None:
    """Refuse YAML whose aliases multiply: an alias is a copy, and a few lines of nested ones make billions of values.

    Raises ValueError.
    """
    import yaml

    sizes: dict[int, int] = {}

    def size(node: Any, depth: int) -> int:
        if depth > _MOST_DEPTH:
            raise ValueError(f"it is more than {_MOST_DEPTH} levels deep, or contains itself")
        if isinstance(node, yaml.ScalarNode) or node is None:
            return 1
        if id(node) not in sizes:
            parts = node.value if isinstance(node, yaml.SequenceNode) else [one for pair in node.value for one in pair]
            sizes[id(node)] = 1 + sum(size(part, depth + 1) for part in parts)
        return sizes[id(node)]

    if (count := size(root, 0)) > _MOST_SETTINGS:
        raise ValueError(f"it stands for {count:,} values, more than {_MOST_SETTINGS:,}")


def read_record(path: Path) -> JsonRecord:
    """The result in a file with a name among `FILES`; errors as of `read_run`."""
    values = read_json(path)
    config = values.get("config")
    settings = {key: str(value) for key, value in flat(config).items()} if isinstance(config, dict) else {}
    return JsonRecord(path, path.parent.name, read_result(path.name, values), values.get("checkpoint"), settings)


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object; errors as of `read_run`."""
    content = read_regular(path, most=_MOST_OF_JSON, inside=path.parent)
    try:
        values = json.loads(content, parse_int=_whole_number)
    except RecursionError:
        raise ValueError(f"{path.name} is too deep") from None
    except ValueError as error:
        raise ValueError(f"{path.name} is half written, or no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return values


def _whole_number(text: str) -> int:
    if len(text) > _MOST_DIGITS:  # no float can hold it, and of a long one not even Python reads it
        raise ValueError(f"a whole number of {len(text):,} digits")
    return int(text)


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()  # a link to nothing is there, and is damage


def _read_summary(folder: Path) -> dict[str, Any]:
    """Empty where there is none: the run is going on, or was killed. A damaged one hides whether the run diverged."""
    if not _is_there(folder / "summary.json"):
        return {}
    summary = read_json(folder / "summary.json")
    if not isinstance(summary.get("status", ""), str):
        raise ValueError("summary.json: status is no text")
    return summary


def _read_layers(path: Path, damage: list[str], end: Place) -> list[Row]:
    """Rows for the maps of layers, evenly spaced if there are many, ends included; of many layers likewise.

    A run is shown without them as well: faults are added to `damage`.
    """
    if not _is_there(path):
        return []
    faults = Faults()
    try:
        rows = _layer_rows(spread_rows(path, MOST_LAYER_ROWS, faults, inside=path.parent, end=end))
    except (OSError, ValueError) as error:
        damage.append(str(error))
        return []
    damage += [f"{path.name}: {fault}" for fault in faults.clauses()]
    return rows


def _layer_rows(found: Iterable[Row]) -> list[Row]:
    rows: list[Row] = []
    names: dict[str, None] = {}
    for row in found:
        ratios = {key: value for key, value in row.items() if key.startswith(LAYER_PREFIXES)}
        names |= dict.fromkeys(islice((key for key in ratios if key not in names), _MOST_NAMES - len(names)))
        rows.append({key: ratios[key] for key in names.keys() & ratios.keys()} | {key: row[key] for key in _PLACE})
    order = list(names)
    kept = [*_PLACE, *(order[place] for place in thinned(len(order), MOST_LAYERS))]
    return [{key: row[key] for key in kept if key in row} for row in rows]
