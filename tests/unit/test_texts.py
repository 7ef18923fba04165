"""Long columns of text in a file: the same cells as in memory, wherever they come from and whatever is asked of them."""

import csv
import errno
import json
import tempfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

from nlp_transfer.data.sources import find_model, read_rows, text_columns
from nlp_transfer.data.sources.rows import concatenate
from nlp_transfer.data.sources.text_columns import GrowingColumn, Texts, fingerprints
from nlp_transfer.data.splits import read_splits
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.settings.schema import DataConfig, TrainingConfig
from nlp_transfer.tasks import encode_table, task_from
from nlp_transfer.utils.environment import default_cache
from tests.builders import refused
from tests.helpers.models import save_tiny

CELLS = ["plain", "", "naïve 日本語 🙂", "two\nlines", "half \ud83d", "tail\r\n"] * 700


@pytest.fixture
def short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every column of text goes to a file at once."""
    monkeypatch.setattr(text_columns, "IN_MEMORY", 0)


def grown(*blocks: list[Any]) -> GrowingColumn:
    column = GrowingColumn()
    for block in blocks:
        column.extend(block)
    return column


def test_texts_in_a_file_read_as_a_list_does(short_memory: None) -> None:
    found = grown(CELLS[:1000], CELLS[1000:1001], [], CELLS[1001:]).done()
    assert isinstance(found, Texts)
    assert len(found) == len(CELLS)
    assert list(found) == CELLS
    assert found[:] == CELLS
    assert found[995:1010] == CELLS[995:1010]
    assert found[::-7] == CELLS[::-7]
    assert [found[2], found[-1]] == [CELLS[2], CELLS[-1]]
    assert found.index("two\nlines") == 3
    with pytest.raises(IndexError):
        found[len(CELLS)]
    chosen = np.array([5, 2, 2, len(CELLS) - 1])
    assert list(found.select(chosen)) == [CELLS[i] for i in chosen]
    assert list(found.select(chosen).select(np.array([1, 0]))) == [CELLS[2], CELLS[5]]
    assert list(found.select(np.zeros(0, np.int64))) == []


def test_the_file_has_no_name(short_memory: None) -> None:
    before = sorted(default_cache().rglob("*")) if default_cache().exists() else []
    found = grown(CELLS).done()
    assert found[0] == "plain"
    assert [path for path in sorted(default_cache().rglob("*")) if path not in before and path.is_file()] == []


def test_short_columns_stay_in_memory() -> None:
    assert grown(CELLS).done() == CELLS
    assert type(grown(CELLS).done()) is list


@pytest.mark.parametrize("late", [None, 3, ["a"]])
def test_a_cell_that_is_no_text_brings_all_back_into_memory(short_memory: None, late: Any) -> None:
    found = grown(CELLS[:100], [*CELLS[100:105], late], CELLS[105:]).done()
    assert type(found) is list
    assert found == [*CELLS[:105], late, *CELLS[105:]]


@pytest.mark.parametrize("whole_blocks", [0, 2])
def test_a_full_disk_brings_all_back_into_memory(
    short_memory: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole_blocks: int
) -> None:
    class Full:
        """A file on a disk with room for some blocks, and for a part of the next one."""

        def __init__(self) -> None:
            self.file, self.left = (tmp_path / "full").open("w+b"), whole_blocks

        def write(self, data: bytes) -> None:
            self.left -= 1
            self.file.write(data if self.left >= 0 else data[: len(data) // 2])
            self.flush()
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self) -> None:
            self.file.flush()

        def fileno(self) -> int:
            return self.file.fileno()

        def close(self) -> None:
            self.file.close()
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: Full())
    found = grown(CELLS[:10], CELLS[10:50], CELLS[50:70], CELLS[70:]).done()
    assert type(found) is list
    assert found == CELLS


def test_no_folder_for_the_file(short_memory: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be", encoding="utf-8")
    monkeypatch.setenv("NLP_TRANSFER_CACHE", str(tmp_path / "taken" / "cache"))
    assert grown(CELLS).done() == CELLS


ROWS = [(f"text {i} é 日本", f"label {i % 3}") for i in range(300)]


def sources(folder: Path) -> dict[str, Any]:
    """The same rows in every form that has its own reader."""
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *ROWS])
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in ROWS), encoding="utf-8")
    for i in range(3):
        with (folder / f"part{i}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *ROWS[100 * i : 100 * i + 100]])
    frame = pd.DataFrame(ROWS, columns=["text", "label"])
    frame.to_parquet(folder / "a.parquet")
    return {
        "csv": str(folder / "a.csv"), "jsonl": str(folder / "a.jsonl"), "glob": str(folder / "part*.csv"),
        "parquet": str(folder / "a.parquet"), "frame": frame, "dataset": datasets.Dataset.from_pandas(frame),
    }  # fmt: skip


def test_every_source_gives_the_same_rows(short_memory: None, tmp_path: Path) -> None:
    kinds = {}
    for kind, source in sources(tmp_path).items():
        rows = read_rows(source, "train", DataConfig(), ["text", "label"])
        kinds[kind] = type(rows.columns["text"])
        assert list(zip(rows.columns["text"], rows.columns["label"], strict=True)) == ROWS, kind
        assert [cells for block in rows.batches(77) for cells in block["text"]] == [text for text, _ in ROWS], kind
        order = np.random.default_rng(0).permutation(300)
        assert list(rows.select(order).columns["text"]) == [ROWS[i][0] for i in order], kind
    assert kinds.pop("frame") is list  # it is in memory already
    assert set(kinds.values()) == {Texts}


def test_line_aligned_files_go_to_a_file_too(short_memory: None, tmp_path: Path) -> None:
    for side in ("en", "de"):
        (tmp_path / f"train.{side}").write_text("".join(f"{side} {i}\n" for i in range(50)), encoding="utf-8")
    files = {"source": str(tmp_path / "train.en"), "target": str(tmp_path / "train.de")}
    rows = read_rows(files, "train", DataConfig(), ["source", "target"])
    assert {type(column) for column in rows.columns.values()} == {Texts}
    assert list(rows.columns["target"]) == [f"de {i}" for i in range(50)]
    assert rows.where(3) == f"{files['source']} + {files['target']}, row 4"


def tables_of(source: str, model: str) -> tuple[dict[str, TokenTable], list[str]]:
    task = task_from({"name": "text_classification"})
    data = DataConfig(train=source, validation_share=0.2, test_share=0.1)
    splits, task = read_splits(data, task, TrainingConfig(), 0)
    checkpoint = Checkpoint.open(find_model(model))
    task = task.prepare(checkpoint, splits.rows["train"])
    return {
        name: encode_table(task, rows, checkpoint.tokenizer, "none", True, name) for name, rows in splits.rows.items()
    }, splits.notes


def test_a_run_sees_the_same_tokens_and_splits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, source = str(save_tiny("bert", tmp_path / "tiny")), sources(tmp_path)["glob"]
    expected, notes = tables_of(source, model)
    monkeypatch.setattr(text_columns, "IN_MEMORY", 0)
    found, same_notes = tables_of(source, model)
    assert same_notes == notes
    for name, table in expected.items():
        np.testing.assert_array_equal(found[name].ragged["input_ids"].values, table.ragged["input_ids"].values)
        np.testing.assert_array_equal(found[name].dense["labels"], table.dense["labels"])


def test_an_empty_cell_is_named_wherever_it_stands(short_memory: None, tmp_path: Path) -> None:

    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "fine,x\nfine too,y\n" * 40 + " ,x\n", encoding="utf-8")
    with refused("a.csv, row 82, column 'text': the cell is empty"):
        tables_of(str(path), "unused")


def test_concatenation_reads_files_and_lists(short_memory: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parts = [read_rows(sources(tmp_path)[kind], "train", DataConfig(), ["text", "label"]) for kind in ("csv", "frame")]
    joined = concatenate(parts)
    assert list(joined.columns["text"]) == 2 * [text for text, _ in ROWS]
    assert joined.where(300) == "data.train, row 1"


def test_fingerprints_tell_texts_apart_in_every_process() -> None:
    found = fingerprints(CELLS[:6])
    assert found.dtype == np.int64
    assert len(set(found.tolist())) == 6
    np.testing.assert_array_equal(fingerprints(iter(CELLS[:6])), found)
    assert fingerprints(["a"]).tolist() == [3405396810240292928]  # not Python's own hash, which differs from process to process
    assert fingerprints([]).shape == (0,)
