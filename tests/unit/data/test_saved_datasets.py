"""Sets of `datasets` on disk: rows as they are, rows of text, and rows packed into windows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from largebatch.data import DataError, TokenWindows, saved_dataset
from largebatch.run.train_quietly import train_quietly
from tests.multiprocess.pool import RankPool
from tests.unit.composing import compose_run

datasets = pytest.importorskip("datasets")

ROWS = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [10, 11], [12, 3, 4, 5]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rows of unequal length with text beside them, shuffled and joined from two parts: chunks, and an index map."""
    halves = [
        datasets.Dataset.from_dict({"input_ids": part, "text": ["x"] * len(part)}) for part in (ROWS[:2], ROWS[2:])
    ]
    joined = datasets.concatenate_datasets(halves).select([4, 3, 2, 1, 0]).select([4, 3, 2, 1, 0])
    datasets.DatasetDict({"train": joined, "test": joined.select([2])}).save_to_disk(tmp_path / "set")
    return tmp_path / "set"


def test_rows_are_packed_in_order_whatever_the_chunks_on_disk(folder: Path):
    packed: Any = saved_dataset(folder, "train", packs=True, context_length=4, vocab_size=13)
    reference = TokenWindows(np.concatenate(ROWS), context_length=4, vocab_size=13)
    for one, other in zip(packed.fetch(np.arange(3)), reference.fetch(np.arange(3)), strict=True):
        assert torch.equal(one, other)
    assert len(packed) == len(reference) == 3
    assert packed.context_length == 4


def test_a_row_is_a_sample_of_the_columns_that_models_take(folder: Path):
    rows: Any = saved_dataset(folder, "train")
    assert [rows[place]["input_ids"].tolist() for place in range(5)] == ROWS
    assert rows[2].keys() == {"input_ids", "labels"}
    assert rows[2]["labels"].tolist() == ROWS[2]
    validation: Any = saved_dataset(folder, "validation")  # the split test
    assert [len(validation), validation[0]["input_ids"].tolist()] == [1, ROWS[2]]


def test_padding_of_saved_rows_is_neither_learned_nor_packed_and_labels_of_rows_are_not_passed_over(tmp_path: Path):
    padded = {
        "input_ids": [[*row, 0, 0] for row in ROWS],
        "attention_mask": [[*([1] * len(row)), 0, 0] for row in ROWS],
    }
    datasets.Dataset.from_dict(padded).save_to_disk(tmp_path / "padded")
    kept = ROWS[:4]  # the last tenth is for validation
    rows: Any = saved_dataset(tmp_path / "padded", "train")
    assert [rows[place]["labels"].tolist() for place in range(4)] == [[*row, -100, -100] for row in kept]
    packed: Any = saved_dataset(tmp_path / "padded", "train", packs=True, context_length=10, vocab_size=13)
    assert packed.fetch(np.array([0]))[0].flatten().tolist() == np.concatenate(kept)[:10].tolist()
    assert any("8 tokens of padding are left out" in note for note in packed.plan_notes)
    for labels in (ROWS, [[-100, *row[1:]] for row in ROWS]):  # as run_clm of transformers writes them; masked prompts
        path = tmp_path / str(labels[0][0])
        datasets.Dataset.from_dict({"input_ids": ROWS, "labels": labels}).save_to_disk(path)
        if labels is ROWS:
            assert len(saved_dataset(path, "train", packs=True, context_length=10, vocab_size=13)) == 1  # type: ignore[arg-type]
        else:
            with pytest.raises(DataError, match=r"labels of some rows are not their input_ids.*packs=false"):
                saved_dataset(path, "train", packs=True, context_length=10, vocab_size=13)


def test_one_set_without_splits_keeps_its_last_tenth_for_validation(tmp_path: Path):
    datasets.Dataset.from_dict({"input_ids": [[n] for n in range(20)]}).save_to_disk(tmp_path / "one")
    parts: list[Any] = [saved_dataset(tmp_path / "one", split) for split in ("train", "validation")]
    assert [one["input_ids"].tolist() for part in parts for one in part] == [[n] for n in range(20)]
    assert list(map(len, parts)) == [18, 2]


def test_rows_of_text_are_cut_or_padded_by_a_tokenizer(tmp_path: Path):
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    words = tokenizers.models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "c": 3}, unk_token="[UNK]")
    made = tokenizers.Tokenizer(words)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained(tmp_path / "words")
    datasets.Dataset.from_dict({"body": ["a b", "c b a c", "z"] * 5}).save_to_disk(tmp_path / "texts")
    options: dict[str, Any] = {"tokenizer": str(tmp_path / "words"), "text_column": "body", "context_length": 3}
    rows: Any = saved_dataset(tmp_path / "texts", "train", **options)
    assert [rows[place]["input_ids"].tolist() for place in range(3)] == [[1, 2, 0], [3, 2, 1], [0, 0, 0]]
    assert [rows[place]["labels"].tolist() for place in (0, 2)] == [[1, 2, -100], [0, -100, -100]]
    assert rows[0]["attention_mask"].tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"columns": ["pixels"]}, "no column pixels. It has: input_ids, text"),
        ({"packs": True, "context_length": 4}, "it needs context_length and vocab_size alone"),
        ({"packs": True, "context_length": 4, "vocab_size": 5}, r"tokens from 1 to 12, outside \[0, 5\)"),
        ({"end_of_document": 3}, "belong to packed rows"),
        ({"tokenizer": "nowhere"}, "rows of text need context_length"),
        ({"tokenizer": "/nowhere", "context_length": 4}, "/nowhere: no tokenizer of transformers"),
    ],
)
def test_what_does_not_fit_a_saved_set_is_refused(folder: Path, options: dict[str, Any], fact: str):
    with pytest.raises(ValueError, match=fact):
        saved_dataset(folder, "train", **options)
    with pytest.raises(DataError, match=r"load_from_disk failed"):
        saved_dataset(folder / "absent", "train")


def trained(folder: str, path: str, *overrides: str) -> list[torch.Tensor]:
    composed = compose_run(
        "data=hf_disk", f"data.path={path}", "data.vocab_size=13", "data.context_length=4", "model.num_layers=1",
        "model.num_heads=1", "model.width=8", "batch.total=24tokens", "length=96tokens", "batch.micro=2",
        "schedule.warmup=0ep", "logger=none", "precision=fp64", *overrides,
    )  # fmt: skip
    return [one.detach().clone() for one in train_quietly(composed, folder).model.parameters()]


def test_a_saved_set_trains_alike_on_any_ranks_and_workers(ranks: Callable[[int], RankPool], tmp_path: Path):
    rows = [[(3 * n + place) % 13 for place in range(4)] for n in range(40)]
    datasets.Dataset.from_dict({"input_ids": rows}).save_to_disk(tmp_path / "set")
    for packs in ("true", "false"):
        given = (str(tmp_path / "set"), f"data.train.packs={packs}")
        # A row has its inputs as labels, so the loss shifts them; windows are shifted already.
        workers = ("data.num_workers=2",) if packs == "false" else ()
        given += ("loss.shift=true",) if packs == "false" else ()
        one = ranks(1).run(trained, str(tmp_path / f"{packs}-1"), *given)[0]
        three = ranks(3).run(trained, str(tmp_path / f"{packs}-3"), *given, *workers)[2]
        torch.testing.assert_close(one, three, rtol=1e-11, atol=1e-13)
