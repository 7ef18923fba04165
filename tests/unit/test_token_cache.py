"""Tokens kept on disk: what is read is what would be made anew, and nothing that is not exactly that."""

import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from nlp_transfer.data import token_cache
from nlp_transfer.data.ragged import Ragged
from nlp_transfer.data.sources import read_rows
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.token_cache import META, cache_folder, cached_table, tokenizer_fingerprint
from nlp_transfer.data.tokens import Features, TokenTable, encode_rows, tokenize
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.tasks import Task, encode_table, task_from
from nlp_transfer.tasks.text_classification import TextClassification
from nlp_transfer.utils import cache_entries
from nlp_transfer.utils.errors import Problems
from tests import builders
from tests.builders import opened, sentiment_rows, write
from tests.helpers.models import FAMILIES, save_tiny

pytestmark = pytest.mark.model

ROWS = 2500  # more than one block, and as many as are looked for without being asked to


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(save_tiny("bert", tmp_path_factory.mktemp("bert")))


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("NLP_TRANSFER_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache" / "nlp_transfer" / "tokens"
    return cache_folder()


def rows_of(count: int = ROWS, **more: list[Any]) -> Rows:
    base = sentiment_rows(100)
    texts, labels = [base[i % 100][0] + " the" * (i // 100) for i in range(count)], [base[i % 100][1] for i in range(count)]
    return builders.rows({"text": texts, "label": labels, **more})


def task_of(rows: Rows, **settings: Any) -> Task:
    return task_from({"name": "text_classification", "max_length": 20, **settings}).fit(rows, Problems())


def entries(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir()) if root.exists() else []


def same(one: TokenTable, other: TokenTable) -> None:
    for kind in ("ragged", "dense", "texts"):
        assert list(getattr(one, kind)) == list(getattr(other, kind)), kind
    for name, column in one.ragged.items():
        for part in ("values", "offsets"):
            found, expected = getattr(other.ragged[name], part), getattr(column, part)
            assert found.dtype == expected.dtype
            assert np.array_equal(found, expected), (name, part)
    for name, values in (one.dense | one.texts).items():
        found = (other.dense | other.texts)[name]
        assert found.dtype == values.dtype
        assert np.array_equal(found, values), name
    assert (one.fill, one.truncated, len(one)) == (other.fill, other.truncated, len(other))


@pytest.mark.parametrize("document", [{}, {"text_pair": "other"}, {"name": "regression", "label": "score"}])
def test_what_is_found_is_what_is_made(document: dict[str, Any], tokenizer: PreTrainedTokenizerBase, root: Path) -> None:
    texts = rows_of().columns["text"]
    rows = rows_of(other=texts[::-1], score=[i / 7 for i in range(ROWS)])
    task = task_of(rows, **document)
    plain = encode_table(task, rows, tokenizer)
    made, found = encode_table(task, rows, tokenizer, "auto"), encode_table(task, rows, tokenizer, "auto")
    assert len(entries(root)) == 1
    for table in (made, found):
        same(plain, table)
        chosen = np.array([ROWS - 1, 0, 1200])
        for name, tensor in plain.batch(chosen).items():
            assert tensor.equal(table.batch(chosen)[name]), name
    assert plain.truncated > 0


def test_texts_that_answers_are_compared_with_are_kept(root: Path) -> None:
    rows = builders.rows({"text": [f"{i} é \ud83d\n" for i in range(2100)]})

    def encode(columns: dict[str, list[Any]]) -> Features:
        texts = np.empty(len(columns["text"]), object)
        texts[:] = columns["text"]
        ragged = {"input_ids": [[1, *map(len, text.split())] for text in texts], "labels": [[7]] * len(texts)}
        return Features(ragged, {"input_ids": 0, "labels": -100}, texts={"texts": texts}, truncated=1, sides=tuple(ragged))

    plain = encode_rows(rows, encode)
    for _ in range(2):
        same(plain, cached_table(rows, encode, {"by": "lengths"}))
    assert len(entries(root)) == 1


def change_cell(rows: Rows) -> Rows:
    return builders.rows(rows.columns | {"text": [*rows.columns["text"][:-1], "the cat"]})


def swap_labels(rows: Rows) -> Rows:
    labels = rows.columns["label"]
    return builders.rows(rows.columns | {"label": [labels[1], labels[0], *labels[2:]]})


DATA = {
    "a cell": change_cell,
    "a label": swap_labels,
    "the order": lambda rows: rows.select(np.arange(ROWS)[::-1]),
    "a row less": lambda rows: rows.select(np.arange(ROWS - 1)),
    "a border between cells": lambda rows: builders.rows(
        rows.columns | {"text": ["", rows.columns["text"][0] + rows.columns["text"][1], *rows.columns["text"][2:]]}
    ),
}


@pytest.mark.parametrize("change", DATA)
def test_other_data_is_encoded_anew(change: str, tokenizer: PreTrainedTokenizerBase, root: Path) -> None:
    before = rows_of()
    task = task_of(before)
    encode_table(task, before, tokenizer, "auto")
    after = DATA[change](before)
    found = encode_table(task, after, tokenizer, "auto")
    assert len(entries(root)) == 2
    same(encode_table(task, after, tokenizer), found)


def test_a_file_that_changed_in_place_is_encoded_anew(tokenizer: PreTrainedTokenizerBase, tmp_path: Path, root: Path) -> None:
    """Same name, same size, same time."""
    path, rows = tmp_path / "train.csv", [("a good film", "a"), ("a cold film", "b")]
    tables = []
    for first in ("good", "cold"):
        write(path, [(f"a {first} plot", "a"), *rows])
        os.utime(path, (1e9, 1e9))
        read = read_rows(str(path), "train", DataConfig(), ["text", "label"])
        tables.append(encode_table(task_of(read), read, tokenizer, "disk"))
    assert len(entries(root)) == 2
    assert tables[0].ragged["input_ids"][0] != tables[1].ragged["input_ids"][0]


def test_other_settings_are_encoded_anew(tokenizer: PreTrainedTokenizerBase, root: Path) -> None:
    texts = rows_of().columns["text"]
    rows = rows_of(other=texts[::-1])
    lengths = set()
    settings: list[dict[str, Any]] = [
        {}, {"max_length": 19}, {"text": "other"}, {"text_pair": "other"}, {"labels": ["positive", "negative"]},
    ]  # fmt: skip
    for number, changed in enumerate(settings, start=1):
        task = task_of(rows, **changed)
        table = encode_table(task, rows, tokenizer, "auto")
        assert len(entries(root)) == number
        same(encode_table(task, rows, tokenizer), table)
        lengths.add((*table.lengths.tolist(), *table.dense["labels"].tolist()))
    assert len(lengths) == len(settings)
    encode_table(task_of(rows), rows, tokenizer, "auto", targets=False)
    assert len(entries(root)) == len(settings) + 1
    encode_table(task_of(rows, head={"hidden": [8]}), rows, tokenizer, "auto")
    assert len(entries(root)) == len(settings) + 1, "a head does not change what goes in"


def test_another_tokenizer_has_another_description(tmp_path: Path) -> None:
    """Whatever is changed in it, and in its content alone: the folder has the same name."""
    folder = save_tiny("bert", tmp_path / "bert")
    first = tokenizer_fingerprint(AutoTokenizer.from_pretrained(folder))
    seen = [first]
    for name, old, new in (("tokenizer.json", '"tree"', '"trees"'), ("tokenizer.json", '"Lowercase"', '"NFC"')):
        path = folder / name
        before = path.read_text()
        assert old in before
        path.write_text(before.replace(old, new))
        seen.append(tokenizer_fingerprint(AutoTokenizer.from_pretrained(folder)))
        path.write_text(before)
    other = AutoTokenizer.from_pretrained(folder)
    other.add_tokens([AddedToken("filmplot")])
    seen.append(tokenizer_fingerprint(other))
    left = AutoTokenizer.from_pretrained(folder, truncation_side="left")
    seen.append(tokenizer_fingerprint(left))
    again = AutoTokenizer.from_pretrained(folder)
    again(["the cat"] * 2, truncation=True, max_length=3, padding=True)
    assert tokenizer_fingerprint(again) == first, "a call leaves nothing behind that counts"
    assert len({json.dumps(one) for one in seen}) == len(seen) == 5


def test_code_of_others_is_not_trusted_to_stay_as_it_is(tokenizer: PreTrainedTokenizerBase, root: Path) -> None:
    class Own(TextClassification):
        """Its `encode` may be another one tomorrow."""

        def document(self) -> dict[str, Any]:
            return {"name": "own", **self.model_dump(mode="json")}

    rows = rows_of()
    own = Own(max_length=20).fit(rows, Problems())
    same(encode_table(task_of(rows), rows, tokenizer, "none"), encode_table(own, rows, tokenizer, "disk"))
    assert entries(root) == []


def test_cells_that_cannot_be_told_apart_are_not_kept(root: Path) -> None:
    rows = builders.rows({"text": [object(), object()]})
    table = cached_table(
        rows, lambda columns: Features({"input_ids": [[1]] * len(columns["text"])}, {"input_ids": 0}), {}, "disk"
    )
    assert len(table) == 2
    assert entries(root) == []


def test_few_rows_are_kept_when_asked_and_none_when_not(tokenizer: PreTrainedTokenizerBase, root: Path) -> None:
    few, many = rows_of(50), rows_of()
    task = task_of(few)
    encode_table(task, few, tokenizer, "auto")
    encode_table(task, many, tokenizer, "none")
    assert entries(root) == []
    encode_table(task, few, tokenizer, "disk")
    assert len(entries(root)) == 1


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_short, flip, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("file", [META, "input_ids.values", "input_ids.offsets", "labels.npy"])
def test_a_damaged_entry_is_made_again(
    damage: Any, file: str, tokenizer: PreTrainedTokenizerBase, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(60)
    task = task_of(rows)
    plain = encode_table(task, rows, tokenizer, "none")
    encode_table(task, rows, tokenizer, "disk")
    (entry,) = entries(root)
    damage(entry / file)
    capfd.readouterr()
    same(plain, encode_table(task, rows, tokenizer, "disk"))
    assert "the rows are encoded again" in capfd.readouterr().err
    same(plain, encode_table(task, rows, tokenizer, "disk"))
    assert "tokens found" in capfd.readouterr().err
    assert entries(root) == [entry]


def test_a_folder_that_cannot_be_written_costs_a_warning(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    rows = rows_of(60)
    same(encode_table(task_of(rows), rows, tokenizer, "none"), encode_table(task_of(rows), rows, tokenizer, "disk", name="train"))
    said = capfd.readouterr().err
    assert said.startswith("warning: train: tokens cannot be cached in")
    assert "data.token_cache: none" in said


def test_nothing_is_left_of_rows_that_cannot_be_encoded(root: Path) -> None:
    rows = rows_of()

    def encode(columns: dict[str, list[Any]]) -> Features:
        if len(columns["text"]) < 1000:  # the last block
            raise ValueError("no")
        return Features({"input_ids": [[1]] * len(columns["text"])}, {"input_ids": 0})

    with pytest.raises(ValueError, match=r"^no$"):
        cached_table(rows, encode, {})
    assert entries(root) == []


def test_of_two_that_need_the_same_one_encodes(tokenizer: PreTrainedTokenizerBase, root: Path) -> None:
    rows, blocks = rows_of(), []
    task = task_of(rows)
    begun = threading.Event()

    def encode(columns: dict[str, list[Any]]) -> Features:
        blocks.append(threading.get_ident())
        begun.set()
        time.sleep(0.05)
        return task.encode(columns, tokenizer)

    tables = []

    def work() -> None:
        tables.append(cached_table(rows, encode, {"by": "both"}))

    workers = [threading.Thread(target=work) for _ in range(2)]
    workers[0].start()
    assert begun.wait(30)
    workers[1].start()
    for worker in workers:
        worker.join(60)
    assert len(blocks) == 3, "2,500 rows in blocks of a thousand, once"
    assert len(set(blocks)) == 1
    for table in tables:
        same(encode_table(task, rows, tokenizer, "none"), table)
    assert len(tables) == 2
    assert [path.suffix for path in entries(root)] == [""], "no lock, no part is left"


def test_two_that_write_at_once_leave_one_whole_entry(
    tokenizer: PreTrainedTokenizerBase, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system without locks."""
    rows = rows_of()
    task = task_of(rows)
    together = threading.Barrier(2, timeout=30)

    def encode(columns: dict[str, list[Any]]) -> Features:
        together.wait()
        return task.encode(columns, tokenizer)

    def no_locks(*_: object, **__: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(cache_entries.FileLock, "acquire", no_locks)
    tables = []

    def work() -> None:
        tables.append(cached_table(rows, encode, {"by": "each"}))

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(work) for _ in range(2)]:
            done.result(60)
    assert len(tables) == 2
    for table in [*tables, cached_table(rows, encode, {"by": "each"})]:  # the third must not encode
        same(encode_table(task, rows, tokenizer, "none"), table)
    assert len(entries(root)) == 1


def test_the_least_recently_used_make_room(
    tokenizer: PreTrainedTokenizerBase, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = [rows_of(60 + i) for i in range(4)]
    task = task_of(tables[0])
    held = encode_table(task, tables[0], tokenizer, "disk")
    (oldest,) = entries(root)
    size = sum(path.stat().st_size for path in oldest.iterdir())
    monkeypatch.setattr(cache_entries, "MAX_BYTES", int(3.3 * size))
    encode_table(task, tables[1], tokenizer, "disk")
    (second,) = set(entries(root)) - {oldest}
    encode_table(task, tables[2], tokenizer, "disk")
    os.utime(oldest, (1e9, 1e9))
    os.utime(second, (2e8, 2e8))
    encode_table(task, tables[1], tokenizer, "disk")  # found, and so used last
    left_behind = root / ".part-of-a-killed-process"
    left_behind.mkdir()
    os.utime(left_behind, (1e9, 1e9))
    encode_table(task, tables[3], tokenizer, "disk")
    assert len(entries(root)) == 3
    assert not oldest.exists()
    assert second.exists()
    assert not left_behind.exists()
    same(encode_table(task, tables[0], tokenizer, "none"), held)  # who has it open keeps it
    monkeypatch.setattr(cache_entries, "MAX_BYTES", 0)
    found = encode_table(task, rows_of(70), tokenizer, "disk")
    assert len(entries(root)) == 1, "the newest alone"
    same(encode_table(task, rows_of(70), tokenizer, "none"), found)
    monkeypatch.setattr(cache_entries, "MAX_BYTES", 2**30)
    monkeypatch.setattr(cache_entries, "MAX_ENTRIES", 2)
    for count in (71, 72, 73):
        encode_table(task, rows_of(count), tokenizer, "disk")
    assert len(entries(root)) == 2


def test_translations_are_kept_with_both_sides(tiny: dict[str, Path], root: Path) -> None:
    base = sentiment_rows(80)
    rows = builders.rows({"source": [text for text, _ in base], "target": [text[::-1] for text, _ in base]})
    checkpoint = opened(tiny["bert"])
    settings: list[dict[str, Any]] = [{}, {"prefix": "the "}, {"target_vocabulary": 280}, {"max_length": 8}]
    for number, changed in enumerate(settings, start=1):
        task = task_from({"name": "translation", **changed}).prepare(checkpoint, rows)
        plain = encode_table(task, rows, checkpoint.tokenizer, "none")
        for _ in range(2):
            same(plain, encode_table(task, rows, checkpoint.tokenizer, "disk"))
        assert len(entries(root)) == number
    assert set(plain.texts) == {"sources", "references"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_backend_alone_gives_what_a_call_gives(family: str, tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny[family])
    texts = [text for text, _ in sentiment_rows(60)] + ["", "[SEP] é", "the " * 90]
    for side in ("right", "left"):
        tokenizer.truncation_side = side
        for given in ([texts], [texts, texts[::-1]]):
            for limit in (5, 9, 40):
                calls: list[tuple[dict[str, Ragged], int]] = []
                for plain in (True, False):
                    monkeypatch.setattr("nlp_transfer.data.tokens._is_plain", lambda _, plain=plain: plain)
                    calls.append(tokenize(tokenizer, given, ["input_ids", "token_type_ids"], limit))
                (quick, cut), (usual, expected) = calls
                assert cut == expected > 0
                assert {name: list(column) for name, column in quick.items()} == {
                    name: list(column) for name, column in usual.items()
                }


def test_values_that_are_all_the_same_take_no_room(tokenizer: PreTrainedTokenizerBase, root: Path) -> None:
    rows = rows_of()
    task = task_of(rows)
    table = encode_table(task, rows, tokenizer, "auto")
    assert table.ragged["token_type_ids"].values.strides == (0,)
    assert table.ragged["token_type_ids"].offsets is not None
    (entry,) = entries(root)
    assert (entry / "token_type_ids.values").stat().st_size == 0
    assert not (entry / "token_type_ids.offsets").exists(), "the same as those of the ids"
    part = np.array([3, 2400])
    joined = TokenTable.concatenate([table, table.select(part)])
    assert joined.ragged["token_type_ids"].values.tolist() == [0] * len(joined.ragged["input_ids"].values)


def test_values_that_differ_late_are_written_whole() -> None:
    rows = builders.rows({"text": list(range(2005))})
    ids = [[7] * (i % 3) if i < 2003 else [8] for i in range(2005)]
    for keep in ("none", "disk", "disk"):
        encode: Any = lambda cells: Features({"input_ids": [ids[i] for i in cells["text"]]}, {"input_ids": 0})  # noqa: E731
        table = cached_table(rows, encode, {}, keep)
        assert list(table.ragged["input_ids"]) == ids


def test_the_setting_reaches_a_run(train: Any, sentiment: dict[str, Path], root: Path, tmp_path: Path) -> None:
    train(output_dir=tmp_path / "auto")
    assert entries(root) == [], "few rows are not cached by default"
    train(data=sentiment | {"token_cache": "disk"})
    assert len(entries(root)) == 2, "train and test"


def test_the_code_of_the_package_is_part_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(token_cache.__file__).parents[1]
    copied = shutil.copytree(package, tmp_path / "nlp_transfer", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(token_cache, "__file__", str(copied / "data" / "token_cache.py"))
    before = token_cache._code_hash.__wrapped__()
    assert before == token_cache._code_hash.__wrapped__()
    with (copied / "tasks" / "common" / "labels.py").open("a") as file:
        file.write("# changed\n")
    assert before != token_cache._code_hash.__wrapped__()
