"""Checkpoints as somebody else may have written them: every field of every kind, every file of every kind.

A case changes a directory that a run has saved. Its manifest is sealed again where the case is not about that, so that
SHA-256 finds nothing. `HARMLESS` lists what is free in a checkpoint: whatever is there, a run goes on.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import pickle
import random
import re
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from largebatch.records.checkpoint.manifest import MANIFEST, build_manifest, encode_manifest

PLANTED = "planted_by_a_checkpoint"  # a module that leaves a file where it is imported
HOSTILE_MODULE = "import pathlib\npathlib.Path('canary').touch()\n"
MODEL, OPTIMIZER, VALUES = "model.safetensors", "optimizer.safetensors", "values.json"


@dataclass(frozen=True)
class Case:
    """A change of a checkpoint's directory.

    Attributes:
        name: tells what is wrong.
        change: makes it so; the directory may be replaced by something else.
        is_sealed: whether the manifest is to agree with what was changed.
        weights_are_whole: whether somebody who wants the weights alone may be given them.
        may_be_valid: whether chance may have made another valid checkpoint of it, as by another digit of a rate.
    """

    name: str
    change: Callable[[Path], None]
    is_sealed: bool = True
    weights_are_whole: bool = False
    may_be_valid: bool = False

    def apply(self, directory: Path) -> None:
        """Make the checkpoint in the directory hostile."""
        self.change(directory)
        if self.is_sealed:
            seal(directory)


def seal(directory: Path) -> None:
    """Give a directory that was tampered with a manifest that agrees with it."""
    step = json.loads((directory / MANIFEST).read_bytes())["step"]
    names = [entry.name for entry in directory.iterdir() if entry.name != MANIFEST]
    (directory / MANIFEST).write_bytes(encode_manifest(build_manifest(directory, step=step, names=names)))


class Payload:
    """Imports the planted module when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return __import__, (PLANTED,)


# --- values.json: each place x each kind ---

RAW = {  # what no Python value is spelled as
    "deep": "[" * 100_000 + "]" * 100_000,
    "deep objects": '{"a":' * 5_000 + "1" + "}" * 5_000,
    "as deep as may be parsed": "[" * 300 + "]" * 300,
    "4,000 digits": "9" * 4_000,
    "5,000 digits": "9" * 5_000,
    "beyond floats": "1e999",
    "NaN": "NaN",
    "-Infinity": "-Infinity",
    "twice": '{"a": 1, "a": 1}',
    "lone surrogate": '"\\ud800"',
    "control sequence": '"\\u001b[2J\\u0000\\n"',
}
WRONG: dict[str, Any] = {
    "null": None,
    "true": True,
    "negative": -1,
    "fraction": 0.5,
    "400 digits": 10**400,
    "text": "x",
    "path": "../../../etc/passwd",
    "module": f"{PLANTED}.Planted",
    "shell": "$(touch canary)`touch canary`;touch canary",
    "interpolation": "${oc.env:HOME}",
    "list": [],
    "object": {},
    "node": {"_target_": f"{PLANTED}.Planted", "__class__": {"__init__": 1}},
    "long text": "x" * 100_000,
    "list of lists": [[[]]],
}


def places(value: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Keys of everything inside of a value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield (*prefix, key)
        yield from places(part, (*prefix, key))


def with_value(values: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value in one place."""
    changed = copy.deepcopy(values)
    inside = changed
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    return changed


def without(values: Any, place: tuple[Any, ...]) -> Any:
    changed = copy.deepcopy(values)
    inside = changed
    for key in place[:-1]:
        inside = inside[key]
    del inside[place[-1]]
    return changed


def value_cases(values: dict[str, Any]) -> Iterator[Case]:
    """Every place of values.json, with every wrong kind, and without it."""
    for place in places(values):
        name, before = "/".join(map(str, place)), at(values, place)
        for kind, wrong in WRONG.items():
            if wrong != before or type(wrong) is not type(before):
                yield values_case(f"{name} is {kind}", partial(with_value, values, place, wrong))
        for kind, raw in RAW.items():
            yield values_case(f"{name} is {kind}", partial(with_value, values, place, "@RAW@"), raw)
        yield values_case(f"{name} is missing", partial(without, values, place))


def at(values: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        values = values[key]
    return values


def values_case(name: str, values: Callable[[], Any], raw: str = "null") -> Case:
    def change(directory: Path) -> None:
        text = json.dumps(values(), indent=1).replace('"@RAW@"', raw)
        (directory / VALUES).write_text(text + "\n", encoding="utf-8")

    return Case(f"values: {name}", change, weights_are_whole=True)


def bytes_cases() -> Iterator[Case]:
    """Files that are none of what they should be, byte by byte."""
    contents = {
        "nothing": b"",
        "not UTF-8": b'{"step": "\xff\xfe"}',
        "UTF-16": '{"step": 1}'.encode("utf-16"),
        "a mark in front": b"\xef\xbb\xbf{}",
        "a list": b"[]",
        "a number": b"7",
        "two documents": b"{}{}",
        "a comment": b"{} // yes",
        "a pickle": pickle.dumps(Payload()),
        "50 MB of brackets": b"[" * 50_000_000,
        "70 MB of blanks": b" " * 70_000_000,
        "2,000,000 objects": b"[" + b",".join([b"{}"] * 2_000_000) + b"]",
    }
    for kind, content in contents.items():
        whole = Case(f"values: the file is {kind}", writing(VALUES, content), weights_are_whole=True)
        yield whole
        yield Case(f"manifest: the file is {kind}", writing(MANIFEST, content), is_sealed=False)
        if len(content) < 10_000_000:
            yield Case(f"{MODEL}: the file is {kind}", writing(MODEL, content))


def writing(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_bytes(content) and None


# --- MANIFEST.json ---


def manifest_cases(body: dict[str, Any]) -> Iterator[Case]:
    """Every place of the manifest with every wrong kind; its own SHA-256 agrees."""
    body = {key: value for key, value in body.items() if key != "sha256"}
    for place in places(body):
        name = "/".join(map(str, place))
        for kind, wrong in WRONG.items():
            if wrong != at(body, place) or type(wrong) is not type(at(body, place)):
                yield manifest_case(f"{name} is {kind}", with_value(body, place, wrong))
        yield manifest_case(f"{name} is missing", without(body, place))
    known = body["files"][VALUES]
    for kind, name in {
        "outside": "../secret.json",
        "absolute": "/etc/passwd",
        "with NUL": "a\0.json",
        "with a surrogate": "\ud800.safetensors",
        "empty": "",
        "the folder": ".",
        "the parent": "..",
        "very long": "x" * 5_000 + ".safetensors",
        "a program": "run.py",
        "itself": MANIFEST,
    }.items():
        yield manifest_case(f"a file is {kind}", {**body, "files": {**body["files"], name: known}})
    yield manifest_case("format 0", {**body, "format": 0})
    yield manifest_case("a size is that of all disks", with_value(body, ("files", MODEL, "size"), 2**70))
    yield manifest_case("no tensors at all", {**body, "files": {VALUES: known}})
    yield Case("manifest: a key twice", lambda directory: double_key(directory / MANIFEST), is_sealed=False)
    deep = b'{"format": 1, "sha256": "", "step": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    yield Case("manifest: deep", writing(MANIFEST, deep), is_sealed=False)


def manifest_case(name: str, body: dict[str, Any]) -> Case:
    def change(directory: Path) -> None:
        (directory / MANIFEST).write_bytes(encode_manifest(body))

    return Case(f"manifest: {name}", change, is_sealed=False, weights_are_whole="versions" in name)


def double_key(path: Path) -> None:
    text = path.read_text()
    path.write_text(text.replace('"step":', '"step": 1,\n "step":', 1))


# --- tensors ---


def tensor_cases(model: dict[str, Tensor], optimizer: dict[str, Tensor]) -> Iterator[Case]:
    """Tensors of other names, shapes, dtypes and values in files that are what they say."""
    for file, tensors in ((MODEL, model), (OPTIMIZER, optimizer)):
        is_whole = file == OPTIMIZER
        for name, value in tensors.items():
            for kind, changed in changed_tensors(value):
                yield tensors_case(f"{file}: {name} {kind}", file, {**tensors, name: changed}, is_whole=is_whole)
            fewer = {one: part for one, part in tensors.items() if one != name}
            yield tensors_case(f"{file}: {name} is missing", file, fewer, is_whole=is_whole)
            yield tensors_case(f"{file}: {name} is renamed", file, {**fewer, f"{name}_": value}, is_whole=is_whole)
        for stranger in ("", "../x", f"{PLANTED}.Planted", "__class__", "\x1b[2J", "x" * 10_000, "~group/0/params"):
            more = {**tensors, stranger: torch.ones(2)}
            yield tensors_case(f"{file}: {stranger[:30]!r} beside them", file, more, is_whole=is_whole)
        yield tensors_case(f"{file}: nothing inside", file, {}, is_whole=is_whole)


def changed_tensors(value: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield "has one more row", torch.ones((value.shape[0] + 1, *value.shape[1:]) if value.dim() else (2,))
    yield "is empty", torch.empty(0, dtype=value.dtype)
    yield "has a dimension more", value[None].clone()
    yield "is of another dtype", value.to(torch.float64 if value.is_floating_point() else torch.float32)
    yield "is of whole numbers", value.to(torch.int8)
    if value.is_floating_point():
        for kind, number in (("NaN", float("nan")), ("-inf", float("-inf"))):
            other = value.clone()
            other.reshape(-1)[-1] = number
            yield f"holds {kind}", other


def tensors_case(name: str, file: str, tensors: dict[str, Tensor], *, is_whole: bool) -> Case:
    def change(directory: Path) -> None:
        save_file({key: value.contiguous() for key, value in tensors.items()}, directory / file)

    return Case(name, change, weights_are_whole=is_whole)


def header_cases(directory: Path) -> Iterator[Case]:
    """Headers of safetensors files that lie."""
    header, data = split(directory / MODEL)
    names = [name for name in header if name != "__metadata__"]
    first, second = names[0], names[1]
    size = len(data)

    def said(name: str, **changes: Any) -> dict[str, Any]:
        return {**header, name: {**header[name], **changes}}

    lies: dict[str, Any] = {
        "two overlap": said(second, data_offsets=header[first]["data_offsets"]),
        "one begins before the data": said(first, data_offsets=[-4, header[first]["data_offsets"][1]]),
        "one ends behind the file": said(first, data_offsets=[size, size + 400]),
        "one is turned round": said(first, data_offsets=header[first]["data_offsets"][::-1]),
        "a shape is negative": said(first, shape=[-1, -1]),
        "a shape overflows": said(first, shape=[2**62, 2**62]),
        "a shape is huge and empty": said(first, shape=[2**62, 2**62, 0], data_offsets=[0, 0]),
        "a shape is a text": said(first, shape="3"),
        "a dtype is unknown": said(first, dtype="F1024"),
        "a dtype is a module": said(first, dtype=f"{PLANTED}.Planted"),
        "offsets are fractions": said(first, data_offsets=[0.5, 4.5]),
        "offsets have 400 digits": said(first, data_offsets=[10**400, 10**401]),
        "a tensor says nothing": {**header, first: {}},
        "a tensor is a list": {**header, first: []},
        "metadata is a number": {**header, "__metadata__": 7},
        "metadata is nested": {**header, "__metadata__": {"a": {"b": "c"}}},
        "a list": [],
        "nothing inside": {},
        "100,000 empty tensors": {
            **header,
            **{f"t{number}": {"dtype": "F32", "shape": [0], "data_offsets": [size, size]} for number in range(100_000)},
        },
    }
    for kind, body in lies.items():
        yield Case(f"header: {kind}", lambda path, body=body: join(path / MODEL, json.dumps(body).encode(), data))  # type: ignore[misc]
    raw = {
        "deep": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        "a key twice": json.dumps(header).encode()[:-1] + b', "' + first.encode() + b'": {"dtype": "F32", "shape": [0],'
        b' "data_offsets": [0, 0]}}',
        "not UTF-8": b'{"\xff": 1}',
        "no JSON": b"x" * 100,
    }
    for kind, text in raw.items():
        yield Case(f"header: {kind}", lambda path, text=text: join(path / MODEL, text, data))  # type: ignore[misc]
    for kind, length in {
        "length 0": 0,
        "length 2^63": 2**63,
        "length 2^64-1": 2**64 - 1,
        "length 99 MB": 99_000_000,
    }.items():
        content = struct.pack("<Q", length) + json.dumps(header).encode() + data
        yield Case(f"header: {kind}", writing(MODEL, content))
    for length in range(9):
        yield Case(f"header: {length} bytes in all", writing(MODEL, struct.pack("<Q", 400)[:length]))
    yield Case("header: bytes behind the last tensor", writing(MODEL, (directory / MODEL).read_bytes() + b"\0" * 9))


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(path: Path, header: bytes, data: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


# --- files that are none ---


def file_cases() -> Iterator[Case]:
    """Something else in place of each file, and of the directory."""
    for name in (MODEL, OPTIMIZER, VALUES, MANIFEST):
        for kind, make in PLACED.items():
            yield Case(f"{name} is {kind}", placing(name, make), is_sealed=False)
        pickled = lambda path, name=name: torch.save(Payload(), path / name)  # type: ignore[misc]  # noqa: E731
        yield Case(f"{name} is a torch.save", pickled, is_sealed=name != MANIFEST)
        yield Case(f"{name} is missing", lambda path, name=name: (path / name).unlink(), is_sealed=False)  # type: ignore[misc]
    yield Case("model.safetensors: a terabyte that is not there", lambda path: sparse(path, b""), is_sealed=False)
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}).encode()
    start = struct.pack("<Q", len(header)) + header
    yield Case("model.safetensors: a terabyte with a header", lambda path: sparse(path, start), is_sealed=False)
    yield Case("values.json: a terabyte", lambda path: sparse(path, b"{", VALUES), is_sealed=False)
    yield Case("MANIFEST.json: a terabyte", lambda path: os.truncate(path / MANIFEST, 2**40), is_sealed=False)
    for kind, make in PLACED.items():
        if kind != "a directory":
            yield Case(f"the directory is {kind}", replacing(make), is_sealed=False)
    yield Case(
        "the directory is empty", lambda path: [one.unlink() for one in path.iterdir()] and None, is_sealed=False
    )


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(path.parent)  # names of sockets are short
        try:
            one.bind(path.name)
        finally:
            os.chdir(here)


def link_out(path: Path) -> None:
    """To what was there, moved out of the folder: its content agrees with everything."""
    outside = path.parents[3] / f"outside_{path.parent.name}_{path.name}"
    os.rename(path, outside)
    path.symlink_to(outside)


def instead(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Move away what was there, and make something else in its place."""

    def place(path: Path) -> None:
        path.rename(path.with_name(f".gone-{path.name}"))
        make(path)

    return place


PLACED: dict[str, Callable[[Path], None]] = {
    "a pipe": instead(os.mkfifo),
    "a socket": instead(bind),
    "a device": instead(lambda path: path.symlink_to("/dev/zero")),
    "a link to itself": instead(lambda path: path.symlink_to(path)),
    "a link to nothing": instead(lambda path: path.symlink_to("x")),
    "a link out of the folder": link_out,
    "a directory": instead(Path.mkdir),
}


def placing(name: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda directory: make(directory / name)


def replacing(make: Callable[[Path], None]) -> Callable[[Path], None]:
    return make


def sparse(directory: Path, start: bytes, name: str = MODEL) -> None:
    """A file of a terabyte, and a manifest that says so."""
    (directory / name).write_bytes(start)
    os.truncate(directory / name, 2**40)
    body = json.loads((directory / MANIFEST).read_bytes())
    body["files"][name] = {"size": 2**40, "sha256": "0" * 64}
    del body["sha256"]
    (directory / MANIFEST).write_bytes(encode_manifest(body))


# --- all of them, and chance ---


def families(directory: Path) -> dict[str, list[Case]]:
    """The systematic cases of a checkpoint of a run, by what they are about."""
    values = json.loads((directory / VALUES).read_bytes())
    body = json.loads((directory / MANIFEST).read_bytes())
    model, optimizer = load_file(directory / MODEL), load_file(directory / OPTIMIZER)
    return {
        "files": list(file_cases()),
        "bytes": list(bytes_cases()),
        "headers": list(header_cases(directory)),
        "manifest": [case for case in manifest_cases(body) if not is_harmless(case.name)],
        "tensors": list(tensor_cases(model, optimizer)),
        "values": [case for case in value_cases(values) if not is_harmless(case.name)],
    }


def is_harmless(name: str) -> bool:
    """Whether what a case puts into its place is free there."""
    return any(re.fullmatch(pattern, name) for pattern in HARMLESS)


HARMLESS = (
    r"manifest: versions(/.*)? is (missing|text|module|object)",  # shown to people, and nothing else
    r"values: (best|evaluation_owed|guard) is missing",  # as in the first checkpoints
    r"values: (best|extra|optimizer/groups/\d+/options) is (object|node)",
    r"values: evaluation_owed is true",
    r"values: guard/losses/\d+ is .*",
    r"values: guard/grad_norms/\d+ is (fraction|missing)",
    r"values: guard/(losses|grad_norms) is list",
    r"values: optimizer/groups/\d+/not_saved is list",
    r"values: optimizer/groups/\d+/options/\w+ is missing",  # newer than the checkpoint: that of the config counts
    r"values: optimizer/groups/\d+/options/lr is fraction",  # follows from the schedule
)


def mutations(directory: Path, count: int, seed: int) -> Iterator[Case]:
    """Seeded: several places at once, values swapped between places, and bytes of headers."""
    return (dataclasses.replace(case, may_be_valid=True) for case in _mutations(directory, count, random.Random(seed)))


def _mutations(directory: Path, count: int, draw: random.Random) -> Iterator[Case]:
    values = json.loads((directory / VALUES).read_bytes())
    where = list(places(values))
    header, data = split(directory / MODEL)
    text = json.dumps(header).encode()
    for number in range(count):
        if number % 3 == 0:
            changed = values
            for place in sorted(draw.sample(where, 3), key=len):
                with contextlib.suppress(KeyError, IndexError, TypeError):  # a place that another one took with it
                    changed = with_value(changed, place, at(values, draw.choice(where)))
            yield values_case(f"mutation {number}: places swapped", lambda changed=changed: changed)  # type: ignore[misc]
        elif number % 3 == 1:
            spoiled = bytearray(text)
            for _ in range(draw.randint(1, 8)):
                spoiled[draw.randrange(len(spoiled))] = draw.randrange(256)
            yield Case(
                f"mutation {number}: bytes of a header",
                lambda path, spoiled=bytes(spoiled): join(path / MODEL, spoiled, data),  # type: ignore[misc]
            )
        else:
            spoiled = bytearray((directory / VALUES).read_bytes())
            for _ in range(draw.randint(1, 4)):
                spoiled[draw.randrange(len(spoiled))] = draw.randrange(256)
            yield Case(
                f"mutation {number}: bytes of the values", writing(VALUES, bytes(spoiled)), weights_are_whole=True
            )
