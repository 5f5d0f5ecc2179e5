"""The compiler of kernels.c: once per machine and user, private, and refused with the remedy where it cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from largebatch.optim import LAMB
from largebatch.optim.kernels import compiler
from tests.unit.optim.forms import both, make_params


@pytest.fixture(scope="module", autouse=True)
def needs_a_compiler():
    if not compiler.has_compiler():
        message = "there is no C compiler: cc, gcc or clang"
        if os.environ.get("LARGEBATCH_TEST_ORACLES") == "required":
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A machine on which nothing was compiled yet: an empty cache folder; returns `again`.

    One function of one line stands for the kernels, since each compilation of all of them takes a second.
    """
    source = tmp_path / "kernels.c"
    source.write_text("int lamb_float(void) { return 7; }\n")
    monkeypatch.setattr(compiler, "SOURCE", source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    commands: list[list[str]] = []
    original = compiler._output
    monkeypatch.setattr(compiler, "_output", lambda command: (commands.append(command), original(command))[1])

    def again() -> int:
        """Load as a new process does; how often that compiled."""
        compiler.kernels.cache_clear()
        commands.clear()
        assert compiler.kernels().lamb_float() == 7
        return sum("-shared" in command for command in commands)

    yield again
    compiler.kernels.cache_clear()


def test_it_compiles_once_and_is_private(fresh, tmp_path):
    assert fresh() == 1
    assert fresh() == 0
    assert (tmp_path / "largebatch").stat().st_mode & 0o777 == 0o700
    assert [file.suffix for file in (tmp_path / "largebatch").iterdir()] == [".so"]


def test_another_source_flag_or_processor_has_a_file_of_its_own(fresh, tmp_path, monkeypatch):
    fresh()
    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-g"))
    assert fresh() == 1
    monkeypatch.setattr(compiler, "_processor", lambda: "another one")
    assert fresh() == 1
    (tmp_path / "kernels.c").write_text(compiler.SOURCE.read_text() + "/* changed */\n")
    assert fresh() == 1
    assert len(list((tmp_path / "largebatch").iterdir())) == 4


@pytest.mark.parametrize("damage", ["cut", "empty", "one bit", "another library", "not private"])
def test_a_file_that_is_not_what_was_written_is_compiled_anew(fresh, tmp_path, damage):
    fresh()
    (file,) = (tmp_path / "largebatch").iterdir()
    data = file.read_bytes()
    other = Path(torch._C.__file__).read_bytes()
    bit = data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]
    content = {"cut": data[:3000], "empty": b"", "one bit": bit, "another library": other}.get(damage, data)
    file.unlink()
    file.write_bytes(content)
    file.chmod(0o777 if damage == "not private" else 0o700)
    assert fresh() == 1
    assert file.read_bytes()[-32:] == compiler._digest(file.read_bytes()[:-32])
    assert fresh() == 0


@pytest.mark.parametrize("home", ["a file", "of others"])
def test_a_cache_folder_that_cannot_be_used_costs_a_compilation_and_no_error(fresh, tmp_path, home):
    if home == "a file":
        (tmp_path / "largebatch").write_text("")
    else:
        (tmp_path / "largebatch").mkdir()
        (tmp_path / "largebatch").chmod(0o777)
    assert fresh() == 1
    assert fresh() == 1


def test_two_processes_may_compile_at_once(tmp_path):
    program = (  # the module alone: it needs no torch
        "import importlib.util as u; from sys import argv; spec = u.spec_from_file_location('compiler', argv[1]); "
        "compiler = u.module_from_spec(spec); spec.loader.exec_module(compiler); "
        "print(type(compiler.kernels()).__name__)"
    )
    environ = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, compiler.__file__], env=environ, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in started] == 2 * ["CDLL"]
    assert [file.suffix for file in (tmp_path / "largebatch").iterdir()] == [".so"]


@both
def test_without_a_compiler_the_constructor_says_what_to_do(optimizer_class, fresh, monkeypatch, tmp_path):
    compiler.kernels.cache_clear()
    monkeypatch.setenv("CC", "no-such-cc -O1")
    with pytest.raises(
        ValueError, match=r"no-such-cc -O1.* not on PATH\. .*Install gcc or clang, or set compile=False"
    ):
        optimizer_class(make_params(), lr=0.1, compile=True)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"cc, gcc and clang is on PATH\. .*Install gcc or clang, or set compile=False"
    ):
        optimizer_class([{"params": make_params(), "compile": True}], lr=0.1)
    assert not compiler.has_compiler()
    optimizer_class(make_params(), lr=0.1)


def test_a_compiler_that_fails_is_quoted(fresh, monkeypatch):
    compiler.kernels.cache_clear()
    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-include", "no_such_file.h"))
    with pytest.raises(ValueError, match=r"^compile=True: .*cc .*ended with 1: .*no_such_file.h: .*Install gcc"):
        LAMB(make_params(), lr=0.1, compile=True)
