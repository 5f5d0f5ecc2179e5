from __future__ import annotations

import ast
import contextlib
import errno
import io
import json
import os
import pickle
import re
import resource
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import largebatch.records.checkpoint
from largebatch.records.checkpoint import (
    FORMAT,
    Checkpoint,
    CheckpointError,
    find_valid,
    load_checkpoint,
    newest_valid,
    position_of,
    save_checkpoint,
    verify_checkpoint,
)
from largebatch.records.checkpoint.manifest import MANIFEST, build_manifest, encode_manifest
from tests.unit.records.failing_disk import Death, FailingDisk

pytestmark = pytest.mark.quick

FILES = ["model.safetensors", "optimizer.safetensors", "values.json", MANIFEST]


def save(folder: Path, step: int, content: float | None = None, *, keep: int = 9) -> Path:
    """A checkpoint whose every number is `content`, by default its step."""
    number = float(step if content is None else content)
    return save_checkpoint(
        folder,
        step=step,
        tensors={
            "model": {"weight": torch.full((5, 3), number)},
            "optimizer": {"weight/m": torch.full((5, 3), number)},
        },
        values={"number": number, "samples_seen": 32 * step},
        keep=keep,
    )


def assert_whole(checkpoint: Checkpoint | None, step: int, content: float | None = None) -> None:
    number = float(step if content is None else content)
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.values["number"]) == (step, number)
    assert torch.equal(checkpoint.tensors["model"]["weight"], torch.full((5, 3), number))
    assert torch.equal(checkpoint.tensors["optimizer"]["weight/m"], torch.full((5, 3), number))


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def seal(directory: Path) -> None:
    """Give a directory that was tampered with a manifest that agrees with it."""
    names = [entry.name for entry in directory.iterdir() if entry.name != MANIFEST]
    (directory / MANIFEST).write_bytes(encode_manifest(build_manifest(directory, step=7, names=names)))


# --- what is saved comes back ---


def test_tensors_of_every_dtype_and_layout_come_back_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    special = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    reals = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
    integers = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
    tensors: dict[str, Tensor] = {str(dtype): torch.cat([base.flatten(), special]).to(dtype) for dtype in reals}
    tensors |= {str(dtype): (10 * base).to(dtype) for dtype in integers}
    tensors |= {
        "complex": torch.complex(base, 2 * base),
        "conjugated view": torch.complex(base, 2 * base).conj(),
        "negated view": torch._neg_view(base),
        "transposed": base.t(),
        "slice": base[2:4, 1:],
        "expanded": base[:1].expand(6, 4),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "empty too": torch.empty(3, 0),
        "parameter": torch.nn.Parameter(base),
        "a name/with, any.thing äöü": base + 1,
    }
    path = save_checkpoint(tmp_path, step=0, tensors={"model": tensors, "nothing": {}}, values={}, keep=1)
    loaded = load_checkpoint(path).tensors
    assert loaded.keys() == {"model", "nothing"}
    assert loaded["model"].keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded["model"][name].dtype == tensor.dtype, name
        assert loaded["model"][name].shape == tensor.shape, name
        assert bits(loaded["model"][name]) == bits(tensor), name


def test_tied_tensors_come_back_under_each_of_their_names(tmp_path: Path) -> None:
    weight = torch.randn(4, 3)
    tied = {"wte": weight, "head": weight, "row": weight[1], "flat": weight.view(-1)}
    loaded = load_checkpoint(save_checkpoint(tmp_path, step=0, tensors={"model": tied}, values={}, keep=1))
    assert all(torch.equal(loaded.tensors["model"][name], tensor) for name, tensor in tied.items())


def test_values_come_back_with_their_types(tmp_path: Path) -> None:
    values = {
        "floats": [0.1, -0.0, 1e-320, 1.7976931348623157e308, float("inf"), 3.0],
        "integers": [0, -(2**63), 2**200],
        "texts": ["äöü", "\u2028", "", "\ud800"],
        "nested": {"": {"true": True, "none": None, "list": [[], {}]}},
        "nan": float("nan"),
    }
    loaded = load_checkpoint(save_checkpoint(tmp_path, step=0, tensors={}, values=values, keep=1)).values
    assert repr(loaded) == repr(values)


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ((1, 2), r"values\['x'\]\['y'\] is a tuple"),
        ({1: 2}, r"values\['x'\]\['y'\] has the key 1"),
        ([np.float64(1.0)], r"values\['x'\]\['y'\]\[0\] is a float64"),
        (torch.tensor(1.0), "is a Tensor"),
        (Path("x"), "is a PosixPath"),
    ],
)
def test_a_value_that_json_would_change_is_refused_by_its_place(tmp_path: Path, value: Any, where: str) -> None:
    with pytest.raises(ValueError, match=where):
        save_checkpoint(tmp_path, step=1, tensors={}, values={"x": {"y": value}}, keep=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tensor", [torch.ones(2).to_sparse(), torch.ones(2, dtype=torch.complex128), [1.0]])
def test_a_tensor_that_the_format_does_not_have_is_refused_by_name(tmp_path: Path, tensor: Any) -> None:
    with pytest.raises(ValueError, match=r"tensors\['model'\]\['w'\] is a"):
        save_checkpoint(tmp_path, step=1, tensors={"model": {"w": tensor}}, values={}, keep=1)


@pytest.mark.parametrize("name", ["../model", ".hidden", "", "a/b"])
def test_a_group_cannot_name_a_file_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="name of a file"):
        save_checkpoint(tmp_path, step=1, tensors={name: {}}, values={}, keep=1)


def test_whoever_may_read_one_file_may_read_all(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    assert len({(path / name).stat().st_mode for name in FILES}) == 1


# --- damage is found ---


@pytest.mark.fault(30, "bit flip in a checkpoint", "every one is found")
@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_found(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 7)
    data = (path / name).read_bytes()
    num_bits = 8 * len(data)
    sampled = np.random.default_rng(0).choice(num_bits, size=min(num_bits, 600), replace=False).tolist()
    for bit in {*sampled, *range(64), num_bits - 1}:
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        (path / name).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=name if name != MANIFEST else None):
            load_checkpoint(path)
    (path / name).write_bytes(data)
    assert_whole(load_checkpoint(path), 7)


@pytest.mark.fault(29, "truncated checkpoint", "passed over, told")
@pytest.mark.parametrize("name", FILES)
def test_every_truncation_and_extension_is_found(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 7)
    data = (path / name).read_bytes()
    for other in [*(data[:size] for size in range(len(data))), data + b"\n", data + data]:
        (path / name).write_bytes(other)
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(path)


def test_the_tensor_format_alone_would_load_a_flipped_bit(tmp_path: Path) -> None:
    """Why there is a manifest: if this fails, safetensors has got checksums of its own."""
    file = save(tmp_path, 7) / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert not torch.equal(load_file(file)["weight"], torch.full((5, 3), 7.0))


@pytest.mark.fault(31, "file or manifest missing", "as 29")
@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_makes_the_one_before_the_newest_valid(tmp_path: Path, name: str) -> None:
    save(tmp_path, 6)
    (save(tmp_path, 7) / name).unlink()
    checkpoint, rejected = newest_valid(tmp_path)
    assert_whole(checkpoint, 6)
    assert len(rejected) == 1
    assert "step_00000007" in rejected[0]
    assert name in rejected[0]


@pytest.mark.fault(31)
@pytest.mark.bad_input("no checkpoint to resume, or none that is valid")
def test_each_newer_checkpoint_is_rejected_with_its_reason(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    (tmp_path / "step_00000002" / "values.json").write_text("{}")
    shutil.rmtree(tmp_path / "step_00000003")
    (tmp_path / "step_00000003").mkdir()
    os.rename(tmp_path / "step_00000004", tmp_path / "step_00000009")
    (tmp_path / "step_00000010").write_text("a file")
    (tmp_path / "latest").write_text("step_00000099")
    shutil.copytree(tmp_path / "step_00000001", tmp_path / ".tmp-99-deadbeef")
    checkpoint, rejected = newest_valid(tmp_path)
    assert_whole(checkpoint, 1)
    reasons = ["step_00000010", "step_00000009 holds step 4", "step_00000003", "values.json has 2 bytes instead of"]
    assert [reason in text for reason, text in zip(reasons, rejected, strict=True)] == [True] * 4


def test_no_checkpoint_is_not_an_error(tmp_path: Path) -> None:
    assert newest_valid(tmp_path) == (None, [])
    assert newest_valid(tmp_path / "absent") == (None, [])


@pytest.mark.bad_input("a checkpoint of a newer format")
def test_a_newer_format_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    body = {**json.loads((path / MANIFEST).read_bytes()), "format": FORMAT + 1, "invented": "later"}
    (path / MANIFEST).write_text(json.dumps(body))
    with pytest.raises(CheckpointError, match=rf"format {FORMAT + 1}.* reads up to {FORMAT}.* upgrade largebatch"):
        load_checkpoint(path)


@pytest.mark.parametrize("body", [{"step": 7}, {"files": {"values.json": {}}}, {"step": 7, "files": {}}])
def test_a_sealed_manifest_without_step_or_values_is_refused(tmp_path: Path, body: dict[str, Any]) -> None:
    path = save(tmp_path, 7)
    (path / MANIFEST).write_bytes(encode_manifest({"format": FORMAT, **body}))
    with pytest.raises(CheckpointError, match=r"no step or no values\.json"):
        load_checkpoint(path)


def test_a_sealed_manifest_cannot_point_out_of_its_directory(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    (tmp_path / "secret").write_text("{}")
    body = build_manifest(path, step=7, names=["values.json", "../secret"])
    (path / MANIFEST).write_bytes(encode_manifest(body))
    with pytest.raises(CheckpointError, match="not the name of a file in it"):
        load_checkpoint(path)


# --- nothing is executed ---


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.fault(33, "pickle in a checkpoint", "refused, never executed")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("is_sealed", [True, False])
def test_a_pickle_in_place_of_a_file_is_refused_and_never_executed(tmp_path: Path, name: str, is_sealed: bool) -> None:
    canary = tmp_path / "canary"
    payload = pickle.dumps(Canary(canary))
    path = save(tmp_path, 7)
    (path / name).write_bytes(payload)
    if is_sealed and name != MANIFEST:
        seal(path)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not canary.exists()
    pickle.loads(payload).close()
    assert canary.exists(), "the payload would not have worked"


def test_no_source_of_the_package_names_pickle_or_torch_load() -> None:
    for file in Path(largebatch.records.checkpoint.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            assert not {"pickle", "marshal", "shelve", "dill"} & set(names), file
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in ("torch.load", "torch.save"), file


# --- the disk fails, the process dies ---


def deaths(monkeypatch: pytest.MonkeyPatch, save_it: Callable[[], Any], prepare: Callable[[], Any]) -> Iterator[int]:
    """Let `save_it` die at its first, second, ... change of the disk, until it survives."""
    for call in range(100):
        prepare()
        with monkeypatch.context() as patch:
            disk = FailingDisk(patch, call, None)
            with contextlib.suppress(Death):
                save_it()
        yield call
        if disk.failed is None:
            assert call > 10, "too few places to die at: the injection misses the code"
            return


@pytest.mark.fault(3)
def test_death_at_any_moment_leaves_the_new_checkpoint_whole_or_the_former_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare() -> None:
        shutil.rmtree(tmp_path)
        for step in (1, 2, 3):
            save(tmp_path, step)

    found = []
    for _ in deaths(monkeypatch, lambda: save(tmp_path, 4, keep=2), prepare):
        checkpoint, rejected = newest_valid(tmp_path)
        assert rejected == []
        for entry in tmp_path.glob("step_*"):
            load_checkpoint(entry)  # whatever has the name of a checkpoint is whole
        found.append(checkpoint.step if checkpoint else 0)
        assert_whole(checkpoint, found[-1])
        save(tmp_path, 5, keep=2)
        names = sorted(entry.name for entry in tmp_path.iterdir())
        assert len(names) == 2, "the next save removes what a crash left"
        assert_whole(newest_valid(tmp_path)[0], 5)
    assert sorted(found) == found, "once there, the new checkpoint stays"
    assert set(found) == {3, 4}


def test_death_while_a_step_is_replaced_leaves_one_of_both_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare() -> None:
        shutil.rmtree(tmp_path)
        save(tmp_path, 4, content=1.0)

    found = []
    for _ in deaths(monkeypatch, lambda: save(tmp_path, 4, content=2.0), prepare):
        checkpoint, _ = newest_valid(tmp_path)
        found.append(checkpoint.values["number"] if checkpoint else 0.0)
        assert_whole(checkpoint, 4, content=found[-1])
        save(tmp_path, 5)
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step_00000004", "step_00000005"]
        assert_whole(load_checkpoint(tmp_path / "step_00000004"), 4, content=found[-1])
    assert sorted(found) == found
    assert set(found) == {1.0, 2.0}


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to see which file a descriptor is of")
def test_all_is_forced_to_disk_the_manifest_last_before_the_name_is_given_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def record_fsync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def record_rename(source: Path, target: Path) -> None:
        events.append(f"rename to {target.name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    save(tmp_path, 7)
    assert events[3].startswith(MANIFEST)
    assert events[4].startswith(".tmp-7-")
    assert set(events[:3]) == set(FILES) - {MANIFEST}
    assert events[5:] == ["rename to step_00000007", tmp_path.name]


@pytest.mark.fault(26, "disk full at a checkpoint", "goes on or stops, bytes told, former intact")
def test_a_write_that_the_system_refuses_is_told_with_bytes_and_leaves_the_former(tmp_path: Path) -> None:
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(CheckpointError, match=r"step 2 cannot be written.* needs 400,0\d\d bytes; [\d,]+ are free"):
            save_checkpoint(tmp_path, step=2, tensors={"model": {"w": torch.ones(100_000)}}, values={}, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_00000001"]
    assert_whole(newest_valid(tmp_path)[0], 1)


@pytest.mark.fault(26)
@pytest.mark.bad_input("a disk without room for a checkpoint")
def test_a_disk_without_room_is_refused_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    monkeypatch.setattr(Path, "write_bytes", lambda *args: pytest.fail("it was written to"))
    with pytest.raises(CheckpointError, match=r"needs 400,0\d\d bytes; 1,000 are free") as error:
        save_checkpoint(tmp_path, step=2, tensors={"model": {"w": torch.ones(100_000)}}, values={}, keep=1)
    assert isinstance(error.value.__cause__, OSError)
    assert error.value.__cause__.errno == errno.ENOSPC


def test_a_file_system_that_does_not_tell_its_size_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 0))
    assert_whole(load_checkpoint(save(tmp_path, 2)), 2)


@pytest.mark.fault(28, "checkpoint folder cannot be made or vanishes", "as 26")
def test_a_folder_that_cannot_be_made_is_a_checkpoint_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(tmp_path / "file" / "checkpoints", 1)


# --- which checkpoints stay ---


def test_the_newest_ones_are_kept_and_the_one_just_written_always(tmp_path: Path) -> None:
    def steps() -> list[int]:
        return sorted(int(entry.name.removeprefix("step_")) for entry in tmp_path.iterdir())

    for step in (10, 20, 30, 40):
        save(tmp_path, step, keep=3)
    assert steps() == [20, 30, 40]
    save(tmp_path, 25, keep=2)
    assert steps() == [25, 40]
    save(tmp_path, 5, keep=1)
    assert steps() == [5]


def make_newer(path: Path) -> None:
    """As a version would have written it that this one does not know."""
    body = {**json.loads((path / MANIFEST).read_bytes()), "format": FORMAT + 1}
    (path / MANIFEST).write_text(json.dumps(body))


def make_unknown(path: Path) -> None:
    (path / MANIFEST).unlink()


def files_of(folder: Path, *names: str) -> dict[Path, bytes]:
    return {path: path.read_bytes() for name in names for path in (folder / name).iterdir()}


@pytest.mark.parametrize("spoil", [make_newer, make_unknown])
def test_what_another_version_wrote_is_neither_removed_nor_counted_nor_replaced(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    for step in (2, 7, 20):
        spoil(save(tmp_path, step))
    before = files_of(tmp_path, "step_00000002", "step_00000007", "step_00000020")
    for step in (5, 6, 7, 7):
        save(tmp_path, step, keep=2)
    assert files_of(tmp_path, "step_00000002", "step_00000007", "step_00000020") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step_00000002", "step_00000006", "step_00000007", "step_00000007-2", "step_00000020",
    ]  # fmt: skip
    checkpoint, rejected = newest_valid(tmp_path)
    assert_whole(checkpoint, 7)
    assert ["step_00000020" in reason for reason in rejected] == [True]
    os.rename(tmp_path / "step_00000007-2", tmp_path / ".old-7-deadbeef")  # as a kill leaves it while it is replaced
    assert_whole(newest_valid(tmp_path)[0], 7)
    save(tmp_path, 6)
    assert_whole(load_checkpoint(tmp_path / "step_00000007-2"), 7)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("name", [MANIFEST, "model.safetensors"])
def test_what_cannot_be_read_just_now_is_neither_removed_nor_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    for step in (2, 7):
        save(tmp_path, step)
    before = files_of(tmp_path, "step_00000002", "step_00000007")
    refused = [str(tmp_path / folder / name) for folder in ("step_00000002", "step_00000007")]

    def refusing(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(path: Any, *args: Any, **options: Any) -> Any:
            if str(path) in refused:
                raise OSError(number, os.strerror(number), str(path))
            return function(path, *args, **options)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refusing(os.open))
        patch.setattr(io, "open", refusing(io.open))
        assert newest_valid(tmp_path)[0] is None
        for step in (5, 6, 7):
            save(tmp_path, step, content=9, keep=1)
    assert files_of(tmp_path, "step_00000002", "step_00000007") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000007", "step_00000007-2"]


def test_damaged_ones_of_later_steps_do_not_push_older_ones_out(tmp_path: Path) -> None:
    """A run that passed them over begins again before them; what saves by the clock saves at other steps."""
    for step in (6, 9, 12):
        save(tmp_path, step)
    for step in (9, 12):
        (tmp_path / f"step_{step:08d}" / "model.safetensors").write_bytes(b"")
    save(tmp_path, 8, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step_{step:08d}" for step in (6, 8, 9, 12)]
    save(tmp_path, 13, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000012", "step_00000013"]


def test_a_folder_that_cannot_be_looked_into_is_not_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 3)

    def refuse(path: Path) -> Iterator[Path]:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(CheckpointError, match=r"Stale file handle.*cannot be seen"):
        newest_valid(tmp_path)


@pytest.mark.parametrize(("step", "keep"), [(-1, 1), (1, 0)])
def test_a_negative_step_or_keeping_none_is_refused(tmp_path: Path, step: int, keep: int) -> None:
    with pytest.raises(ValueError, match=f"step={step}, keep={keep}"):
        save(tmp_path, step, keep=keep)


def test_an_equal_checkpoint_is_left_as_it_is(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    before = path.stat().st_ino
    assert save(tmp_path, 7) == path
    assert path.stat().st_ino == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    (path / "model.safetensors").write_bytes(b"")
    save(tmp_path, 7)
    assert_whole(load_checkpoint(path), 7)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_steps_beyond_eight_digits_sort_by_number(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        save(tmp_path, step)
    assert_whole(newest_valid(tmp_path)[0], 100_000_000)


def test_a_path_without_a_folder_is_said_to_be_absent_and_not_incomplete(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    for name in ("step_00000010", "step_00000020"):
        (folder / name).mkdir(parents=True)
    (folder / "file").touch()
    beside = "has step_00000010 to step_00000020, 2 in all"
    for path, said in (
        (folder / "step_00000030", f"there is no such folder. {folder} {beside}"),
        (tmp_path / "run", "there is no such folder. Name the folder of a checkpoint or of a run"),
        (folder / "file", "is no folder, and a checkpoint is one"),
    ):
        for read in (find_valid, verify_checkpoint, position_of):
            with pytest.raises(CheckpointError, match=re.escape(f"{path}: {said}")):
                read(path)
    with pytest.raises(CheckpointError, match="incomplete"):
        find_valid(folder / "step_00000010")
