"""The house: imports go downward only, heavy libraries stay where they belong, files and functions stay small."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.quick

PACKAGE = Path(__file__).resolve().parents[2] / "largebatch"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# The rooms, from the ground up: a file imports from its own room and from rooms above it in this list.
ROOMS = (
    "batch", "optim", "losses", "distributed", "models", "data", "gradient", "diagnostics", "integrations", "records",
    "training", "run", "experiments", "cli",
)  # fmt: skip
FLOOR = {room: number for number, room in enumerate(ROOMS)}
OMEGACONF_READS = {"records.report.run_files": {"omegaconf"}}  # config.yaml, as the run has written it
# Arithmetic and files: these start in milliseconds, so that a verb that reads a record, or a plan, needs no torch.
LIGHT = (
    "batch.", "diagnostics.closed_forms.", "diagnostics.smoothing", "distributed.host_memory", "gradient.pairwise_sum",
    "records.credentials.", "records.durable_files", "records.ledger", "records.line_file",
    "records.regular_files",
)  # fmt: skip
# The job, and a loop of accelerate's that ours is timed against.
ACCELERATE_READS = {"distributed.runtime", "experiments.bench.rival_loops"}
HEAVY = {"torch", "accelerate", "hydra", "omegaconf", "wandb", "matplotlib", "sklearn", "datasets", "transformers"}
MAX_FILE_LINES = 260
MAX_FUNCTION_LINES = 45

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree(path)))


def room(module: str) -> str:
    return [*module.split("."), ""][1]


@functools.cache
def imported(module: str, path: Path) -> set[str]:
    """Dotted names of everything that a module imports, at the top or inside a function."""
    names: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: import by the full name"
            source = node.module or ""
            # `from largebatch import order` names a room, `from largebatch.batch.order import X` does not.
            modules = {f"{source}.{alias.name}" for alias in node.names} & MODULES.keys()
            names |= modules or {source}
    return names


def imported_rooms(module: str, path: Path) -> set[str]:
    ours = {name for name in imported(module, path) if name.split(".")[0] == "largebatch"}
    return {room(name) for name in ours} - {"", room(module)}


def function_lines(node: FunctionNode) -> int:
    """Lines from `def` to the end, without the docstring."""
    assert node.end_lineno is not None
    first = node.body[0]
    has_docstring = ast.get_docstring(node, clean=False) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if has_docstring else 0
    return node.end_lineno - node.lineno + 1 - docstring


def of_every_module(problem: Callable[[str, Path], Any]) -> dict[str, Any]:
    """What `problem` finds, by module. One test for all: two thousand of them cost more than what they look at."""
    return {module: found for module, path in MODULES.items() if (found := problem(module, path))}


def test_the_package_has_fourteen_rooms_and_nothing_beside_them():
    assert {room(module) for module in MODULES} == {"", *ROOMS, "__main__"}


def test_imports_go_downward_only():
    def upward(module: str, path: Path) -> set[str]:
        own = room(module)
        return {other for other in (imported_rooms(module, path) if own in FLOOR else ()) if FLOOR[other] > FLOOR[own]}

    assert of_every_module(upward) == {}


def test_no_room_has_a_circle():
    """Inside a room, too, files import each other downward: take away what imports nothing until nothing is left.

    The package itself stands below all: what it offers is imported when it is used.
    """
    below = MODULES.keys() - {"largebatch"}
    edges = {module: imported(module, MODULES[module]) & below for module in below}
    while free := {module for module, needed in edges.items() if not needed}:
        edges = {module: needed - free for module, needed in edges.items() if module not in free}
    assert not edges, f"imports in a circle: {edges}"


def test_heavy_libraries_stay_in_their_rooms():
    """Arithmetic needs numpy at most, only the runtime imports accelerate, only the upper rooms know Hydra."""

    def strangers(module: str, path: Path) -> set[str]:
        libraries = {name.split(".")[0] for name in imported(module, path)} & HEAVY
        name = module.removeprefix("largebatch.")
        forbidden = set() if name in ACCELERATE_READS else {"accelerate"}
        if room(module) in FLOOR and FLOOR[room(module)] < FLOOR["run"]:
            forbidden |= {"hydra", "omegaconf"} - OMEGACONF_READS.get(name, set())
        return libraries & (HEAVY if f"{name}.".startswith(LIGHT) or name in LIGHT else forbidden)

    assert of_every_module(strangers) == {}


def test_a_run_waits_for_no_import_of_the_report_or_of_scipy():
    left, found = ["largebatch.run.forecast.forecast"], set[str]()
    while left:
        if (module := left.pop()) not in found:
            found.add(module)
            left += [module.rpartition(".")[0], *_imported_at_once(module)]
    assert {"largebatch.run.prepare", "numpy"} <= found
    assert [one for one in found if one.startswith(("largebatch.records.report", "scipy.special", "plotly"))] == []


def _imported_at_once(module: str) -> Iterator[str]:
    """By what stands at the top of its file."""
    for one in tree(MODULES[module]).body if module in MODULES else ():
        if isinstance(one, ast.Import):
            yield from (alias.name for alias in one.names)
        elif isinstance(one, ast.ImportFrom):
            yield from (str(one.module), *(f"{one.module}.{alias.name}" for alias in one.names))


def test_a_file_can_be_read_in_one_go():
    lines = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    assert {module: count for module, count in lines.items() if count > MAX_FILE_LINES} == {}


def test_a_function_fits_on_a_screen():
    def long(module: str, path: Path) -> dict[str, int]:
        functions = [node for node in nodes(path) if isinstance(node, FunctionNode)]
        return {node.name: lines for node in functions if (lines := function_lines(node)) > MAX_FUNCTION_LINES}

    assert of_every_module(long) == {}


def test_a_name_says_what_is_inside():
    drawers = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}
    assert of_every_module(lambda module, _: set(module.split(".")) & drawers) == {}


def test_annotations_are_postponed_and_public_things_documented():
    def missing(module: str, path: Path) -> list[str]:
        body = tree(path).body
        if not body or path.name == "__init__.py":
            return []
        futures = [node for node in body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
        postponed = any(alias.name == "annotations" for node in futures for alias in node.names)
        public = [node for node in body if isinstance(node, (ast.ClassDef, *FunctionNode.__args__))]
        silent = [node.name for node in public if not node.name.startswith("_") and not ast.get_docstring(node)]
        return silent if postponed else ["from __future__ import annotations", *silent]

    assert of_every_module(missing) == {}


@pytest.mark.fault(57, "clock jumps", "durations are monotonic")
def test_durations_are_never_taken_from_the_wall_clock():
    """It jumps; dates come from strftime."""

    def clocks(module: str, path: Path) -> set[str]:
        attributes = [node for node in nodes(path) if isinstance(node, ast.Attribute) and node.attr.startswith("time")]
        return {"time.time", "time.time_ns"} & {ast.unparse(node) for node in attributes}

    assert of_every_module(clocks) == {}


# Who writes besides the mechanism: a lock, folders that are renamed as a whole, a place that is tried and removed,
# files of a temporary folder, and the screen of nobody.
WRITERS = {
    "records.durable_files": {"os.open", "os.write", "os.replace"},
    "records.checkpoint.step_folders": {"os.rename", "os.open"},
    "records.checkpoint.writing": {"save_file"},
    "records.folder_lock": {"os.pwrite", "os.ftruncate"},
    "records.line_file": {"os.open", "os.ftruncate"},
    "run.doctor.machine": {"open", "os.rename"},
    "optim.kernels.compiler": {"write_bytes", "mkstemp", "os.replace"},
    "experiments.verify.ranks": {"save_file"},
    "cli.checkpoint": {"save_file"},
    "records.regular_files": {"os.open"},
    "records.run_folder": {"os.open"},
    "cli.process.surroundings": {"open"},
    "records.figures.draw_png": {"savefig"},
}
WRITING_CALLS = {
    "write_text", "write_bytes", "savefig", "to_csv", "to_parquet", "save_file", "FileIO", "mkstemp", "copyfile",
    "NamedTemporaryFile", "copy2", "copytree", "symlink_to", "hardlink_to", "touch", "json.dump", "np.save", "np.savez",
    "np.savetxt", "torch.save", "pickle.dump", "shutil.move", "os.open", "os.write", "os.pwrite", "os.replace",
    "os.rename", "os.ftruncate", "os.link", "os.symlink",
}  # fmt: skip


WRITING_NAMES = {"open", "rename"} | {call.rpartition(".")[2] for call in WRITING_CALLS}


def written_by(node: ast.AST) -> str | None:
    """The call of `node`, if it writes a file or moves one."""
    name = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
    if name not in WRITING_NAMES:
        return None
    assert isinstance(node, ast.Call)
    full = ast.unparse(node.func)
    if name == "open" and full not in ("os.open", "records.open", "Runtime.open"):
        texts = [one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        return "open" if any(set(text) <= set("rwaxbt+") and set(text) & set("wax+") for text in texts) else None
    if name == "rename" and full != "os.rename":
        return name
    return full if full in WRITING_CALLS else name if name in WRITING_CALLS else None


def test_only_the_mechanism_writes():
    """All else hands its content to `durable_files` or `line_file`: no other file is half there after a crash."""

    def calls(module: str, path: Path) -> set[str]:
        return {call for node in nodes(path) if (call := written_by(node))}

    found = of_every_module(calls)
    assert {module.removeprefix("largebatch."): names for module, names in found.items()} == WRITERS


def _texts_without_encoding(of_file: Iterable[ast.AST]) -> Iterator[int]:
    """Lines that read or write a text as the locale says it is written."""
    for node in of_file:
        if not isinstance(node, ast.Call) or "encoding" in {keyword.arg for keyword in node.keywords}:
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = getattr(getattr(node.func, "value", None), "id", "")
        opens = name == "open" and owner not in ("os", "pil", "records", "Runtime", "ImaginedRuntime")
        is_bytes = any(isinstance(one, ast.Constant) and "b" in str(one.value) for one in node.args)
        if name in ("read_text", "write_text") or (opens and not is_bytes):
            yield node.lineno


def test_every_text_is_read_and_written_as_utf_8():
    """In the POSIX locale, and on other systems, a text without encoding is ASCII or whatever is usual there."""
    found = [f"{path}:{line}" for path in MODULES.values() for line in _texts_without_encoding(nodes(path))]
    assert found == []
