"""The house: imports go downward only, heavy libraries stay where they belong, files and functions stay small."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[2] / "largebatch"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# A room is a module or a package directly under `largebatch`.
LEVELS = (
    {
        "batch",
        "ramp",
        "scaling",
        "schedule",
        "duration",
        "keyed",
        "order",
        "pairwise",
        "ledger",
        "closed_forms",
        "smoothing",
        "machine_memory",
        "durable_files",
        "line_file",
        "regular_files",
        "conf_folder",
        "credentials",
    },
    {
        "optim",
        "diagnostics",
        "models",
        "losses",
        "coupled_losses",
        "fingerprint",
        "flat_gradients",
        "kept_buffers",
        "modes",
        "generators",
        "step_buffers",
        "gradient_choices",
        "pending_sum",
        "raised",
    },
    {
        "process_group",
        "runtime",
        "gradients",
        "reduction_clock",
        "bucket_order",
        "skipped_parameters",
        "coupled_gradients",
        "running_statistics",
        "ordered_reduction",
        "lockstep",
        "exact_batch_norm",
        "exact_gradients",
        "global_gradient",
        "memory_shortage",
        "micro_batch_norms",
        "batch_split",
        "undisturbed",
        "recomputation",
        "lr_range_test",
        "rank_values",
        "lost_ranks",
        "sharpness",
        "gradient_variance",
        "communication",
        "gap_conditions",
        "data",
        "checkpoint",
        "trackers",
        "launcher",
        "interruption",
        "leaving",
        "surroundings",
        "run_folder",
        "local_ranks",
        "folder_lock",
    },
    {"loop", "agreement", "batch_stream", "guard", "step_report", "observers"},
    {
        "config",
        "schema",
        "observers_schema",
        "measure_schema",
        "find_lr_schema",
        "range_findings",
        "range_runs",
        "measured_weights",
        "finding",
        "config_types",
        "nearest",
        "stages",
        "derive",
        "data_sets",
        "combinations",
        "plan_report",
        "targets",
        "named_loss",
        "report",
        "run_report",
        "preconditions",
        "failures",
        "observer_checks",
        "model_size",
        "trial",
        "resume",
        "same_run",
        "initial_state",
        "prepare",
        "verification",
        "study",
        "preloaded",
        "observing",
        "build",
        "quiet_training",
        "doctor",
        "environment",
        "chapter",
        "commands",
        "__main__",
    },
)
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
# Inside a level rooms do not know each other, but for these. Level 4 is the wiring: only a cycle is wrong there.
SAME_LEVEL = {
    ("order", "keyed"),
    ("line_file", "durable_files"),
    ("credentials", "conf_folder"),
    ("durable_files", "regular_files"),
    ("losses", "modes"),
    ("data", "interruption"),
    ("leaving", "interruption"),
    ("local_ranks", "interruption"),
    ("surroundings", "leaving"),
    ("runtime", "process_group"),
    ("gradients", "runtime"),
    ("skipped_parameters", "runtime"),
    ("global_gradient", "skipped_parameters"),
    ("coupled_gradients", "skipped_parameters"),
    ("gradients", "skipped_parameters"),
    ("bucket_order", "reduction_clock"),
    ("global_gradient", "bucket_order"),
    ("gradients", "reduction_clock"),
    ("reduction_clock", "runtime"),
    ("coupled_gradients", "reduction_clock"),
    ("exact_gradients", "reduction_clock"),
    ("global_gradient", "reduction_clock"),
    ("communication", "global_gradient"),
    ("communication", "gradients"),
    ("communication", "rank_values"),
    ("communication", "reduction_clock"),
    ("communication", "runtime"),
    ("running_statistics", "runtime"),
    ("running_statistics", "rank_values"),
    ("ordered_reduction", "runtime"),
    ("rank_values", "runtime"),
    ("lost_ranks", "process_group"),
    ("lost_ranks", "runtime"),
    ("gradients", "ordered_reduction"),
    ("coupled_gradients", "gradients"),
    ("coupled_gradients", "ordered_reduction"),
    ("coupled_gradients", "runtime"),
    ("ramp", "batch"),
    ("exact_batch_norm", "lockstep"),
    ("exact_batch_norm", "runtime"),
    ("exact_gradients", "coupled_gradients"),
    ("exact_gradients", "exact_batch_norm"),
    ("exact_gradients", "gradients"),
    ("exact_gradients", "runtime"),
    ("global_gradient", "coupled_gradients"),
    ("global_gradient", "exact_batch_norm"),
    ("global_gradient", "exact_gradients"),
    ("global_gradient", "gradients"),
    ("global_gradient", "ordered_reduction"),
    ("global_gradient", "running_statistics"),
    ("global_gradient", "runtime"),
    ("global_gradient", "micro_batch_norms"),
    ("micro_batch_norms", "runtime"),
    ("batch_split", "gradients"),
    ("batch_split", "micro_batch_norms"),
    ("batch_split", "runtime"),
    ("batch_split", "undisturbed"),
    ("global_gradient", "batch_split"),
    ("global_gradient", "recomputation"),
    ("recomputation", "gradients"),
    ("recomputation", "rank_values"),
    ("recomputation", "runtime"),
    ("recomputation", "undisturbed"),
    ("lr_range_test", "undisturbed"),
    ("sharpness", "undisturbed"),
    ("sharpness", "data"),
    ("sharpness", "gradients"),
    ("sharpness", "runtime"),
    ("gradient_variance", "gradients"),
    ("gradient_variance", "runtime"),
    ("gradient_variance", "sharpness"),
    ("gap_conditions", "data"),
    ("gap_conditions", "gradients"),
    ("gap_conditions", "runtime"),
    ("gap_conditions", "sharpness"),
    ("global_gradient", "memory_shortage"),
    ("memory_shortage", "gradients"),
    ("memory_shortage", "ordered_reduction"),
    ("memory_shortage", "rank_values"),
    ("memory_shortage", "reduction_clock"),
    ("memory_shortage", "runtime"),
    ("observers", "batch_stream"),
    ("observers", "loop"),
    ("loop", "batch_stream"),
    ("loop", "agreement"),
    ("loop", "guard"),
    ("loop", "step_report"),
    ("step_report", "agreement"),
    ("step_report", "guard"),
}
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
            # `from largebatch import order` names a room, `from largebatch.order import X` does not.
            names |= {f"{source}.{alias.name}" for alias in node.names} if source == "largebatch" else {source}
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


def test_every_room_has_a_level():
    assert {room(module) for module in MODULES} - {""} == set(LEVEL)


def test_imports_go_downward_only():
    def upward(module: str, path: Path) -> set[str]:
        own = room(module)
        return {
            other
            for other in (imported_rooms(module, path) if own else ())
            if LEVEL[other] > LEVEL[own]
            or (LEVEL[other] == LEVEL[own] < len(LEVELS) - 1 and (own, other) not in SAME_LEVEL)
        }

    assert of_every_module(upward) == {}


def test_the_wiring_has_no_cycle():
    edges: dict[str, set[str]] = {name: set() for name in LEVELS[-1]}
    for module, path in MODULES.items():
        if room(module) in edges:
            edges[room(module)] |= imported_rooms(module, path) & LEVELS[-1]
    while free := {name for name, needed in edges.items() if not needed}:
        edges = {name: needed - free for name, needed in edges.items() if name not in free}
    assert not edges, f"imports in a circle: {edges}"


def test_the_listed_edges_inside_a_level_are_all_needed():
    found = {(room(module), other) for module, path in MODULES.items() for other in imported_rooms(module, path)}
    assert found >= SAME_LEVEL


def test_heavy_libraries_stay_in_their_rooms():
    """Arithmetic needs numpy at most, only runtime.py imports accelerate, only level 4 knows Hydra."""

    def strangers(module: str, path: Path) -> set[str]:
        libraries = {name.split(".")[0] for name in imported(module, path)} & HEAVY
        own = room(module)
        forbidden = set() if own == "runtime" else {"accelerate"}
        if own and LEVEL[own] < 4:
            forbidden |= {"hydra", "omegaconf"}
        return libraries & (HEAVY if own and LEVEL[own] == 0 else forbidden)

    assert of_every_module(strangers) == {}


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


def test_durations_are_never_taken_from_the_wall_clock():
    """It jumps; dates come from strftime."""

    def clocks(module: str, path: Path) -> set[str]:
        attributes = [node for node in nodes(path) if isinstance(node, ast.Attribute) and node.attr.startswith("time")]
        return {"time.time", "time.time_ns"} & {ast.unparse(node) for node in attributes}

    assert of_every_module(clocks) == {}


# Who writes besides the mechanism: a lock, folders that are renamed as a whole, a place that is tried and removed,
# files of a temporary folder, and the screen of nobody.
WRITERS = {
    "durable_files": {"os.open", "os.write", "os.replace"},
    "checkpoint.places": {"os.rename", "os.open"},
    "checkpoint.writing": {"save_file"},
    "folder_lock": {"os.pwrite", "os.ftruncate"},
    "line_file": {"os.open", "os.ftruncate"},
    "doctor.machine": {"open", "os.rename"},
    "optim.compiler": {"write_bytes", "mkstemp", "os.replace"},
    "verification.ranks": {"save_file"},
    "commands.checkpoint": {"save_file"},
    "regular_files": {"os.open"},
    "run_folder": {"os.open"},
    "surroundings": {"open"},
    "trackers.drawing": {"savefig"},
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
        opens = name == "open" and owner not in ("os", "pil", "records", "Runtime")
        is_bytes = any(isinstance(one, ast.Constant) and "b" in str(one.value) for one in node.args)
        if name in ("read_text", "write_text") or (opens and not is_bytes):
            yield node.lineno


def test_every_text_is_read_and_written_as_utf_8():
    """In the POSIX locale, and on other systems, a text without encoding is ASCII or whatever is usual there."""
    found = [f"{path}:{line}" for path in MODULES.values() for line in _texts_without_encoding(nodes(path))]
    assert found == []
