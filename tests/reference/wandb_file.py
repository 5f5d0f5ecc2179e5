"""Reads what an offline W&B run left on disk, without wandb's own reader (there is none since wandb 0.31).

A `run-*.wandb` file is a LevelDB log: a header of 7 bytes, then blocks of 32 KiB. A record is cut into chunks that do
not cross a block; each chunk has a masked CRC, a length and a type. The records are protobuf messages.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_BLOCK = 32768
_CHUNK_HEADER = struct.Struct("<IHB")  # crc, length, type
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass
class WandbRun:
    """All that a run's files say, in the order of writing; the files of a resumed run are one run."""

    run_ids: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    project: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    notes: str = ""
    entity: str = ""
    host: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    step_metrics: dict[str, str] = field(default_factory=dict)  # metric or glob -> its x axis
    best: dict[str, str] = field(default_factory=dict)  # metric -> "max" or "min"
    exit_codes: list[int] = field(default_factory=list)
    artifacts: dict[str, tuple[str, list[str], list[str]]] = field(default_factory=dict)  # type, aliases, files
    kinds: set[str] = field(default_factory=set)


def read_run(folder: Path) -> WandbRun:
    """Read every `run-*.wandb` under `folder`, in the order of their starts, as one run.

    `run.finish()` may return some milliseconds before W&B's service has written its last block: `wandb.teardown()`
    waits for it, and so does the end of the process.
    """
    attempts = [[_parse(body) for body in chunks(file.read_bytes())] for file in folder.rglob("run-*.wandb")]
    if not attempts:
        raise FileNotFoundError(f"no run-*.wandb under {folder}")
    run = WandbRun()
    for records in sorted(attempts, key=_start_time):
        for record in records:
            _add(run, record)
    return run


def chunks(data: bytes) -> Iterator[bytes]:
    """The payload of every record; ValueError for a wrong checksum, EOFError for a file cut in the middle."""
    if struct.unpack("<4sHB", data[:7])[:2] != (b":W&B", 0xBEE1):
        raise ValueError("not a .wandb file")
    position, parts = 7, b""
    while position + _CHUNK_HEADER.size <= len(data):
        left = _BLOCK - position % _BLOCK
        crc, length, kind = _CHUNK_HEADER.unpack_from(data, position)
        if left < _CHUNK_HEADER.size or (kind == 0 and length == 0):  # padding up to the next block
            position += left
            continue
        start = position + _CHUNK_HEADER.size
        body = data[start : start + length]
        if len(body) < length:
            raise EOFError(f"the file ends inside the record at {position}")
        plain = zlib.crc32(body, zlib.crc32(bytes([kind])))
        if crc not in (plain, _masked(plain)):
            raise ValueError(f"wrong checksum at {position}")
        position = start + length
        parts = body if kind in (_FULL, _FIRST) else parts + body
        if kind in (_FULL, _LAST):
            yield parts


def _masked(crc: int) -> int:
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _parse(body: bytes) -> Any:
    from wandb.proto import wandb_internal_pb2

    record = wandb_internal_pb2.Record()
    record.ParseFromString(body)
    return record


def _start_time(records: list[Any]) -> int:
    return next(r.run.start_time.ToNanoseconds() for r in records if r.WhichOneof("record_type") == "run")


def _add(run: WandbRun, record: Any) -> None:
    kind = record.WhichOneof("record_type")
    run.kinds.add(kind)
    if kind == "run":
        run.run_ids += [record.run.run_id] if record.run.run_id not in run.run_ids else []
        run.project, run.name = record.run.project, record.run.display_name
        run.group, run.job_type, run.tags = record.run.run_group, record.run.job_type, list(record.run.tags)
        run.notes, run.entity, run.host = record.run.notes, record.run.entity, record.run.host
        run.config.update({item.key: json.loads(item.value_json) for item in record.run.config.update})
    elif kind == "history":
        run.history.append({_key(item): json.loads(item.value_json) for item in record.history.item})
    elif kind == "summary":
        run.summary.update({_key(item): json.loads(item.value_json) for item in record.summary.update})
    elif kind == "metric":
        metric = record.metric.name or record.metric.glob_name
        run.step_metrics[metric] = record.metric.step_metric
        for name in ("max", "min"):
            if getattr(record.metric.summary, name):
                run.best[metric] = name
    elif kind == "artifact":
        artifact = record.artifact
        files = sorted(item.path for item in artifact.manifest.contents)
        run.artifacts[artifact.name] = (artifact.type, list(artifact.aliases), files)
    elif kind == "exit":
        run.exit_codes.append(record.exit.exit_code)


def _key(item: Any) -> str:
    return item.key or "/".join(item.nested_key)
