"""A result: sentences, tables, figures and numbers. Every verb that measures, compares or teaches writes one.

`Result.record()` is its JSON. `read_result` reads it without trusting it; from files of earlier versions it takes
sentences, figures and single numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from largebatch.records.figures.figure import Figure, from_record
from largebatch.records.json_values import json_values
from largebatch.records.regular_files import printable

# File -> its kind, and the keys that tell a file of an earlier version from somebody else's file of that name.
FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "study.json": ("study", ("points",)),
    "find_lr.json": ("find_lr", ("lr",)),
    "find_micro.json": ("find_micro", ("tries",)),
    "large_batch_gap.json": ("comparison", ("large_batch_gap",)),
    "variance.json": ("variance", ("noise", "with_replacement")),
    "gap.json": ("gap", ("parts", "train_loss")),
    "attribution.json": ("attribution", ("parts", "total")),
    "communication.json": ("communication", ("medians", "fit")),
    "sharpness.json": ("sharpness", ("lambda_max",)),
    "critical_batch.json": ("critical_batch", ("b_crit",)),
    "verify.json": ("verify", ("cases", "causes")),
    "scaling.json": ("scaling", ("found", "broken")),
    "textbook.json": ("textbook", ("title",)),
    "chapter.json": ("textbook", ("title",)),  # of before
    "atlas.json": ("atlas", ("title",)),
    "advice.json": ("advice", ("sentences",)),
}
_OF_RESULT = ("title", "question", "sentences", "tables", "figures", "runs", "numbers")
_ABOUT = {"kind", "name", "config", "settings", "environment", "answer", "conclusions", *_OF_RESULT}
_MOST_LETTERS, _MOST_PARTS, _MOST_ROWS, _MOST_COLUMNS, _MOST_RUNS = 4_000, 200, 5_000, 50, 20_000
_MOST_SHOWN = 80  # letters of a wrong value
_EARLIER = "single numbers of a file by an earlier version; run the command again to have its tables"
_SENTENCE_END = re.compile(r"(?<=\.)\s+(?=[A-Z])")
_MOST_EARLIER, _MOST_DEPTH = 40, 3  # numbers of an earlier version that are shown, and how deep they lie


@dataclass(frozen=True)
class Table:
    """Cells as shown.

    Attributes:
        title: names the rows.
        headers: of the columns.
        rows: as many cells as there are headers.

    Raises:
        ValueError: if a row is shorter or longer than the headers.
    """

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        if odd := {len(row) for row in self.rows} - {len(self.headers)}:
            raise ValueError(f"table {self.title!r}: rows of {sorted(odd)} cells under {len(self.headers)} headers.")


@dataclass(frozen=True)
class Result:
    """A finding, for people and for programs.

    Attributes:
        title: the quantity: the same for all results of its kind, so that a page shows them together.
        sentences: the conclusions; the first one is the claim, and can be read alone.
        tables: in their order; their titles name weights, data and precision.
        figures: in their order.
        numbers: for programs; NaN and infinity become None.
        question: the one that it answers, where the title does not name it.
        runs: folders of the runs behind it, relative to the file.
        picture: name of one PNG with all figures; empty: one for each.
        heading: above the pictures, with weights and data; empty: the title.
    """

    title: str
    sentences: Sequence[str]
    tables: Sequence[Table]
    figures: Sequence[Figure]
    numbers: Mapping[str, Any] = field(default_factory=dict)
    question: str = ""
    runs: Sequence[str] = ()
    picture: str = ""
    heading: str = ""

    def record(self) -> dict[str, Any]:
        """Ready for JSON.

        >>> Result("A title", ["So it is."], (), (), {"loss": float("inf")}).record()["numbers"]
        {'loss': None}
        """
        return {
            "title": self.title,
            "question": self.question,
            "sentences": list(self.sentences),
            "tables": [json_values(asdict(table)) for table in self.tables],
            "figures": [figure.record() for figure in self.figures],
            "runs": list(self.runs),
            "numbers": json_values(self.numbers),
        }


def read_result(file: str, record: Mapping[str, Any]) -> Result:
    """The result in a file of that name; one of an earlier version has its sentences, figures and single numbers.

    Raises:
        ValueError: if the record is neither.
    """
    kind, needed = FILES[file]
    if "sentences" not in record:
        if missing := [key for key in needed if key not in record]:
            raise ValueError(f"has no {', '.join(missing)}")
        return _of_earlier_version(kind, record)
    if record.get("kind") != kind:
        raise ValueError(f"its kind is {printable(record.get('kind'))[:_MOST_SHOWN]}, not {kind}")
    if not isinstance(numbers := record.get("numbers"), dict):
        raise ValueError("numbers is no object")
    return Result(
        title=_text(record.get("title"), "title"),
        sentences=_texts(record["sentences"], "sentences"),
        tables=[_table(one) for one in _parts(record.get("tables"), "tables")],
        figures=[from_record(one) for one in _parts(record.get("figures"), "figures")],
        numbers=numbers,
        question=_text(record.get("question"), "question"),
        runs=_runs(record.get("runs")),
    )


def _of_earlier_version(kind: str, record: Mapping[str, Any]) -> Result:
    numbers = record.get("numbers") or {key: value for key, value in record.items() if key not in _ABOUT}
    if not isinstance(numbers, dict):
        raise ValueError("numbers is no object")
    answer = _SENTENCE_END.split(str(record["answer"])) if record.get("answer") else []
    tables = [_table(one) for one in _parts(record.get("tables") or [], "tables")]
    if not tables:
        found = islice(_single_numbers(numbers), _MOST_EARLIER)
        tables = [Table(_EARLIER, ("number", "value"), [(name, f"{number:.6g}") for name, number in found])]
    runs = record.get("runs") or []
    if kind == "study":
        runs = [run for point in _parts(numbers.get("points"), "points") for run in _runs(point.get("runs") or [])]
    return Result(
        title=_text(record.get("title", kind.replace("_", " ").capitalize()), "title"),
        sentences=_texts(record.get("conclusions") or answer, "conclusions"),
        tables=tables,
        figures=[from_record(one) for one in _parts(record.get("figures") or [], "figures")],
        numbers=numbers,
        question=_text(record.get("question", ""), "question"),
        runs=_runs(runs) if kind in ("study", "textbook") else (),
    )


def _single_numbers(values: Mapping[str, Any], prefix: str = "", depth: int = 1) -> Iterator[tuple[str, float]]:
    """Dotted names and values of the numbers that stand in no list."""
    for key, value in values.items():
        name = f"{prefix}{printable(key)[:_MOST_LETTERS]}"
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, float(value)
        elif isinstance(value, dict) and depth < _MOST_DEPTH and key not in _ABOUT:
            yield from _single_numbers(value, f"{name}.", depth + 1)


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or len(value) > _MOST_LETTERS:
        raise ValueError(f"{what} is no text of at most {_MOST_LETTERS:,} letters")
    return printable(value)


def _list(value: object, what: str, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"{what} is no list of at most {most:,}")
    return value


def _texts(value: object, what: str, most: int = _MOST_PARTS) -> list[str]:
    return [_text(one, what) for one in _list(value, what, most)]


def _parts(value: object, what: str) -> list[dict[str, Any]]:
    parts = _list(value, what, _MOST_PARTS)
    if not all(isinstance(one, dict) for one in parts):
        raise ValueError(f"{what} is no list of objects")
    return parts


def _table(record: Mapping[str, Any]) -> Table:
    rows = [_list(row, "a row", _MOST_COLUMNS) for row in _list(record.get("rows"), "rows", _MOST_ROWS)]
    cells = [[_text(str(cell), "a cell") for cell in row] for row in rows]
    return Table(_text(record.get("title"), "title"), _texts(record.get("headers"), "headers", _MOST_COLUMNS), cells)


def _runs(value: object) -> list[str]:
    runs = _list(value, "runs", _MOST_RUNS)
    if not all(isinstance(run, str) and run and "\0" not in run for run in runs):
        raise ValueError("runs is no list of folders")
    return runs
