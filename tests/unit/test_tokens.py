"""Tokens in flat arrays give the batches that a tokenizer's own padding gives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from nlp_transfer.data.ragged import Ragged
from nlp_transfer.data.sources.rows import from_columns
from nlp_transfer.data.tokens import Features, TokenTable, encode_rows
from nlp_transfer.tasks import task_from
from nlp_transfer.utils.errors import Problems
from tests.builders import sentiment_rows

ROWS = [[1, 2, 3], [], [4], [5, 6]]


def test_ragged_rows_and_their_lengths() -> None:
    column = Ragged.from_lists(ROWS)
    assert len(column) == 4
    assert column.lengths.tolist() == [3, 0, 1, 2]
    assert column.values.dtype == np.int32
    assert column.offsets.dtype == np.int64


@pytest.mark.parametrize(
    ("indices", "expected"),
    [([0, 3, 2], [[1, 2, 3], [5, 6, 9], [4, 9, 9]]), ([2, 2], [[4], [4]]), ([3, 1], [[5, 6], [9, 9]]), ([3], [[5, 6]])],
)
def test_rows_are_filled_up_on_the_right(indices: list[int], expected: list[list[int]]) -> None:
    padded = Ragged.from_lists(ROWS).padded(np.array(indices), fill=9)
    assert padded.tolist() == expected
    assert padded.dtype == np.int64


def test_nothing_but_empty_rows() -> None:
    assert Ragged.from_lists([[], []]).padded(np.array([0, 1]), fill=7).tolist() == [[7], [7]]
    assert len(Ragged.from_lists([])) == 0


def test_a_batch_is_padded_to_its_own_longest_row_and_masked() -> None:
    ids, kinds = Ragged.from_lists([[2, 7, 3], [2, 3], [2, 8, 9, 3]]), Ragged.from_lists([[0, 0, 1], [0, 1], [0, 0, 1, 1]])
    labels = {"labels": np.array([5, 6, 7])}
    table = TokenTable({"input_ids": ids, "token_type_ids": kinds}, labels, {"input_ids": 0, "token_type_ids": 4})
    batch = table.batch(np.array([1, 0]))
    assert batch["input_ids"].tolist() == [[2, 3, 0], [2, 7, 3]]
    assert batch["token_type_ids"].tolist() == [[0, 1, 4], [0, 0, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [6, 5]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    assert set(table.targets(np.array([2]))) == {"labels"}
    assert table.lengths.tolist() == [3, 2, 4]


def test_labels_that_are_tokens() -> None:
    ids, labels = Ragged.from_lists([[2, 7, 3], [2, 3], [2, 8, 9, 3]]), Ragged.from_lists([[5, 1], [5, 6, 6, 6, 1], [1]])
    decoder = Ragged.from_lists([[0, 5], [0, 5, 6, 6, 6], [0]])
    fill = {"input_ids": 0, "labels": -100, "decoder_input_ids": 9}
    table = TokenTable(
        {"input_ids": ids, "labels": labels, "decoder_input_ids": decoder}, {}, fill, sides=("input_ids", "labels")
    )
    assert table.side_lengths.tolist() == [[3, 2], [2, 5], [4, 1]], "source and target, and the decoder's input not once more"
    assert table.lengths.tolist() == [5, 7, 5]
    batch = table.batch(np.array([1, 0]))
    assert batch["labels"].tolist() == [[5, 6, 6, 6, 1], [5, 1, -100, -100, -100]]
    assert batch["decoder_input_ids"].tolist() == [[0, 5, 6, 6, 6], [0, 5, 9, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]], "the source's"
    targets = table.targets(np.array([2, 0]))
    assert set(targets) == {"labels"}
    assert targets["labels"].tolist() == [[1, -100], [5, 1]]
    assert targets["labels"].dtype == torch.int64


def test_lengths_are_the_source_alone_without_a_target() -> None:
    table = TokenTable({"input_ids": Ragged.from_lists([[2, 7, 3], [2, 3]])}, {}, {"input_ids": 0})
    assert table.lengths.tolist() == [3, 2]
    assert table.side_lengths.tolist() == [[3], [2]]
    assert table.targets(np.array([0])) == {}
    assert table.references == {}


def test_dense_targets_are_counted_and_scored() -> None:
    ids, extra = Ragged.from_lists([[2, 3], [2, 7, 3]]), {"labels": np.array([4, 8])}
    table = TokenTable({"input_ids": ids}, extra, {"input_ids": 0}, texts={"sources": np.array(["a", "b"], object)})
    assert table.lengths.tolist() == [2, 3]
    assert table.targets(np.array([1, 0]))["labels"].tolist() == [8, 4]
    assert set(table.references) == {"labels", "sources"}


def test_texts_are_kept_for_scoring_and_seen_by_no_model() -> None:
    rows = from_columns({"text": [f"text {i}" for i in range(7)]}, "rows")

    def encode(columns: dict[str, list[Any]]) -> Features:
        texts = np.array(columns["text"], object)
        ids = [[2, *map(ord, text[-1]), 3] for text in texts]
        scores = np.array([float(text[-1]) for text in texts])
        return Features({"input_ids": ids}, {"input_ids": 0}, {"score": scores}, {"references": texts}, truncated=1)

    table = encode_rows(rows, encode, size=3)
    assert set(table.texts) == {"references"}
    assert set(table.dense) == {"score"}
    assert table.texts["references"].dtype == object
    assert table.references["references"].tolist() == [f"text {i}" for i in range(7)], "pieces in their order"
    assert table.references["score"].tolist() == list(range(7))
    assert table.truncated == 3, "one a piece"
    assert set(table.batch(np.array([6, 0]))) == {"input_ids", "attention_mask", "score"}
    assert set(table.targets(np.array([6]))) == {"score"}


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("pair", [False, True])
def test_a_batch_is_what_the_tokenizer_makes_of_the_texts(family: str, pair: bool, tiny: dict[str, Path]) -> None:
    """Also where rows are encoded in several pieces, and where some are cut."""
    tokenizer = AutoTokenizer.from_pretrained(tiny[family])
    texts = [text for text, _ in sentiment_rows(25)]
    columns = {"text": texts, "label": ["a", "b"] * 12 + ["a"]} | ({"other": texts[::-1]} if pair else {})
    rows = from_columns(columns, "rows")
    document = {"name": "text_classification", "max_length": 9} | ({"text_pair": "other"} if pair else {})
    task = task_from(document).fit(rows, Problems())
    table = encode_rows(rows, lambda part: task.encode(part, tokenizer), size=7)
    given = [texts, texts[::-1]] if pair else [texts]
    expected = tokenizer(*given, truncation=True, max_length=9, padding=True, return_tensors="pt")
    batch = table.batch(np.arange(25))
    assert set(expected) == set(batch) - {"labels"}
    for name, tensor in expected.items():
        assert torch.equal(batch[name], tensor), name
    lengths = [len(ids) for ids in tokenizer(*given)["input_ids"]]
    assert table.truncated == sum(length > 9 for length in lengths) > 0
    assert len(table) == 25
    assert batch["labels"].tolist() == [0, 1] * 12 + [0]


def windowed() -> TokenTable:
    """Return a table of three rows, with 1, 3 and 2 windows."""
    ids = [[1, 2], [3, 4, 5, 6, 7, 8], [9, 10, 11]]
    labels = [[0, 0], [1, 1, 1, 2, 2, 3], [4, 5, 5]]
    windows = [[2], [3, 2, 1], [1, 2]]
    ragged = {"input_ids": Ragged.from_lists(ids), "labels": Ragged.from_lists(labels), "windows": Ragged.from_lists(windows)}
    return TokenTable(ragged, {"target_words": np.array([2, 6, 3])}, {"input_ids": 0, "labels": -100})


def test_a_batch_has_a_row_for_each_window() -> None:
    table = windowed()
    batch = table.batch(np.array([2, 1]))
    assert batch["input_ids"].tolist() == [[9, 0, 0], [10, 11, 0], [3, 4, 5], [6, 7, 0], [8, 0, 0]]
    assert batch["attention_mask"].sum(1).tolist() == [1, 2, 3, 2, 1]
    assert batch["labels"].tolist()[2:4] == [[1, 1, 1], [2, 2, -100]]
    assert batch["target_row"].tolist() == [0, 0, 1, 1, 1]
    assert batch["target_words"].tolist() == [3, 6]
    assert "windows" not in batch
    targets = table.targets(np.array([2, 1]))
    assert targets.keys() == {"labels", "target_row", "target_words"}
    assert torch.equal(targets["labels"], batch["labels"])


def test_windows_follow_their_rows() -> None:
    table = windowed()
    chosen = table.select(np.array([1, 0, 1]))
    for name, tensor in chosen.batch(np.array([0, 1])).items():
        assert torch.equal(tensor, table.batch(np.array([1, 0]))[name]), name
    joined = TokenTable.concatenate([table, chosen])
    assert joined.batch(np.array([3]))["input_ids"].tolist() == [[3, 4, 5], [6, 7, 0], [8, 0, 0]]
    assert joined.lengths.tolist() == [2, 6, 3, 6, 2, 6]
