"""Error analysis, and the report of a run: what it computes, shows, and refuses."""

import html
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.font_manager import FontProperties, findfont, fontManager
from sklearn.metrics import brier_score_loss, confusion_matrix, matthews_corrcoef, precision_recall_fscore_support, roc_auc_score

from nlp_transfer.evaluation.error_analysis import (
    EMPTY,
    MAX_SLICES,
    OTHER_VALUES,
    class_scores,
    column_slices,
    largest_confusions,
    metric_intervals,
    quantile_slices,
    reliability_and_brier,
    slice_metric,
    worst_rows,
)
from nlp_transfer.evaluation.metrics.classification_metrics import roc_auc
from nlp_transfer.evaluation.metrics.label_scorer import LabelScorer
from nlp_transfer.evaluation.resampling import ScoredSplit
from nlp_transfer.hub.package_contents import is_allowed
from nlp_transfer.report.error_sections import show_value
from nlp_transfer.report.label_fonts import characters_of, drawable, find_fonts
from nlp_transfer.report.rendering import breakable
from nlp_transfer.report.run_records import RunRecords
from nlp_transfer.report.run_report import write_report
from nlp_transfer.report.slice_columns import slice_columns
from tests.builders import columns, command, edit, refused, succeed, write

LABELS = ("a", "b", "c")
SCORER = LabelScorer("accuracy", LABELS, LABELS)
VOID = {"meta", "link", "br", "hr", "img", "input", "wbr"}


@pytest.fixture
def split() -> ScoredSplit:
    """Random predictions of three labels for 200 rows."""
    generator = np.random.default_rng(0)
    scores = generator.dirichlet([0.5] * 3, 200)
    true = np.where(generator.random(200) < 0.6, scores.argmax(1), generator.integers(3, size=200))
    predictions = {"prediction": scores.argmax(1), "scores": scores, "confidence": scores.max(1)}
    return ScoredSplit(predictions, {"labels": true})


class Page(HTMLParser):
    """Reads a page: whether its elements are nested correctly, its ids, links, references and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        source = path.read_text(encoding="utf-8")
        self.feed(source)
        assert self.open == []
        self.size = len(source.encode())
        self.has_urls = bool(re.search(r"url\((?!#)|@import|\b(src|srcset)=", source))

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        named = dict(attrs)
        self.ids += [named["id"]] if "id" in named else []
        self.links += [named[name] for name in ("href", "xlink:href", "src") if name in named]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_class_scores_agree_with_sklearn(split: ScoredSplit) -> None:
    found = {score.name: score for score in class_scores(SCORER, split)}
    expected = precision_recall_fscore_support(split.references["labels"], split.predictions["prediction"])
    for i, name in enumerate(LABELS):
        score = found[name]
        assert (score.precision, score.recall, score.f1, score.true) == pytest.approx([values[i] for values in expected])


def test_confusions_agree_with_sklearn(split: ScoredSplit) -> None:
    expected = confusion_matrix(split.references["labels"], split.predictions["prediction"])
    assert (SCORER.confusions(split.predictions, split.references) == expected).all()
    np.fill_diagonal(expected, 0)
    largest = largest_confusions(SCORER, split, 3)
    assert [item.rows for item in largest] == sorted(expected.ravel().tolist(), reverse=True)[:3]
    assert all(item.rows == expected[LABELS.index(item.true), LABELS.index(item.predicted)] for item in largest)


def test_mcc_from_sums_agrees_with_sklearn(split: ScoredSplit) -> None:
    found = metric_intervals(SCORER, split, ["mcc", "auc"])
    assert found["mcc"].value == pytest.approx(matthews_corrcoef(split.references["labels"], split.predictions["prediction"]))
    assert all(estimate.low < estimate.value < estimate.high for estimate in found.values())


def test_all_metrics_are_computed_once(split: ScoredSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is not among them and AUC is resampled alone; in a translation, `compute` itself resamples."""
    original, calls = LabelScorer.compute, []
    monkeypatch.setattr(LabelScorer, "compute", lambda *arguments: calls.append(1) or original(*arguments))
    found = metric_intervals(SCORER, split, ["loss", "auc"])
    assert list(found) == ["auc"]
    true, scores = split.references["labels"], split.predictions["scores"].round(1)
    assert found["auc"].value == pytest.approx(roc_auc_score(true, split.predictions["scores"], multi_class="ovr"))
    assert roc_auc(scores, true) == pytest.approx(np.mean([roc_auc_score(true == i, scores[:, i]) for i in range(3)])), "ties"
    assert metric_intervals(SCORER, split, ["loss"]) == {}
    assert len(calls) == 2


def test_calibration_agrees_with_its_definition(split: ScoredSplit) -> None:
    found = reliability_and_brier(SCORER, split)
    assert found is not None
    reliability, brier = found
    confidence, true = split.predictions["confidence"], split.references["labels"]
    correct = split.predictions["prediction"] == true
    bins = [(confidence >= low) & (confidence < low + 1 / 15) for low in np.arange(15) / 15]
    assert reliability.error == pytest.approx(sum(abs(correct[rows].sum() - confidence[rows].sum()) for rows in bins) / 200)
    assert brier == pytest.approx(brier_score_loss(true, split.predictions["scores"], scale_by_half=False))


def test_worst_rows_are_confident_mistakes(split: ScoredSplit) -> None:
    rows, sizes = worst_rows(SCORER, split, 10)
    assert (split.predictions["prediction"][rows] != split.references["labels"][rows]).all()
    assert (sizes == split.predictions["confidence"][rows]).all()
    assert (np.diff(sizes) <= 0).all()


def test_slices_cover_all_rows(split: ScoredSplit) -> None:
    lengths = np.random.default_rng(0).integers(1, 90, 200)
    slices = slice_metric(SCORER, split, "accuracy", quantile_slices(lengths))
    accuracy = SCORER.compute(split.predictions, split.references)["accuracy"]
    assert sum(part.rows for part in slices) == 200
    assert sum(part.rows * part.estimate.value for part in slices) / 200 == pytest.approx(accuracy)
    assert quantile_slices(np.array([7, 7, 7])).names == ["7"]


def test_values_of_columns_become_slices() -> None:
    slicing = column_slices(["x", None, "y", "x"])
    assert [slicing.names[i] for i in slicing.slice_of] == ["x", EMPTY, "y", "x"]
    many = column_slices([f"value {i}" for i in range(50)] + ["value 0"])
    assert len(many.names) == MAX_SLICES
    assert many.names[0] == "value 0"
    assert many.names[-1] == OTHER_VALUES
    assert all(" to " in name for name in column_slices([str(i) for i in range(100)]).names)


TASKS: dict[str, dict[str, Any]] = {
    "text_classification": {"text": "text", "label": "label"},
    "multi_label": {"text": "text", "label": "tags", "separator": "|"},
    "regression": {"text": "text", "label": "score"},
    "token_classification": {"text": "words", "label": "words"},
}


@pytest.mark.parametrize("name", ["text_classification", "multi_label", "regression"])
def test_predictions_are_read_as_they_were(name: str, train: Callable[..., Any], tmp_path: Path) -> None:
    """The arrays of the run are those of the file, so that all metrics can be computed from the file."""
    data = {"train": write(tmp_path / "train.csv", columns(60)), "test": write(tmp_path / "test.csv", columns(30, seed=1))}
    done = train(data=data, task={"name": name, **TASKS[name]}, with_report=True)
    records = RunRecords.read(done.output_dir)
    assert records.predictions is not None
    scored = records.predictions.scored
    assert (scored.predictions["prediction"] == done.predictions["test"]["prediction"]).all()
    assert (scored.references["labels"] == done.references["test"]["labels"]).all()
    computed = records.scorer.compute(scored.predictions, scored.references)
    recorded = {key: value for key, value in done.metrics["test"].items() if key in computed}
    assert computed == pytest.approx(recorded, abs=1e-7)  # probabilities are rounded in the file
    check_page(done.output_dir / "report.html")
    card = (done.output_dir / "model/README.md").read_text(encoding="utf-8")
    plots = [path.name for path in (done.output_dir / "model").glob("*.png")]
    assert plots
    assert all(is_allowed(plot, card) for plot in plots)


def check_page(path: Path) -> Page:
    """Check that a page is one file without requests, and that its links have targets."""
    page = Page(path)
    assert page.size < 3_000_000
    assert not page.has_urls
    assert all(link[0] == "#" and link[1:] in page.ids for link in page.links)
    assert len(page.ids) == len(set(page.ids))
    assert "default-src 'none'" in path.read_text(encoding="utf-8")
    return page


@pytest.fixture
def finished(train: Callable[..., Any], tmp_path: Path) -> Any:
    """A finished run without a report, whose test file has a column `kind`, and a text with markup."""
    table = columns(40, "text", "label", seed=2)
    table["text"][0] = "good <script>alert(1)</script> & <b>"
    table["kind"] = ["long" if len(text) > 30 else "short" for text in table["text"]]
    train_file = write(tmp_path / "train.csv", columns(60, "text", "label"))
    return train(data={"train": train_file, "test": write(tmp_path / "test.csv", table)})


def test_report_shows_slices_and_escapes_texts(finished: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    arguments = ["report", finished.output_dir, "--slice", "kind", "--slice", "reference", "--output", path]
    printed, output = succeed(*arguments)
    assert printed.strip() == str(path)
    assert "error (" not in output
    _, output = succeed(*arguments, "--overwrite", "--verbose")
    page = check_page(path)
    assert {"metrics", "data", "classes", "errors", "slices", "calibration", "cost", "settings"} <= set(page.ids)
    assert "accuracy by kind" in page.text
    assert "accuracy by reference" in page.text
    assert "<script" not in path.read_text(encoding="utf-8")
    assert "confused" in output or "error (" in output


def test_slices_are_matched_by_row(finished: Any, tmp_path: Path) -> None:
    records = RunRecords.read(finished.output_dir)
    assert records.predictions is not None
    kinds = slice_columns(records, ["kind"])["kind"]
    assert list(kinds) == ["long" if len(text) > 30 else "short" for text in records.predictions.columns["text"]]
    write(tmp_path / "test.csv", columns(40, "text", "label", seed=3) | {"kind": ["x"] * 40})
    with refused("--slice", "test.csv"):
        slice_columns(RunRecords.read(finished.output_dir), ["kind"])


def test_several_runs_are_shown_side_by_side(finished: Any, tmp_path: Path) -> None:
    records = RunRecords.read(finished.output_dir)
    write_report(tmp_path / "page.html", [records, records])
    assert check_page(tmp_path / "page.html").text.count(f"{records.name} (2): test") == 1


def test_a_run_without_some_files_has_a_report(finished: Any) -> None:
    for name in ("predictions/test.parquet", "log.jsonl", "data_facts.json", "config.yaml"):
        (finished.output_dir / name).unlink()
    succeed("report", finished.output_dir)
    assert {"metrics", "cost"} <= set(check_page(finished.output_dir / "report.html").ids)


def test_report_refuses_what_it_cannot_show(finished: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write(other / "result.json", {})
    edit(other / "result.json", task={"name": "regression", "text": "text", "label": "label"})
    taken = write(tmp_path / "taken.html", "mine")
    for arguments, facts in (
        ([tmp_path / "none"], ["none", "result.json"]), ([tmp_path], [str(finished.output_dir), str(other)]),
        ([finished.output_dir, other], ["different tasks", "regression"]),
        ([finished.output_dir, "--slice", "missing"], ["missing", "label"]),
        ([finished.output_dir, "--output", taken], ["taken.html", "--overwrite"]),
        ([finished.output_dir, "--output", tmp_path / "page.pdf"], ["page.pdf", ".html"]),
    ):  # fmt: skip
        status, _, messages = command("report", *arguments)
        assert status == 2, messages
        assert all(fact in messages for fact in facts), messages
    assert taken.read_text(encoding="utf-8") == "mine"


def test_inputs_with_different_labels_are_reported(train: Callable[..., Any], tmp_path: Path) -> None:
    table = columns(60, "text", "label")
    table = {"text": [*table["text"], table["text"][0].upper()], "label": [*table["label"], table["label"][1]]}
    done = train(data={"train": write(tmp_path / "train.csv", table)})
    facts = RunRecords.read(done.output_dir).facts
    assert facts["conflict_inputs"] == 1
    assert set(facts["conflicts"][0]["labels"].split(", ")) == {"positive", "negative"}
    assert facts["splits"]["train"]["rows"] == 61
    assert sum(facts["classes"].values()) == 61


def test_words_are_shown_and_measured_as_text(train: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{"words": ["Ann", "saw", f"Bob{i}"], "tags": ["B-person", "O", "B-person"]} for i in range(30)]
    data = {"train": write(tmp_path / "train.jsonl", rows), "test": write(tmp_path / "test.jsonl", rows[:9])}
    task = {"name": "token_classification", "tokens": "words", "tags": "tags"}
    records = RunRecords.read(train(data=data, task=task, with_report=True).output_dir)
    assert records.inputs(0) == ["Ann saw Bob0"]
    assert set(records.lengths) == {len("Ann saw Bob0")}
    assert "['Ann'" not in check_page(records.folder / "report.html").text


def test_runs_on_different_rows_are_not_compared(finished: Any, tmp_path: Path) -> None:
    first, other = RunRecords.read(finished.output_dir), replace(RunRecords.read(finished.output_dir), label="other")
    assert other.predictions is not None
    write_report(tmp_path / "same.html", [first, other])
    assert "cannot be compared" not in check_page(tmp_path / "same.html").text
    other.predictions.columns["text"][0] = "another text"  # type: ignore[index]
    write_report(tmp_path / "other.html", [first, other])
    assert "cannot be compared" in check_page(tmp_path / "other.html").text


def test_counts_and_values_have_no_needless_decimals(finished: Any) -> None:
    records = RunRecords.read(finished.output_dir)
    write_report(records.folder / "report.html", [records])
    text = check_page(records.folder / "report.html").text
    assert f"\n{records.result['train']['total_parameters']:,}\n" in text.replace("parameters", "\n")
    assert "precision_micro, recall_micro" in text  # equal to accuracy, so listed once
    assert [show_value(value) for value in (0.4, 3.0, 1e-7, 2.34567, "")] == ["0.4", "3", "1e-07", "2.3457", "(none)"]


def test_sizes_of_errors_are_named(train: Callable[..., Any], tmp_path: Path) -> None:
    table = write(tmp_path / "train.csv", columns(60, "text", "tags"))
    task = {"name": "multi_label", "label": "tags"}
    done = train(data={"train": table, "test": table}, task=task, training={"max_steps": 1})
    _, output = succeed("report", done.output_dir, "--verbose")
    assert "error (certainty of the worst wrong label 0." in output


def test_labels_in_png_files_have_glyphs_or_numbers(
    train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without further fonts, labels that DejaVu Sans cannot draw are numbers, which the model card explains."""
    names = ["cat", "猫", "\U0001f436 dog"]
    families, missing = find_fonts(names)
    drawn, _ = drawable(names, missing)
    known = set().union(*(characters_of(findfont(FontProperties(family=[family]))) for family in families))
    assert all(set(name) <= known for name in drawn)
    assert drawn[0] == "cat"
    monkeypatch.setattr(fontManager, "ttflist", [entry for entry in fontManager.ttflist if entry.name.startswith("DejaVu")])
    assert drawable(names, find_fonts(names)[1]) == (["cat", "#2", "#3"], "#2: 猫, #3: \U0001f436 dog")
    rows = [(f"text {i % 7} {i}", names[i % 3]) for i in range(60)]
    data = {"train": write(tmp_path / "train.csv", rows), "test": write(tmp_path / "test.csv", rows[:30])}
    done = train(data=data, training={"max_steps": 30, "learning_rate": 1e-2}, with_report=True)
    card = (done.output_dir / "model/README.md").read_text(encoding="utf-8")
    assert "#2: 猫, #3: \U0001f436 dog" in html.unescape(card).replace("\\", "")
    assert "猫" in (done.output_dir / "report.html").read_text(encoding="utf-8")
    assert (done.output_dir / "model/plot_confusions.png").is_file()


def test_labels_break_after_underscores() -> None:
    assert breakable("a_b<i>") == "a_<wbr>b&lt;i&gt;"
