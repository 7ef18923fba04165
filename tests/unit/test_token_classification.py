"""Token classification: tags and entities, words and tokens, windows, metrics, cells, and models of other programs."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import accuracy_score, classification_report, f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForTokenClassification, AutoTokenizer, CanineTokenizer, PreTrainedTokenizerFast

from nlp_transfer import load_predictor
from nlp_transfer.data.sources import read_rows
from nlp_transfer.data.sources.in_memory import read_inputs
from nlp_transfer.data.sources.rows import Rows, from_columns
from nlp_transfer.data.token_cache import cached_table
from nlp_transfer.data.tokens import as_objects, encode_rows
from nlp_transfer.settings.schema import DataConfig, TrainingConfig
from nlp_transfer.tasks import task_from
from nlp_transfer.tasks.token_classification.entities import find_entities, split_tag, split_words, write_tags
from nlp_transfer.tasks.token_classification.entity_scorer import EntityScorer
from nlp_transfer.tasks.token_classification.word_tokens import align_words
from nlp_transfer.utils.errors import Problems, UserError
from tests.builders import prepared, refused, run, write
from tests.helpers.entities import sentences

TYPES = ("person", "creative-work", "O")
TEXTS = ("Zoë met  Kim\u00a0Lee in München, didn't she?", "東京に行く 北京", "a\u200b b हिन्दी में", "x" * 90 + " end")


# Tags and entities


def tag_lists(prefixes: str) -> Any:
    tag = st.one_of(st.just("O"), st.builds("{}-{}".format, st.sampled_from(prefixes), st.sampled_from(TYPES)))
    return st.lists(tag, max_size=12)


@settings(max_examples=300, deadline=None)
@given(st.one_of(tag_lists("BI"), tag_lists("BIES")))
def test_entities_are_those_of_seqeval(tags: list[str]) -> None:
    spans = find_entities([split_tag(tag) or ("", "") for tag in tags])
    assert spans == [(label, start, end + 1) for label, start, end in get_entities(tags)]
    for scheme in ("IOB2", "BIOES"):
        assert find_entities(write_tags(spans, len(tags), scheme)) == spans, scheme


def as_rows(tags: list[list[str]]) -> np.ndarray:
    spans = [find_entities([split_tag(tag) or ("", "") for tag in row]) for row in tags]
    return as_objects([[{"label": label, "start": start, "end": end, "text": ""} for label, start, end in row] for row in spans])


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(["BI", "BIES"]))
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_metrics_are_those_of_seqeval(data: Any, prefixes: str) -> None:
    true = data.draw(st.lists(tag_lists(prefixes).filter(bool), min_size=1, max_size=5))
    predicted = [[*data.draw(tag_lists(prefixes)), *["O"] * len(row)][: len(row)] for row in true]
    right = [sum(a == b for a, b in zip(*pair, strict=True)) for pair in zip(true, predicted, strict=True)]
    predictions = {"prediction": as_rows(predicted), "right": np.array(right), "of": np.array(list(map(len, true)))}
    references = {"references": as_rows(true)}
    scorer = EntityScorer("f1", (), TYPES)
    metrics = scorer.compute(predictions, references)
    options: Any = {"zero_division": 0}
    assert metrics["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    if any(len(row) for row in [*references["references"], *predictions["prediction"]]):
        assert metrics["precision"] == pytest.approx(precision_score(true, predicted, **options))
        assert metrics["recall"] == pytest.approx(recall_score(true, predicted, **options))
        assert metrics["f1"] == pytest.approx(f1_score(true, predicted, **options))
        report = classification_report(true, predicted, output_dict=True, **options)
        assert metrics["f1_macro"] == pytest.approx(report["macro avg"]["f1-score"])
        by_type = {name.removeprefix("f1/"): value for name, value in metrics.items() if name.startswith("f1/")}
        assert by_type == pytest.approx({name: report[name]["f1-score"] for name in TYPES if name in report})
    for name, value in metrics.items():
        sums = scorer.sums(name, predictions, references)
        assert sums is not None
        assert sums[1](sums[0].sum(0, keepdims=True))[0] == pytest.approx(value), name
        assert scorer.higher_is_better(name)
        assert scorer.bounds(name) == (0.0, 1.0)


def test_words_of_a_text() -> None:
    words = ["".join(text[start:end]) for text in TEXTS[:3] for start, end in split_words(text)]
    assert words == (
        ["Zoë", "met", "Kim", "Lee", "in", "München", ",", "didn", "'", "t", "she", "?", *"東京に行く北京", "a", "\u200b", "b",
         "हिन्दी", "में"]
    )  # fmt: skip


# Words and tokens


def trained_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    if kind == "wordpiece":
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=20))
        backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=150, special_tokens=special)
    elif kind == "byte-level":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, initial_alphabet=alphabet)
    else:
        backend = Tokenizer(models.Unigram())
        backend.normalizer, backend.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="[UNK]")
    backend.train_from_iterator([*TEXTS, *(" ".join(row["tokens"]) for row in sentences(40))], trainer)
    ids = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def word_tokens(tokenizer: Any, texts: list[str], words: list[Any], limit: int, stride: int) -> tuple[list[Any], Any]:
    """For each row, the characters of the token that stands for each word; and the aligned words."""
    aligned = align_words(tokenizer, texts, words, limit, stride, {"input_ids": 0}, merge=False)
    encoded = tokenizer(texts, truncation=True, max_length=limit, stride=stride, return_overflowing_tokens=True,
                        return_offsets_mapping=True)  # fmt: skip
    rows = []
    for row in range(len(texts)):
        spans = [span for i, of in enumerate(encoded["overflow_to_sample_mapping"]) if of == row
                 for span in encoded["offset_mapping"][i]]  # fmt: skip
        target = aligned.columns["target_word"][row]
        assert sum(aligned.columns["windows"][row]) == len(spans) == len(target)
        chosen = [(word, span) for word, span in zip(target, spans, strict=True) if word >= 0]
        assert len(chosen) == len({word for word, _ in chosen}), "one token stands for a word"
        rows.append(dict(chosen))
    return rows, aligned


@pytest.mark.parametrize("kind", ["wordpiece", "byte-level", "sentencepiece"])
@pytest.mark.parametrize(("limit", "stride"), [(512, 0), (16, 0), (16, 4), (11, 8), (7, 1)])
def test_first_token_stands_for_its_word(kind: str, limit: int, stride: int) -> None:
    tokenizer, texts = trained_tokenizer(kind), list(TEXTS)
    words = [split_words(text) for text in texts]
    rows, aligned = word_tokens(tokenizer, texts, words, limit, stride)
    straight, _ = word_tokens(tokenizer, texts, words, 10_000, 0)
    assert rows == straight, "windows change nothing"
    assert max(aligned.columns["windows"].values) <= limit
    for text, spans, found in zip(texts, words, rows, strict=True):
        for word, (start, end) in found.items():
            first = start + len(text[start:end]) - len(text[start:end].lstrip())
            assert spans[word][0] <= first < spans[word][1]
            assert first == spans[word][0] or kind == "wordpiece", "the word begins with this token"


def test_the_window_with_most_context_counts() -> None:
    tokenizer = trained_tokenizer("wordpiece")
    text = " ".join("a" for _ in range(20))
    aligned = align_words(tokenizer, [text], [split_words(text)], 12, 6, {"input_ids": 0}, merge=False)
    assert aligned.columns["windows"][0] == [12, 12, 12, 10]
    target = aligned.columns["target_word"][0]
    starts = np.cumsum([0, 12, 12, 12])
    found = [[word for word in target[start : start + 12] if word >= 0] for start in starts]
    assert found == [list(range(7)), list(range(7, 11)), list(range(11, 15)), list(range(15, 20))]


def test_words_that_share_a_token_are_one_in_a_text() -> None:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "東京": 1, "行": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[UNK]", unk_token="[UNK]")
    aligned = align_words(tokenizer, ["東京 行"], [split_words("東京 行")], 512, 0, {"input_ids": 0}, merge=True)
    assert aligned.units == [[(0, 2), (3, 4)]]
    assert aligned.columns["target_word"][0] == [0, 1]


# Cells


def table(columns: dict[str, Any]) -> Rows:
    return from_columns(columns, "train.jsonl")


@pytest.mark.parametrize(
    ("words", "tags", "facts"),
    [
        (["a", "b"], ["O"], ("'tags'", "1 tags", "2 words")),
        (["a", "b"], ["O", "B"], ("'tags'", "'B'", "B-person")),
        (["a", "b"], ["O", 1], ("'tags'", "1", "tag_names")),
        (["a", "b"], None, ("'tags'", "None", "list of tags")),
        (["a", "b"], ["O", "B-film"], ("'tags'", "'film'", "person", "labels")),
        ([], [], ("'tokens'", "[]", "at least one word", "a list of words")[:2]),
        (["a", ""], ["O", "O"], ("'tokens'", "''")),
        (["a", 3], ["O", "O"], ("'tokens'", "3")),
        (7, ["O"], ("'tokens'", "7", "list of words")),
        (["a\ud800", "b"], ["O", "O"], ("'tokens'", "allowed")),
    ],
)
def test_bad_words_and_tags_are_reported(words: Any, tags: Any, facts: tuple[str, ...]) -> None:
    task, problems = task_from({"name": "token_classification", "labels": ["person"]}), Problems()
    task.check(table({"tokens": [["x"], words], "tags": [["B-person"], tags]}), problems)
    with refused("train.jsonl", "row 2", "allowed", *facts):
        problems.raise_if_any()


@pytest.mark.parametrize(
    ("text", "spans", "facts"),
    [
        ("Kim", [{"start": 0, "end": 4, "label": "person"}], ("'spans'", "0 to 4", "3")),
        ("Kim", [{"start": 2, "end": 2, "label": "person"}], ("'spans'", "2 to 2")),
        (
            "Kim Lee",
            [{"start": 0, "end": 3, "label": "person"}, {"start": 2, "end": 7, "label": "person"}],
            ("overlap", "2 to 7"),
        ),
        ("Kim", [{"start": 0, "label": "person"}], ("'spans'", "start", "end")),
        ("Kim", "none", ("'spans'", "'none'", "[]")),
        ("Kim", [{"start": 0, "end": 3, "label": "film"}], ("'film'", "person")),
        (" ", [], ("'text'", "empty")),
        (["Kim"], [], ("'text'", "allowed: text")),
    ],
)
def test_bad_spans_are_reported(text: Any, spans: Any, facts: tuple[str, ...]) -> None:
    task, problems = task_from({"name": "token_classification", "text": "text", "labels": ["person"]}), Problems()
    task.check(table({"text": ["x", text], "spans": [[], spans]}), problems)
    with refused("train.jsonl", "row 2", *facts):
        problems.raise_if_any()


@pytest.mark.parametrize(
    ("settings", "training", "fact"),
    [
        ({"tags": "tokens"}, {}, "task.tags"),
        ({"tag_names": ["O", "person"]}, {}, "task.tag_names"),
        ({}, {"class_weights": "balanced"}, "training.class_weights"),
        ({}, {"focal_gamma": 2.0}, "training.focal_gamma"),
        ({}, {"oversample": 1.0}, "training.oversample"),
        ({}, {"augment": {"drop": 0.1}}, "training.augment"),
        ({"labels": ["person", "film"]}, {}, "'film'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], training: dict[str, Any], fact: str) -> None:
    task, problems = task_from({"name": "token_classification"} | settings), Problems()
    task.fit(table({"tokens": [["a"]], "tags": [["B-person"]]}), problems, TrainingConfig(**training))
    with refused(fact):
        problems.raise_if_any()


def test_cells_may_be_json_text_or_integers(tiny: dict[str, Path]) -> None:
    names = ["O", "B-good", "I-good", "B-bad", "I-bad"]
    rows = sentences(20)
    forms: dict[str, Any] = {
        "lists": lambda cells: cells, "JSON": json.dumps, "text": " ".join,
        "indices": lambda cells: [names.index(cell) if cell in names else cell for cell in cells],
        "text of indices": lambda cells: " ".join(str(names.index(cell)) if cell in names else cell for cell in cells),
    }  # fmt: skip
    tables = []
    for name, form in forms.items():
        task = {"name": "token_classification"} | ({"tag_names": names} if "indices" in name else {})
        data = table({column: [form(row[column]) for row in rows] for column in ("tokens", "tags")})
        tables.append(prepared(tiny["bert"], task, data=data).table)
    for other in tables[1:]:
        assert other.ragged["labels"].values.tolist() == tables[0].ragged["labels"].values.tolist()
        assert other.texts["references"].tolist() == tables[0].texts["references"].tolist()


def test_texts_with_spans_have_the_labels_of_their_words(tiny: dict[str, Path]) -> None:
    rows = sentences(20)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    words, texts = (
        prepared(tiny["bert"], {"name": "token_classification", "scheme": "BIOES"} | task, data=table(columns))
        for task in ({}, {"text": "text"})
    )
    assert words.task.outputs == ("O", *(f"{prefix}-{label}" for label in ("bad", "good") for prefix in "BIES"))  # type: ignore[attr-defined]
    assert words.table.ragged["labels"].values.tolist() == texts.table.ragged["labels"].values.tolist()
    entities = [entity for row in texts.table.texts["references"] for entity in row]
    assert [entity["text"] for entity in entities] == [
        entity["text"] for row in words.table.texts["references"] for entity in row
    ]
    assert entities == [span | {"text": row["text"][span["start"] : span["end"]]} for row in rows for span in row["spans"]]


def test_spans_inside_words_cover_the_words_and_are_counted() -> None:
    task = task_from({"name": "token_classification", "text": "text"})
    data = table({"text": ["unhappy Kim"], "spans": [[{"start": 2, "end": 7, "label": "mood"}]]})
    fitted = task.fit(data, Problems())
    assert any("1 of 1" in line and "inside a word" in line for line in fitted.describe(data).lines)
    assert fitted._tag_ids([("mood", 2, 7)], [(0, 7), (8, 11)]) == [1, 0]  # type: ignore[attr-defined]


# Models


@pytest.mark.model
def test_cached_tokens_equal_encoded_ones(tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = prepared(
        tiny["bert"], "token_classification", data=table({k: [r[k] for r in sentences(9)] for k in ("tokens", "tags")})
    )
    data = table({name: [row[name] for row in sentences(9)] for name in ("tokens", "tags")})
    for _ in range(2):  # written, then read
        cached = cached_table(
            data, lambda columns: made.task.encode(columns, made.checkpoint.tokenizer), {"k": 1}, "disk", "train"
        )
        for name, column in made.table.ragged.items():
            assert cached.ragged[name].values.tolist() == column.values.tolist(), name
        assert cached.texts["references"].tolist() == made.table.texts["references"].tolist()


@pytest.fixture(scope="module")
def trained(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run on words with tags, which has learned the entities."""
    folder = tmp_path_factory.mktemp("entities")
    for name, rows in (("train", sentences(120)), ("test", sentences(40, seed=1))):
        write(folder / f"{name}.jsonl", rows)
    return run(
        model=tiny["bert"], data={"train": folder / "train.jsonl", "test": folder / "test.jsonl"}, task="token_classification",
        training={"max_steps": 60, "learning_rate": 0.01, "label_smoothing": 0.1}, output_dir=folder / "run",
    )  # fmt: skip


@pytest.mark.model
def test_a_run_learns_entities(trained: Any) -> None:
    metrics = trained.result["metrics"]["test"]
    assert metrics["f1"] > 0.9
    assert {"precision", "recall", "f1_macro", "accuracy", "f1/good", "f1/bad"} <= metrics.keys()
    assert trained.result["plain"] is True
    card = (trained.output_dir / "model/README.md").read_text()
    assert "pipeline_tag: token-classification" in card
    assert "aggregation_strategy" in card


@pytest.mark.model
def test_words_and_texts_get_the_same_entities(trained: Any) -> None:
    rows = sentences(10, seed=2)
    words = load_predictor(trained.output_dir)([row["tokens"] for row in rows])
    texts = load_predictor(trained.output_dir, settings={"text": "text"})([row["text"] for row in rows])
    spaced = load_predictor(trained.output_dir)([row["text"] for row in rows])
    assert spaced == words
    for row, by_word, by_text in zip(rows, words, texts, strict=True):
        assert [entity["text"] for entity in by_word["prediction"]] == [entity["text"] for entity in by_text["prediction"]]
        for entity in by_word["prediction"]:
            assert " ".join(row["tokens"][entity["start"] : entity["end"]]) == entity["text"]
            assert 0 < entity["score"] <= 1
        for entity in by_text["prediction"]:
            assert row["text"][entity["start"] : entity["end"]] == entity["text"]


@pytest.mark.model
def test_long_texts_are_predicted_in_windows(trained: Any) -> None:
    words = [word for row in sentences(30, seed=3) for word in row["tokens"]]
    assert len(words) > 2 * 64
    [long] = load_predictor(trained.output_dir)([words])
    [short] = load_predictor(trained.output_dir, settings={"max_length": 20, "stride": 10})([words])
    assert max(entity["end"] for entity in long["prediction"]) > len(words) - 12
    kinds = [[(each["start"], each["label"]) for each in found["prediction"]] for found in (long, short)]
    assert len(set(kinds[0]) & set(kinds[1])) > 0.9 * len(kinds[0])


@pytest.mark.model
@pytest.mark.parametrize("stride", [63, 64])
def test_a_stride_without_room_is_refused(stride: int, trained: Any) -> None:
    with refused("task.stride", str(stride), "61"):
        load_predictor(trained.output_dir, settings={"stride": stride})


def test_tokenizers_without_character_offsets_are_refused() -> None:
    checkpoint: Any = SimpleNamespace(
        tokenizer=CanineTokenizer(), source=SimpleNamespace(name="canine-s"), max_length=64, head=None
    )
    with refused("canine-s", "CanineTokenizer", "fast tokenizer"):
        task_from({"name": "token_classification"}).prepare(checkpoint)


@pytest.mark.model
def test_other_labels_than_tags_are_refused(tiny: dict[str, Path], tmp_path: Path) -> None:
    model = AutoModelForTokenClassification.from_pretrained(tiny["bert"], id2label={0: "NOUN", 1: "VERB"})
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny["bert"]).save_pretrained(tmp_path)
    with refused("BertForTokenClassification", "'NOUN'", "B-person"):
        load_predictor(tmp_path)


@pytest.mark.model
def test_models_of_other_programs_find_entities(tiny: dict[str, Path], tmp_path: Path) -> None:
    """Their tags may have any order."""
    tags = ["B-LOC", "O", "I-LOC", "I-PER", "B-PER"]
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_pretrained(tiny["bert"], id2label=dict(enumerate(tags)))
    model.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny["bert"])
    tokenizer.save_pretrained(tmp_path)
    text = sentences(1)[0]["text"]
    ids = model.eval()(**tokenizer(text, return_tensors="pt")).logits.argmax(-1)[0, 1:-1].tolist()
    predictor = load_predictor(tmp_path)
    assert predictor.task.scorer.labels == tuple(tags)
    expected = find_entities([split_tag(tags[i]) or ("", "") for i in ids])
    words = [text[start:end] for start, end in split_words(text)]
    found = [(entity["label"], entity["text"]) for entity in predictor(text)["prediction"]]
    assert found == [(label, " ".join(words[start:end])) for label, start, end in expected]
    assert found


@pytest.mark.model
def test_training_continues_with_the_head_of_the_same_tags(trained: Any) -> None:
    data = table({name: [row[name] for row in sentences(20)] for name in ("tokens", "tags")})
    kept = prepared(trained.output_dir, {"name": "token_classification", "labels": ["good", "bad"]}, data=data)
    assert not kept.new
    before = AutoModelForTokenClassification.from_pretrained(trained.output_dir / "model")
    order = [before.config.label2id[tag] for tag in kept.task.scorer.labels]
    assert torch.equal(kept.model.classifier.weight, before.classifier.weight[order])
    other = prepared(trained.output_dir, {"name": "token_classification", "scheme": "BIOES"}, data=data)
    assert other.new == {"classifier.weight", "classifier.bias"}


def test_inputs_in_python_may_be_lists_of_words() -> None:
    words = [["a", "b"], ("c",)]
    rows, single = read_inputs(words, ["tokens"], word_lists=True)
    assert ([list(cell) for cell in rows.columns["tokens"]], single) == ([["a", "b"], ["c"]], False)
    with refused("row 1"):
        read_inputs(words, ["tokens"])


@pytest.mark.parametrize("separator", ["\t", " "])
def test_conll_files_are_read(separator: str, tmp_path: Path) -> None:
    lines = ["-DOCSTART- -X- O O", "", "Kim NNP x B-person", "runs VBZ x O", "", "", "Lee NNP x B-person"]
    path = write(tmp_path / "a.conll", "\n".join(lines).replace(" ", separator))
    reader = task_from({"name": "token_classification"}).traits.readers[".conll"]
    assert list(reader(path) or ()) == [
        {"tokens": ["Kim", "runs"], "tags": ["B-person", "O"]}, {"tokens": ["Lee"], "tags": ["B-person"]},
    ]  # fmt: skip
    source = str(write(tmp_path / "b.conll", "Kim B-person\nruns\n\nLee B-person\n"))
    with refused("b.conll", "line 2", "'runs'", "allowed"):
        read_rows(source, "train", DataConfig(), ["tokens"], {".conll": reader})
    rows = read_rows(source, "train", DataConfig(on_bad_rows="skip"), ["tokens"], {".conll": reader})
    assert list(rows.columns["tokens"]) == [["Lee"]]
    assert [(bad.row, "line 2" in bad.reason) for bad in rows.skipped] == [(1, True)]
    with pytest.raises(UserError, match="UTF-8"):
        list(reader(write(tmp_path / "c.conll", b"Kim\xff B-person\n")) or ())


def test_no_rows_have_no_tokens(tiny: dict[str, Path]) -> None:
    data = table({name: [row[name] for row in sentences(9)] for name in ("tokens", "tags")})
    made = prepared(tiny["bert"], "token_classification", data=data)
    features = made.task.encode({"tokens": [], "tags": []}, made.checkpoint.tokenizer)
    assert features.padding["labels"] == -100
    assert features.padding["target_word"] == -1
    whole = encode_rows(data, lambda columns: made.task.encode(columns, made.checkpoint.tokenizer), size=4)
    assert whole.ragged["target_word"].values.tolist() == made.table.ragged["target_word"].values.tolist()
