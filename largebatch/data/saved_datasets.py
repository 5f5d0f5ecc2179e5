"""Hugging Face data sets on disk (`save_to_disk`): rows of tokens, rows of text, or all rows packed into windows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from largebatch.data.errors import DataError, Split, check_split
from largebatch.data.tokens import MASKED, TokenWindows

_SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "test")}
_VALIDATION_FRACTION = 0.1
_OF_MODELS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "labels")


def saved_dataset(
    path: str | Path,
    split: Split,
    *,
    packs: bool = False,
    context_length: int | None = None,
    vocab_size: int | None = None,
    columns: Sequence[str] | None = None,
    tokenizer: str | None = None,
    text_column: str = "text",
    end_of_document: int | None = None,
    masks_starts: bool = False,
    separates: bool = False,
) -> Dataset[Any]:
    """The split of a folder that `datasets.Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    Rows are memory-mapped.

    Args:
        path: the folder.
        split: "validation" is the split of that name, or else test. A folder of one set gives its first nine tenths to
            "train", and the others to "validation".
        packs: whether the `input_ids` of all rows are joined in order, and cut into windows of `context_length`; they
            are then in memory. Padding, where `attention_mask` is 0, is left out.
        context_length: of the windows, or of the padded rows of a text.
        vocab_size: of the tokenizer; needed by `packs`.
        columns: of a row that the model takes; None: those of input_ids, attention_mask, token_type_ids, position_ids
            and labels that there are. A row without labels has its input_ids as labels (`loss.shift`), and -100 where
            `attention_mask` is 0.
        tokenizer: folder of a tokenizer of transformers, for rows of text, cut or padded to `context_length`.
        text_column: with the text of a row.
        end_of_document: with `packs`, see `TokenWindows`.
        masks_starts: see `TokenWindows`.
        separates: see `TokenWindows`.

    Raises:
        DataError: if the folder, the split or a column is missing, or rows to be packed have labels of their own.
        ImportError: if `datasets` is missing, or `transformers` for a tokenizer.
        ValueError: if an argument is missing or has no effect.
    """
    check_split(split)
    of_documents = {"end_of_document": end_of_document, "masks_starts": masks_starts, "separates": separates}
    if not packs and any(of_documents.values()):
        raise ValueError("end_of_document, masks_starts and separates belong to packed rows: packs=true.")
    rows, notes = _rows(path, split)
    if packs:
        if tokenizer is not None or columns is not None or context_length is None or vocab_size is None:
            raise ValueError(
                "packs=true joins the column input_ids: it needs context_length and vocab_size alone. Rows of text and "
                "chosen columns are samples of their own: packs=false."
            )
        return _packed(rows, path, notes, context_length=context_length, vocab_size=vocab_size, **of_documents)
    if tokenizer is not None:
        if context_length is None or columns is not None:
            raise ValueError(
                "tokenizer: rows of text need context_length, to which they are cut or padded, and no columns."
            )
        _require(rows, [text_column], path)
        return TokenizedRows(rows, _tokenizer(tokenizer), text_column, context_length, notes)
    chosen = [one for one in _OF_MODELS if one in rows.column_names] if columns is None else list(columns)
    _require(rows, chosen or ["input_ids"], path)
    return Rows(rows, chosen, notes)


class Rows(Dataset[Any]):
    """Rows of a set of `datasets`, as dicts of the columns that a model takes."""

    def __init__(self, rows: Any, columns: Sequence[str], plan_notes: Sequence[str] = ()) -> None:
        self._rows, self._columns = rows.select_columns(list(columns)).with_format("numpy"), list(columns)
        self.plan_notes = tuple(plan_notes)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = dict(self._rows[index])
        if "labels" in row or "input_ids" not in row:
            return row
        labels = row["input_ids"].astype(np.int64)
        return row | {"labels": np.where(row["attention_mask"], labels, MASKED) if "attention_mask" in row else labels}


class TokenizedRows(Dataset[Any]):
    """Rows of text as tokens, cut or padded to `context_length`; padding has the label -100."""

    def __init__(
        self, rows: Any, tokenizer: Any, column: str, context_length: int, plan_notes: Sequence[str] = ()
    ) -> None:
        self._rows, self._tokenizer, self._column = rows.select_columns([column]), tokenizer, column
        self.context_length, self.plan_notes = context_length, tuple(plan_notes)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        text = self._rows[index][self._column]
        length = self.context_length
        ids = np.array(self._tokenizer(text, truncation=True, max_length=length)["input_ids"], dtype=np.int64)
        padded, labels = np.zeros(length, dtype=np.int64), np.full(length, MASKED, dtype=np.int64)
        padded[: len(ids)] = labels[: len(ids)] = ids
        return {
            "input_ids": padded,
            "attention_mask": (np.arange(length) < len(ids)).astype(np.int64),
            "labels": labels,
        }


def _rows(path: str | Path, split: Split) -> tuple[Any, list[str]]:
    try:
        import datasets
    except ImportError as error:
        raise ImportError('Reading saved data sets needs datasets: pip install "largebatch[hf]"') from error
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:
        raise DataError(
            f"{path}: datasets.load_from_disk failed ({type(error).__name__}: {error}). Name a folder that "
            "save_to_disk wrote."
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        chosen = next((one for one in _SPLIT_NAMES[split] if one in loaded), None)
        if chosen is None:
            raise DataError(f"{path}: no split {' or '.join(_SPLIT_NAMES[split])}. It has: {', '.join(loaded)}.")
        return loaded[chosen], [] if chosen == split else [f"{path}: the split {chosen}"]
    boundary = int(len(loaded) * (1 - _VALIDATION_FRACTION))
    part = range(boundary) if split == "train" else range(boundary, len(loaded))
    return loaded.select(part), [f"{path}: one set without splits; rows {part.start:,} to {part.stop:,} are {split}"]


def _packed(rows: Any, path: str | Path, notes: Sequence[str], **options: Any) -> TokenWindows:
    _require(rows, ["input_ids"], path)
    tokens = _joined(rows, "input_ids")
    if tokens.dtype.kind not in "iu":
        raise DataError(f"{path}: input_ids hold {tokens.dtype}, not lists of integers.")
    vocab_size = options["vocab_size"]
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocab_size:
        raise DataError(
            f"{path}: tokens from {tokens.min()} to {tokens.max()}, outside [0, {vocab_size}). Pass the vocab_size of "
            "the tokenizer that made them."
        )
    if "labels" in rows.column_names and not np.array_equal(_joined(rows, "labels"), tokens):
        raise DataError(
            f"{path}: the labels of some rows are not their input_ids, and packed windows would learn what they mask. "
            "Give packs=false, or remove the column labels."
        )
    if "attention_mask" in rows.column_names:
        is_padding = _joined(rows, "attention_mask") == 0
        tokens = tokens[~is_padding]
        notes = [*notes, f"{path}: {is_padding.sum():,} tokens of padding are left out"] if is_padding.any() else notes
    return TokenWindows(tokens, plan_notes=notes, **options)


def _joined(rows: Any, name: str) -> Any:
    """The lists of a column, one after the other."""
    column = rows.select_columns([name]).with_format("arrow")[:].column(name)
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _require(rows: Any, columns: Sequence[str], path: str | Path) -> None:
    if absent := [one for one in columns if one not in rows.column_names]:
        raise DataError(
            f"{path}: no column {', '.join(absent)}. It has: {', '.join(rows.column_names)}. For rows of text give a "
            "tokenizer, and text_column."
        )


def _tokenizer(folder: str) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ImportError('A tokenizer needs transformers: pip install "largebatch[hf]"') from error
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise DataError(f"{folder}: no tokenizer of transformers ({type(error).__name__}: {error}).") from error
