"""Token classification through the real commands: from each format of words, texts and CoNLL files to each format."""

import json
from pathlib import Path
from typing import Any

import pytest

from nlp_transfer import load_predictor
from tests.builders import command, printed, read_lines, read_table, refused, run, succeed, write
from tests.helpers.entities import sentences

pytestmark = pytest.mark.process

ROWS = sentences(160)
TRAINING = {"max_steps": 60, "learning_rate": 0.01}


def table(path: Path, rows: list[dict[str, Any]], *names: str) -> Path:
    """Columns of the rows; lists are JSON in CSV files."""
    cells = {name: [json.dumps(row[name]) if path.suffix == ".csv" and isinstance(row[name], list) else row[name] for row in rows]
             for name in names}  # fmt: skip
    return write(path, cells)


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_entities_of_texts_in_every_format(
    ending: str, tiny: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A model that was trained on one format predicts and scores the others; its own predictions are all right."""
    train = table(tmp_path / f"train{ending}", ROWS[:120], "text", "spans")
    config = write(tmp_path / "run.yaml", {
        "model": str(tiny["bert"]), "data": {"train": str(train), "validation_share": 0.1}, "training": TRAINING,
        "task": {"name": "token_classification", "text": "text"}, "output_dir": str(tmp_path / "run"),
    })  # fmt: skip
    succeed("train", config)
    texts = [row["text"] for row in ROWS[120:]]
    expected = [row["prediction"] for row in load_predictor(tmp_path / "run")(texts)]
    f1 = None
    for other in (".csv", ".jsonl", ".parquet"):
        source, output = table(tmp_path / f"in{other}", ROWS[120:], "text", "spans"), tmp_path / f"out{other}"
        succeed("predict", tmp_path / "run", "--input", source, "--output", output)
        written = [row["prediction"] for row in read_table(output)]
        assert list(map(json.loads, written) if other == ".csv" else written) == expected
        metrics = printed("evaluate", tmp_path / "run", "--data.test", source)
        assert metrics["f1"] > 0.9
        assert f1 in (None, metrics["f1"])
        f1 = metrics["f1"]
        assert printed("evaluate", tmp_path / "run", "--data.test", output, "--task.spans", "prediction")["f1"] == 1.0
    lines = write(tmp_path / "in.txt", texts)
    succeed("predict", tmp_path / "run", "--input", lines, "--output", tmp_path / "out.txt")
    assert list(map(json.loads, read_lines(tmp_path / "out.txt"))) == expected
    capfd.readouterr()
    succeed("predict", tmp_path / "run", texts[0])
    assert json.loads(capfd.readouterr().out)["prediction"] == expected[0]
    scored = read_table(tmp_path / "run/predictions/validation.parquet")
    assert {"text", "reference", "prediction"} <= scored[0].keys()
    assert [entity["label"] for row in scored for entity in row["reference"]]


@pytest.mark.parametrize("ending", [".conll", ".csv"])
def test_words_from_conll_and_csv_files(ending: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    sources = {}
    for name, rows in (("train", ROWS[:120]), ("test", ROWS[120:])):
        if ending == ".conll":
            blocks = ["\n".join(map("{}\t{}".format, row["tokens"], row["tags"])) for row in rows]
            sources[name] = write(tmp_path / f"{name}.conll", "\n\n".join(blocks) + "\n")
        else:
            cells = {column: [" ".join(row[column]) for row in rows] for column in ("tokens", "tags")}
            sources[name] = write(tmp_path / f"{name}.csv", cells)
    done = run(model=tiny["bert"], data=sources, task="token_classification", training=TRAINING, output_dir=tmp_path / "run")
    assert done.result["metrics"]["test"]["f1"] > 0.9
    metrics = printed("evaluate", done.output_dir, "--data.test", sources["test"])
    assert metrics["f1"] == pytest.approx(done.result["metrics"]["test"]["f1"])
    output = tmp_path / "out.jsonl"
    succeed("predict", done.output_dir, "--input", sources["test"], "--output", output)
    expected = load_predictor(done.output_dir)([row["tokens"] for row in ROWS[120:]])
    assert [row["prediction"] for row in read_table(output)] == [row["prediction"] for row in expected]


def test_bad_rows_are_refused_or_skipped(tiny: dict[str, Path], tmp_path: Path) -> None:
    rows = [{"tokens": row["tokens"], "tags": row["tags"]} for row in ROWS[:40]]
    rows[7]["tags"] = rows[7]["tags"][1:]
    rows[11]["tags"] = ["B", *rows[11]["tags"][1:]]
    source = write(tmp_path / "train.jsonl", rows)
    settings: dict[str, Any] = {"model": tiny["bert"], "task": "token_classification", "output_dir": tmp_path / "run"}
    with refused("train.jsonl", "row 8", "row 12", "'tags'", "'B'", "allowed"):
        run(data={"train": source}, **settings)
    assert not (tmp_path / "run").exists()
    done = run(data={"train": source, "on_bad_rows": "skip"}, **settings)
    skipped = read_table(done.output_dir / "skipped_rows.csv")
    assert [row["row"] for row in skipped] == ["8", "12"]


def test_predicted_rows_may_be_bad(tiny: dict[str, Path], tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", ROWS[:20])
    run(model=tiny["bert"], data={"train": train}, task="token_classification", output_dir=tmp_path / "run")
    source = write(tmp_path / "in.jsonl", [{"tokens": ["a"]}, {"tokens": []}, {"tokens": ["a", 1]}])
    status, _, output = command("predict", tmp_path / "run", "--input", source, "--output", tmp_path / "out.jsonl", "--notes")
    assert status == 0, output
    written = read_table(tmp_path / "out.jsonl")
    assert [row["prediction"] is None for row in written] == [False, True, True]
    assert [bool(row["note"]) for row in written] == [False, True, True]
    source = write(tmp_path / "in.conll", "a\tO\nb\n\na\tO\n")
    _, messages = succeed("predict", tmp_path / "run", "--input", source, "--output", tmp_path / "lines.jsonl")
    assert "line 2" in messages
    assert [row["prediction"] is None for row in read_table(tmp_path / "lines.jsonl")] == [True, False]


def test_strategies_are_compared_by_entities(tiny: dict[str, Path], tmp_path: Path) -> None:
    config = write(tmp_path / "run.yaml", {
        "model": str(tiny["bert"]), "task": {"name": "token_classification"}, "output_dir": str(tmp_path / "out"),
        "data": {name: str(write(tmp_path / f"{name}.jsonl", sentences(40, i))) for i, name in enumerate(("train", "test"))},
        "training": {"max_steps": 2},
    })  # fmt: skip
    succeed("compare", config, "--strategies", "full", "bitfit", "--seeds", 0, 1)
    summary = tmp_path / "out-comparison/comparison.csv"
    assert {row["strategy"] for row in read_table(summary)} >= {"full", "bitfit"}
