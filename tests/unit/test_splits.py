"""Splits: stratified, seeded, and nothing that belongs together is torn apart."""

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from nlp_transfer import fine_tune
from nlp_transfer.data.sources.rows import Rows, from_columns
from nlp_transfer.data.sources.text_columns import fingerprints, normalized
from nlp_transfer.data.split_sampling import describe_repeats, split_off
from nlp_transfer.data.splits import Splits, input_texts, read_splits
from nlp_transfer.settings.schema import DataConfig, TrainingConfig
from nlp_transfer.tasks import task_from
from tests.builders import refused, run, sentiment_rows, write

pytestmark = pytest.mark.process


def frame(rows: int = 200, labels: str = "aaab", **more: list[Any]) -> pd.DataFrame:
    return pd.DataFrame(
        {"text": [f"text {i}" for i in range(rows)], "label": [labels[i % len(labels)] for i in range(rows)], **more}
    )


def split(data: DataConfig, seed: int = 0, **task: Any) -> Splits:
    settings = {"name": "text_classification"} | task
    return read_splits(data, task_from(settings), TrainingConfig(), seed)[0]


def texts(rows: Rows) -> list[str]:
    return rows.columns["text"]


def test_shares_are_stratified_and_nothing_is_lost() -> None:
    splits = split(DataConfig(train=frame(), validation_share=0.1, test_share=0.2))
    assert {name: len(rows) for name, rows in splits.rows.items()} == {"train": 144, "test": 40, "validation": 16}
    for rows in splits.rows.values():
        assert Counter(rows.columns["label"])["b"] == len(rows) // 4
    assert sorted(text for rows in splits.rows.values() for text in texts(rows)) == sorted(frame()["text"])
    assert any("16 rows set aside from train" in note for note in splits.notes)


def test_rows_keep_their_order_and_their_place() -> None:
    train = split(DataConfig(train=frame())).rows["train"]
    numbers = [int(text.split()[1]) for text in texts(train)]
    assert numbers == sorted(numbers)
    assert [train.where(i) for i in range(3)] == [f"data.train, row {number + 1}" for number in numbers[:3]]


def test_seed_decides() -> None:
    first, again, other = (texts(split(DataConfig(train=frame()), seed).rows["validation"]) for seed in (1, 1, 2))
    assert first == again != other


def test_share_of_zero_makes_no_split() -> None:
    assert list(split(DataConfig(train=frame(), validation_share=0)).rows) == ["train"]


def test_given_splits_are_left_whole() -> None:
    splits = split(DataConfig(train=frame(40), validation=frame(8), test=frame(12), validation_share=0.5))
    assert {name: len(rows) for name, rows in splits.rows.items()} == {"train": 40, "validation": 8, "test": 12}


def test_same_text_never_stands_in_two_splits() -> None:
    table = pd.DataFrame({"text": [f"text {i % 50}" for i in range(200)], "label": [str(i % 50 % 2) for i in range(200)]})
    for seed in range(5):
        splits = split(DataConfig(train=table, validation_share=0.2, test_share=0.2), seed)
        parts = [set(texts(rows)) for rows in splits.rows.values()]
        assert len(parts) == 3
        assert sum(map(len, parts)) == 50
    assert "train: 150 of 200 rows repeat the input of another row" in splits.notes


def test_pairs_are_told_apart_by_both_texts() -> None:
    rows = [(f"a{i % 20}", f"b{i % 10}", str(i % 2)) for i in range(120)]  # 20 different pairs
    table = pd.DataFrame(rows, columns=["text", "other", "label"])
    splits = split(DataConfig(train=table, validation_share=0.3), text_pair="other")
    parts = [{*zip(rows.columns["text"], rows.columns["other"], strict=True)} for rows in splits.rows.values()]
    assert len(parts) == 2
    assert not parts[0] & parts[1]
    assert sum(map(len, parts)) == 20


def test_pairs_with_the_same_joined_text_are_different() -> None:
    task = task_from({"name": "regression", "text_pair": "other"})
    assert len(set(input_texts(task, from_columns({"text": ["a b", "a"], "other": ["c", "b c"]}, "t")))) == 2


def test_groups_stay_together_and_so_do_their_texts() -> None:
    generator = random.Random(0)
    groups = [f"author {generator.randrange(40)}" for _ in range(300)]
    words = [f"text {generator.randrange(280)}" for _ in range(300)]  # a few texts by two authors tie these together
    table = pd.DataFrame({"text": words, "label": [str(i % 2) for i in range(300)], "by": groups})
    table = table.drop_duplicates("text")
    splits = split(DataConfig(train=table, validation_share=0.25, group="by"))
    authors = [set(rows.columns["by"]) for rows in splits.rows.values()]
    assert len(authors) == 2
    assert not authors[0] & authors[1]
    assert len(splits.rows["validation"]) > 20


def test_text_by_two_groups_ties_them_together() -> None:
    rows = from_columns({"by": ["a", "a", "b", "b", "c", "c"]}, "t")
    keys = ["1", "2", "2", "3", "4", "5"]  # a and b share text 2
    for seed in range(10):
        kept, aside = split_off(rows, 0.4, np.zeros(6, np.int64), np.array(keys), "by", seed)
        assert {*map(tuple, (kept.tolist(), aside.tolist()))} <= {(0, 1, 2, 3), (4, 5), (0, 1, 2, 3, 4, 5), ()}
        assert sorted([*kept, *aside]) == list(range(6))


def test_only_train_needs_the_group_column() -> None:
    table = frame(40, by=[str(i % 10) for i in range(40)])
    splits = split(DataConfig(train=table, test=frame(8), group="by", validation_share=0.2))
    assert len(splits.rows["test"]) == 8
    assert "by" not in splits.rows["test"].columns


def test_many_tiny_classes_still_give_their_share() -> None:
    rows = from_columns({"text": [str(i) for i in range(60)]}, "t")
    kept, aside = split_off(rows, 0.1, np.arange(60) // 3, fingerprints(texts(rows)), None, 0)
    assert len(aside) == 6
    assert set(np.arange(60)[kept] // 3) == set(range(20)), "each class keeps rows to learn from"


def test_last_unit_of_a_class_stays_in_train() -> None:
    rows = from_columns({"text": ["a", "b", "c"]}, "t")
    kept, aside = split_off(rows, 0.99, np.array([0, 0, 1]), np.arange(3), None, 0)
    assert (len(kept), len(aside)) == (2, 1)
    assert 2 in kept


def test_leaks_between_given_splits_are_counted() -> None:
    notes = describe_repeats({"train": ["a", "b", "b"], "validation": ["c"], "test": ["b", "a", "b", "x", "c"]})
    assert notes[0] == "train: 1 of 3 rows repeat the input of another row"
    assert notes[1] == "test: 1 of 5 rows repeat the input of another row"
    assert [note for note in notes if note.startswith("warning: 3 of 5 rows of test have an input that also occurs in train")]
    assert [
        note for note in notes if note.startswith("warning: 1 of 5 rows of test have an input that also occurs in validation")
    ]
    assert len(notes) == 4


def test_clean_splits_have_nothing_to_say() -> None:
    assert describe_repeats({"train": ["a", "b"], "test": ["c"]}) == []


def test_leak_is_a_note_and_no_error() -> None:
    splits = split(DataConfig(train=frame(40), test=frame(4), validation_share=0))
    assert splits.notes == [
        "warning: 4 of 4 rows of test have an input that also occurs in train; metrics on test will be too high"
    ]


# One text in the ways in which files spell it: composed and decomposed, other cases, and white space that is seen or not.
SPELLINGS = [
    "Caf\u00e9 Stra\u00dfe {}", "Cafe\u0301 Stra\u00dfe {}", "CAF\u00c9 STRASSE {}", "caf\u00e9  stra\u00dfe\t{}",
    "\u3000Caf\u00e9\u00a0Stra\u00dfe {} ", "\ufeffCaf\u00e9 \u200bStra\u00dfe {}\u2028", "Caf\u00e9 Stra\u00ad\u00dfe {}",
]  # fmt: skip


def test_spellings_are_one_text_and_other_texts_are_others() -> None:
    assert len({normalized(text.format(1)) for text in SPELLINGS}) == 1
    assert normalized("\u03cc\u03c3\u03bf\u03c2") == normalized("\u038c\u03a3\u039f\u03a3"), "two small sigmas, one capital"
    different = ["x2", "x\u00b2", "x 2", "1/2", "\u00bd", "ecole", "\u00e9cole"]
    different += ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u062e\u0648\u0627\u0647\u0645"]  # Persian
    assert len({*map(normalized, different)}) == len(different)


def near_copies(count: int, **more: Any) -> pd.DataFrame:
    """Each of `count` texts in all spellings, one after the other: rows `i`, `i + count`, ... are copies."""
    texts = [spelling.format(i) for spelling in SPELLINGS for i in range(count)]
    return pd.DataFrame(
        {"text": texts, "label": ["a", "b"] * (len(texts) // 2), "number": [*range(count)] * len(SPELLINGS)} | more
    )


@pytest.mark.parametrize(
    "task",
    [
        {},
        {"text_pair": "second"},
        {"name": "regression", "label": "number"},
        {"name": "multi_label"},
        {"name": "translation", "source": "text", "target": "target"},
    ],
    ids=["text", "pair", "regression", "multi_label", "translation"],
)
def test_near_copies_stay_together(task: dict[str, Any]) -> None:
    count = 40
    train = near_copies(count, target=[f"target {i}" for i in range(count * len(SPELLINGS))])
    train["second"] = [f"{' ' * (i % 3)}Second {'A' if i % 2 else 'a'}  " for i in range(len(train))]
    splits = split(DataConfig(train=train, test_share=0.2, validation_share=0.2), **task)
    numbers = {
        name: [int(text.split()[-1].strip("\u2028 ")) for text in rows.columns["text"]] for name, rows in splits.rows.items()
    }
    assert sum(map(len, numbers.values())) == len(train)
    assert sum(len(set(part)) for part in numbers.values()) == count
    assert all(numbers.values())
    copies = count * (len(SPELLINGS) - 1)
    assert (
        f"train: {copies} of {len(train)} rows repeat the input of another row ({copies} of them with another case, spacing or "
        "Unicode form)"
    ) in splits.notes


def test_near_copies_in_given_splits_are_counted() -> None:
    train = pd.DataFrame({"text": ["One text", "Two", "three", "four"], "label": [*"aabb"]})
    test = pd.DataFrame({"text": ["one  text", "Two", "THREE ", "five", "Two"], "label": [*"aabbb"]})
    notes = split(DataConfig(train=train, test=test, validation_share=0)).notes
    assert notes == [
        "test: 1 of 5 rows repeat the input of another row",
        "warning: 4 of 5 rows of test have an input that also occurs in train (2 of them with another case, spacing or Unicode "
        "form); metrics on test will be too high",
    ]


def test_sides_of_a_pair_are_not_exchanged_or_run_together() -> None:
    train = pd.DataFrame({"text": ["a b", "q", "c"], "second": ["c", "q", "a b d"], "label": [*"xyx"]})
    train = train.iloc[[0, 1, 2, 1]]
    test = pd.DataFrame({"text": ["a", "A B ", "A b D"], "second": ["b c", " C", "c"], "label": [*"xyx"]})
    notes = split(DataConfig(train=train, test=test, validation_share=0), text_pair="second").notes
    assert [note.partition(" rows of test")[0] for note in notes] == [
        "train: 1 of 4 rows repeat the input of another row",
        "warning: 1 of 3",
    ]


def test_near_copies_of_unlabelled_rows_and_groups() -> None:
    train = frame(40, by=[f"Group {i // 4}" if i % 2 else f"group  {i // 4} " for i in range(40)])
    unlabelled = pd.DataFrame({"text": ["TEXT 1", "new", "New ", "text  39"]})
    splits = split(DataConfig(train=train, group="by", validation_share=0.2, unlabelled=unlabelled))
    assert texts(splits.rows["unlabelled"]) == ["new"]
    groups = [{int(text.split()[1]) // 4 for text in texts(splits.rows[name])} for name in ("train", "validation")]
    assert not groups[0] & groups[1]


def test_splits_without_near_copies_are_those_of_exact_keys() -> None:
    rows = [f"{word} {i}" for i, word in enumerate(["gut", "\u00fcbel", "\u4f60\u597d", "na\u00efve"] * 50)]
    train = pd.DataFrame({"text": rows, "label": [*"aaab"] * 50})
    strata = np.array([0, 0, 0, 1] * 50)
    rest, _ = split_off(from_columns({"text": rows}, "a"), 0.1, strata, fingerprints(rows), None, 3)
    assert texts(split(DataConfig(train=train), seed=3).rows["train"]) == [rows[i] for i in rest]


PROGRAM = """
import numpy as np
from nlp_transfer.data.splits import split_off
from nlp_transfer.data.sources.rows import from_columns
from nlp_transfer.data.sources.text_columns import fingerprints, normalized
words = [f"text {i * 7 % 40}" for i in range(100)]
rows = from_columns({"text": words, "by": [f"author {i // 3}" for i in range(100)]}, "t")
strata = np.arange(100) % 3
for group in (None, "by"):
    print(split_off(rows, 0.3, strata, fingerprints(words), group, 5)[1].tolist())
"""


def test_split_is_the_same_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's hashes of text differ from process to process."""
    found = set()
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        found.add(subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout)
    assert len(found) == 1
    assert len(found.pop()) > 40


@pytest.mark.parametrize(
    ("rows", "labels", "validation"),
    [(199, "ab", 20), (190, "ab", 0), (200, "aaab", 20), (290, "abcdefghij", 0), (300, "abcdefghij", 30), (10, "ab", 0)],
)
def test_validation_of_a_few_rows_is_not_made_by_itself(rows: int, labels: str, validation: int) -> None:
    """A tenth of train, if that is 20 rows and three for each label."""
    splits = split(DataConfig(train=frame(rows, labels), validation_share="auto"))
    assert {name: len(part) for name, part in splits.rows.items()} == (
        {"train": rows - validation, "validation": validation} if validation else {"train": rows}
    )
    assert splits.validation_share == (0.1 if validation else 0)
    note = next((note for note in splits.notes if note.startswith("validation: none; ")), "")
    assert bool(note) is not bool(validation)
    assert validation or all(part in note for part in (f"of {rows} rows is {round(rows / 10)} rows", "data.validation_share"))
    assert contents_equal(splits, split(DataConfig(train=frame(rows, labels))))


def contents_equal(first: Splits, second: Splits) -> bool:
    return {name: texts(rows) for name, rows in first.rows.items()} == {name: texts(rows) for name, rows in second.rows.items()}


@pytest.mark.parametrize(("name", "least"), [("regression", 200), ("translation", 200)])
def test_tasks_without_classes_need_twenty_rows(name: str, least: int) -> None:
    columns = {"source": "text", "target": "other"} if name == "translation" else {}
    for rows, made in ((least - 10, False), (least, True)):
        table = frame(rows, "0123456", other=[f"other {i}" for i in range(rows)])
        assert ("validation" in split(DataConfig(train=table), name=name, **columns).rows) is made


@pytest.mark.parametrize("setting", [{"early_stopping": 2}, {"best_metric": "loss"}, {"evaluate_every": 5}])
def test_a_small_validation_split_is_made_where_it_is_asked_for(setting: dict[str, Any]) -> None:
    explicit = split(DataConfig(train=frame(40), validation_share=0.1))
    task = task_from({"name": "text_classification"})
    needed, _ = read_splits(DataConfig(train=frame(40)), task, TrainingConfig(**setting), 0)
    for splits in (explicit, needed, read_splits(DataConfig(train=frame(40)), task, TrainingConfig(), 0, True)[0]):
        assert {name: len(rows) for name, rows in splits.rows.items()} == {"train": 36, "validation": 4}
        assert sum(note.startswith("warning: validation: only 4 rows") for note in splits.notes) == 1
        assert splits.validation_share == 0.1


def test_a_label_with_one_row_is_learned_without_a_split() -> None:
    train = frame(40, "ab")
    train.loc[7, "label"] = "rare"
    for data in (
        {"validation": frame(10, "ab")},
        {"validation_share": 0},
        {"validation_share": 0, "test": frame(10, "ab")},
        {"shots": 1, "validation_share": 0.2},
        {},
    ):
        splits = split(DataConfig(train=train, **data))
        assert Counter(splits.rows["train"].columns["label"])["rare"] == 1, data
    for share in ("validation_share", "test_share"):
        with refused("row 8, column 'label': the only row with the label 'rare'", f"data.{share}: 0"):
            split(DataConfig(train=train, **{share: 0.2}))


def test_a_label_whose_other_row_is_in_test_is_no_fault() -> None:
    labels = ["a"] * 10 + ["b", "b"]
    train = pd.DataFrame({"text": [f"text {i}" for i in range(12)], "label": labels})
    assert len(split(DataConfig(train=train, test_share=0.5, validation_share=0.3)).rows) == 3


@pytest.mark.parametrize("share", ["auto", 0.2])
def test_config_yaml_holds_the_share_and_repeats_the_run(share: Any, tiny: dict[str, Path], tmp_path: Path) -> None:
    source = write(tmp_path / "train.csv", sentiment_rows(40))
    first = run(
        model=tiny["bert"], data={"train": source, "validation_share": share}, output_dir=tmp_path / "first",
        training={"epochs": 2, "batch_size": 8, "learning_rate": 1e-3},
    )  # fmt: skip
    document = yaml.safe_load((tmp_path / "first/config.yaml").read_text())
    assert document["data"]["validation_share"] == (0 if share == "auto" else share)
    assert set(first.metrics) == (set() if share == "auto" else {"validation"})
    again = fine_tune(document, output_dir=str(tmp_path / "again"))
    assert again.metrics == first.metrics
    assert again.result["train"]["examples"] == first.result["train"]["examples"] == 2 * (40 if share == "auto" else 32)
    weights = [load_file(tmp_path / name / "model/model.safetensors") for name in ("first", "again")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    if share == "auto":
        fine_tune(
            document | {"data": {"train": str(source), "validation": str(source)}, "provenance": {}},
            output_dir=str(tmp_path / "last"), training=document["training"] | {"evaluate_every": 10},
        )  # fmt: skip
        other = load_file(tmp_path / "last/model/model.safetensors")
        assert all(torch.equal(weights[0][name], other[name]) for name in other), "evaluated once, at the end"


def test_settings_that_need_validation_are_reported(
    tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(text, " ".join(reversed(text.split()))) for text, _ in sentiment_rows(16)]
    data = {"train": write(tmp_path / "pairs.csv", rows, ("source", "target")), "validation_share": None}
    task = {"name": "translation", "translated_rows": 7}
    run(model=tiny["bert"], data=data, task=task, training={"max_steps": 1}, output_dir=tmp_path / "run")
    assert "no effect: task.translated_rows (there is no validation split)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["few_shot", "prototypes"])
def test_strategies_that_compare_rows_learn_from_one_row_a_label(name: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    train, test = (write(tmp_path / f"{role}.csv", sentiment_rows(rows)) for role, rows in (("train", 2), ("test", 12)))
    data = {"train": train, "test": test, "validation_share": None}
    done = run(model=tiny["bert"], data=data, strategy=name, training={"epochs": 1}, output_dir=tmp_path / "run")
    assert set(done.metrics) == {"test"}
