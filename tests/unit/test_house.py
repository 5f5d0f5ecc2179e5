"""The house: imports go downward only, heavy libraries stay where they belong, files and functions stay small."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

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
    },
    {"optim", "diagnostics", "models", "losses", "coupled_losses", "fingerprint", "flat_gradients", "kept_buffers"},
    {
        "process_group",
        "runtime",
        "gradients",
        "reduction_clock",
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
        "stages",
        "derive",
        "combinations",
        "plan_report",
        "targets",
        "report",
        "run_report",
        "preconditions",
        "observer_checks",
        "model_size",
        "trial",
        "resume",
        "same_run",
        "prepare",
        "verification",
        "study",
        "observing",
        "build",
        "quiet_training",
        "doctor",
        "credentials",
        "chapter",
        "commands",
        "__main__",
    },
)
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
# Inside a level rooms do not know each other, but for these. Level 4 is the wiring: only a cycle is wrong there.
SAME_LEVEL = {
    ("order", "keyed"),
    ("runtime", "process_group"),
    ("gradients", "runtime"),
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


def room(module: str) -> str:
    return [*module.split("."), ""][1]


@functools.cache
def imported(module: str, path: Path) -> set[str]:
    """Dotted names of everything that a module imports, at the top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(tree(path)):
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


every_module = pytest.mark.parametrize(("module", "path"), MODULES.items(), ids=MODULES)


def test_every_room_has_a_level():
    assert {room(module) for module in MODULES} - {""} == set(LEVEL)


@pytest.mark.parametrize(("module", "path"), {name: path for name, path in MODULES.items() if room(name)}.items())
def test_imports_go_downward_only(module: str, path: Path):
    own = room(module)
    upward = {
        other
        for other in imported_rooms(module, path)
        if LEVEL[other] > LEVEL[own]
        or (LEVEL[other] == LEVEL[own] < len(LEVELS) - 1 and (own, other) not in SAME_LEVEL)
    }
    assert not upward, f"{module} (level {LEVEL[own]}) imports {upward}"


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


@every_module
def test_heavy_libraries_stay_in_their_rooms(module: str, path: Path):
    libraries = {name.split(".")[0] for name in imported(module, path)} & HEAVY
    own = room(module)
    if own and LEVEL[own] == 0:
        assert not libraries, "arithmetic needs numpy at most"
    if own != "runtime":
        assert "accelerate" not in libraries, "only runtime.py imports accelerate"
    if own and LEVEL[own] < 4:
        assert not libraries & {"hydra", "omegaconf"}, "only level 4 knows Hydra"


@every_module
def test_a_file_can_be_read_in_one_go(module: str, path: Path):
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES


@every_module
def test_a_function_fits_on_a_screen(module: str, path: Path):
    functions = [node for node in ast.walk(tree(path)) if isinstance(node, FunctionNode)]
    long = {node.name: function_lines(node) for node in functions if function_lines(node) > MAX_FUNCTION_LINES}
    assert not long, f"longer than {MAX_FUNCTION_LINES} lines: {long}"


@every_module
def test_a_name_says_what_is_inside(module: str, path: Path):
    assert not set(module.split(".")) & {"utils", "util", "helpers", "helper", "manager", "common", "misc"}


@every_module
def test_annotations_are_postponed_and_public_things_documented(module: str, path: Path):
    parsed = tree(path)
    if not parsed.body or path.name == "__init__.py":
        return
    futures = [node for node in parsed.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    assert any(alias.name == "annotations" for node in futures for alias in node.names)
    public = [node for node in parsed.body if isinstance(node, (ast.ClassDef, *FunctionNode.__args__))]
    silent = [node.name for node in public if not node.name.startswith("_") and not ast.get_docstring(node)]
    assert not silent, f"no docstring: {silent}"


@every_module
def test_durations_are_never_taken_from_the_wall_clock(module: str, path: Path):
    """It jumps; dates come from strftime."""
    calls = [ast.unparse(node) for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)]
    assert not {"time.time", "time.time_ns"} & set(calls), module
