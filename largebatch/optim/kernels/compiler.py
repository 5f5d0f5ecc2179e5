"""The kernels of `kernels.c`, compiled on the machine that runs them, once for all processes."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.c")

FLAGS = (
    "-O3",
    "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native",
    # Not -ffast-math: NaN and inf must be preserved.
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp-simd",  # the pragmas for vectors, and no OpenMP
    "-shared",
    "-fPIC",
)

_REMEDY = "The kernels are compiled on the machine that runs them. Install gcc or clang, or set compile=False."
_TIMEOUT_S = 120


@functools.cache
def kernels() -> ctypes.CDLL:
    """The library, from the cache folder of the user if it is there.

    Its file is named by all that it depends on: source, flags, compiler and, since homes are shared, the processor. It
    ends with its own checksum. Where no folder can be written to, every process compiles its own.

    Raises:
        ValueError: if there is no compiler, or it fails.
    """
    compiler = _compiler()
    version = _output([*compiler, "--version"])
    parts = [SOURCE.read_bytes(), " ".join([*compiler, *FLAGS]).encode(), version.encode(), _processor().encode()]
    file = _cache_folder() / f"kernels-{hashlib.sha256(b''.join(map(_digest, parts))).hexdigest()[:32]}.so"
    try:
        if _is_ours(file):
            return ctypes.CDLL(str(file))
    except OSError:
        pass  # cannot be read or loaded: compiled anew below
    return _compiled(compiler, file)


def has_compiler() -> bool:
    """Whether a C compiler is available."""
    try:
        _compiler()
    except ValueError:
        return False
    return True


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _compiler() -> list[str]:
    """Words of the compiler command: the variable CC, else the first of cc, gcc and clang."""
    given = shlex.split(os.environ.get("CC", ""))
    for words in [given] if given else [["cc"], ["gcc"], ["clang"]]:
        if path := shutil.which(words[0]):
            return [path, *words[1:]]
    absent = f"CC={shlex.join(given)} is not" if given else "None of the C compilers cc, gcc and clang is"
    raise ValueError(f"{absent} on PATH. {_REMEDY}")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    features = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    return "\n".join([platform.machine(), platform.processor(), *sorted(features)])


def _cache_folder() -> Path:
    given = os.environ.get("XDG_CACHE_HOME", "")
    return Path(given if os.path.isabs(given) else os.path.expanduser("~/.cache"), "largebatch")


def _is_ours(file: Path) -> bool:
    """Whether the file is complete, and only this user could have written it."""
    if not file.exists():
        return False
    for path in (file, file.parent):
        status = path.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            return False
    data = file.read_bytes()
    return data[-32:] == _digest(data[:-32])


def _compiled(compiler: list[str], file: Path) -> ctypes.CDLL:
    """Compile in a temporary folder, move the library to `file` if that is possible, load it."""
    try:
        with tempfile.TemporaryDirectory(prefix="largebatch-") as folder:
            made = Path(folder, "kernels.so")
            _output([*compiler, *FLAGS, "-o", str(made), str(SOURCE), "-lm"])
            data = made.read_bytes()
            made.write_bytes(data + _digest(data))  # a loader reads what the headers name, not what follows
            try:
                _store(made, file)
                return ctypes.CDLL(str(file))
            except OSError:  # read-only, full, another user's, or nothing may be executed there
                return ctypes.CDLL(str(made))  # stays loaded without its file
    except OSError as error:
        raise ValueError(f"The kernels cannot be written or loaded ({error}). {_REMEDY}") from error


def _store(made: Path, file: Path) -> None:
    """Under a name of its own first: several processes start at once, and each sees a whole file or none."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, new = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as copy:  # not forced to the disk: a loss of power shows in the digest
            copy.write(made.read_bytes())
        os.replace(new, file)
    except BaseException:
        os.unlink(new)
        raise
    if not _is_ours(file):
        raise PermissionError(f"{file.parent} belongs to others, or others may write to it")


def _output(command: list[str]) -> str:
    """The output of the command; ValueError with its last lines if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"{shlex.join(command)}: {error}. {_REMEDY}") from error
    if done.returncode != 0:
        last = " | ".join(line.strip() for line in (done.stdout + done.stderr).strip().splitlines()[-3:])
        raise ValueError(f"{shlex.join(command)} ended with {done.returncode}: {last}. {_REMEDY}")
    return done.stdout
