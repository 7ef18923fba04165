"""Translation in every family: learned to the letter, saved, and the same in another process and without this toolkit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from nlp_transfer import load_translator
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.models.seq2seq.generation import generate
from nlp_transfer.saved_models.load import load_model, open_adapter
from nlp_transfer.saved_models.save import save_model, verify_adapter
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.strategies import strategy_from
from nlp_transfer.tasks import task_from
from nlp_transfer.training import Trainer
from tests.builders import encoded, opened, rows, run, write
from tests.helpers.processes import CHILDREN, in_child
from tests.helpers.seq2seq_models import PAIRS, SCRIPTS, TRANSLATION, languages, save_tiny_seq2seq

pytestmark = pytest.mark.process

LEARNED = [*TRANSLATION, "marian-multilingual"]
SOURCES, TARGETS = ([pair[side] for pair in PAIRS] for side in (0, 1))
STEPS = 200
EXACT = {"learning_rate": 1e-2, "label_smoothing": 0, "dropout": 0, "attention_dropout": 0}
# Of different length, and none of them in train.
UNSEEN = [
    "The dog sat.",
    "The cat was very cold on the mat and the tree is not red.",
    "River",
    "The story and the music is great.",
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("translation")
    return {family: save_tiny_seq2seq(family, folder / family) for family in LEARNED}


@pytest.fixture(scope="module")
def runs(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every family, trained until it knows all pairs by heart."""
    folder = tmp_path_factory.mktemp("runs")
    pairs = write(folder / "pairs.csv", PAIRS, ("source", "target"))
    for family, checkpoint in checkpoints.items():
        run(
            model=checkpoint,
            data={"train": pairs, "validation": pairs},
            task={"name": "translation", "beams": 2, "length_penalty": 1.5, **languages(family)},
            training=EXACT | {"max_steps": STEPS, "evaluate_every": STEPS, "seed": 1},
            output_dir=folder / family,
        )
    return {family: folder / family for family in checkpoints}


@pytest.fixture(scope="module")
def child(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What another process found that loaded all of them."""
    folder = tmp_path_factory.mktemp("child")
    plan = {}
    for family, place in runs.items():
        prefix = ">>de<< " if family == "marian-multilingual" else ""
        plan[family] = {"run": str(place), "texts": SOURCES, "prefixed": [prefix + text for text in SOURCES]}
    return in_child(CHILDREN / "plain_translations.py", plan, folder)


def up_to_end(ids: list[int], end: int) -> list[int]:
    """What follows the end is filling. The first token stays: some families begin with what others end with."""
    return ids[: ids.index(end, 1) + 1]


@pytest.mark.parametrize("family", LEARNED)
def test_training_pairs_are_translated_exactly(family: str, runs: dict[str, Path], child: dict[str, Any]) -> None:
    assert len(set(SOURCES)) == len(set(TARGETS)) == 32
    assert load_translator(runs[family])(SOURCES) == TARGETS
    assert child[family]["ours"] == TARGETS
    figures = json.loads((runs[family] / "result.json").read_text())["metrics"]["validation"]
    assert figures["bleu"] == pytest.approx(100)
    assert figures["chrf"] == pytest.approx(100)
    assert figures["token_accuracy"] == 1


@pytest.mark.parametrize("family", LEARNED)
def test_plain_transformers_gives_the_same_ids(family: str, runs: dict[str, Path], child: dict[str, Any]) -> None:
    translator = load_translator(runs[family])
    task, model = translator.task, translator.predictor.model
    ids, _ = task.tokenizers.source_ids(SOURCES, 64)
    longest = max(map(len, ids))
    pad = translator.predictor.tokenizer.pad_token_id
    padded = torch.tensor([row + [pad] * (longest - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    found = generate(model, task.tokenizers, padded, mask, torch.full((32,), 60), task.beams, task.length_penalty).tolist()
    wanted = child[family]["ids"]
    assert [up_to_end(row, task.tokenizers.end) for row in found] == [up_to_end(row, task.tokenizers.end) for row in wanted]
    # M2M100's own tokenizer leaves a space where the language stood.
    assert [text.strip() for text in child[family]["texts"]] == TARGETS


@pytest.mark.parametrize("family", LEARNED)
def test_saved_generation_settings(family: str, runs: dict[str, Path], child: dict[str, Any]) -> None:
    translator = load_translator(runs[family])
    token = translator.task.tokenizers.target.convert_tokens_to_ids
    settings = child[family]["settings"]
    expected = {
        "bert": ("<s>", "</s>", None), "marian": ("<pad>", "</s>", None), "marian-multilingual": ("<pad>", "</s>", None),
        "t5": ("<pad>", "</s>", None), "mbart": ("de_DE", "</s>", None), "m2m100": ("</s>", "</s>", "__de__"),
        "nllb": ("</s>", "</s>", "deu_Latn"),
    }[family]  # fmt: skip
    names = ("decoder_start_token_id", "eos_token_id", "forced_bos_token_id")
    assert [settings[name] for name in names] == [part and token(part) for part in expected]
    assert settings["pad_token_id"] == token("<pad>")
    assert (settings["num_beams"], settings["length_penalty"], settings["do_sample"]) == (2, 1.5, False)
    task = translator.task
    assert settings["max_new_tokens"] >= max(len(ids) for ids in task.tokenizers.target_ids(TARGETS, 64)[0])
    assert settings["max_length"] is None
    first = {row[0] for row in child[family]["ids"]}
    assert first == {token(expected[0])}


@pytest.mark.parametrize("family", LEARNED)
def test_translation_does_not_depend_on_the_batch(family: str, runs: dict[str, Path]) -> None:
    translator = load_translator(runs[family])
    texts = [*UNSEEN, *SOURCES[:3]]
    together = translator(texts)
    assert together == [translator([text])[0] for text in texts]
    assert together[::-1] == translator(texts[::-1])
    assert len(set(together)) > 4, "translations that differ"


@pytest.mark.parametrize("family", ["mbart", "m2m100", "nllb"])
def test_target_language_can_be_changed(family: str, runs: dict[str, Path], checkpoints: dict[str, Path]) -> None:
    """Of a model that was saved with one language, and of one that was saved without any."""
    source, target = {"mbart": ("fr_XX", "en_XX"), "m2m100": ("fr", "en"), "nllb": ("fra_Latn", "eng_Latn")}[family]
    for folder in (runs[family], checkpoints[family]):
        translator = load_translator(folder, settings={"source_language": source, "target_language": target})
        task = translator.task
        codes = [
            task.tokenizers.target.convert_tokens_to_ids(f"__{code}__" if family == "m2m100" else code)
            for code in (source, target)
        ]
        ids = torch.tensor(task.tokenizers.source_ids(SOURCES[:1], 64)[0])
        assert codes[0] in (ids[0, 0], ids[0, -1])
        found = generate(translator.predictor.model, task.tokenizers, ids, torch.ones_like(ids), torch.tensor([6]), 2, 1.0)
        assert codes[1] == found[0, 0 if family == "mbart" else 1]
        assert len(translator(SOURCES[:2])) == 2


def test_any_script_is_learned_exactly(tiny: dict[str, Path], tmp_path: Path) -> None:
    sources = [f"{first} {second}" for first in ("one", "two") for second in ("dog", "cat", "river", "hill", "tree")]
    pairs = write(tmp_path / "pairs.csv", {"source": sources, "target": SCRIPTS})
    task, training = {"name": "translation", "beams": 1}, EXACT | {"max_steps": 200}
    done = run(model=tiny["bert"], data={"train": pairs}, task=task, training=training, output_dir=tmp_path / "run")
    assert done.translator()(sources) == SCRIPTS


def test_adapter_translates_like_the_merged_model(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Drafts while training are written by the model with its updates beside it."""
    pairs = write(tmp_path / "pairs.csv", PAIRS, ("source", "target"))
    done = run(
        model=checkpoints["bert"],
        data={"train": pairs, "validation": pairs},
        task={"name": "translation", "beams": 2, "translated_rows": 3},
        strategy="lora",
        training=EXACT | {"max_steps": 120, "evaluate_every": 60, "attention_dropout": None},
        output_dir=tmp_path / "run",
    )
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    drafts = [line["validation"]["bleu"] for line in log if "validation" in line]
    assert len(drafts) == 2
    translations = done.translator()(SOURCES)
    assert load_translator(tmp_path / "run/adapter")(SOURCES) == translations
    assert len(set(translations)) > 4, "translations that differ"


def test_draft_scores_are_marked(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """They are of some rows, translated greedily; the final ones of all rows, with beams."""
    table = write(tmp_path / "pairs.csv", PAIRS, ("source", "target"))
    done = run(
        model=checkpoints["bert"], data={"train": table, "validation": table}, output_dir=tmp_path / "run",
        task={"name": "translation", "beams": 2, "translated_rows": 3},
        training={"evaluate_every": 1, "best_metric": "chrf"}, with_report=True,
    )  # fmt: skip
    lines = map(json.loads, (tmp_path / "run/log.jsonl").read_text().splitlines())
    logged = {line["step"]: line["validation"] for line in lines if "validation" in line}
    assert all((one["translated_rows"], one["beams"]) == (3, 1) for one in logged.values())
    best, final = logged[done.result["train"]["best_step"]], done.metrics["validation"]
    assert best["chrf"] == max(one["chrf"] for one in logged.values())
    assert "translated_rows" not in final
    for name in ("token_accuracy", "loss"):
        assert best[name] == pytest.approx(final[name], abs=1e-6), "of all rows, so one number"
    assert "translated_rows 3, beams 1" in (tmp_path / "run/report.html").read_text(), "a note below the learning curve"
    assert "translated_rows 3, beams 1" in (tmp_path / "run/model/README.md").read_text()


def prepare(checkpoint: Checkpoint, family: str) -> tuple[Any, Any, TokenTable]:
    """A task with its model and the tokens of the pairs."""
    pairs = rows({"source": SOURCES, "target": TARGETS})
    task = task_from({"name": "translation", **languages(family)}).prepare(checkpoint, pairs)
    torch.manual_seed(0)
    model = task.build_model(checkpoint, TrainingConfig(dropout=0, attention_dropout=0))
    return task, model, encoded(task, checkpoint, pairs)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", LEARNED)
def test_unfinished_rows_end_at_their_limit(family: str, beams: int, checkpoints: dict[str, Path]) -> None:
    """An untrained model: what it writes depends on nothing but the row, not even where the limit cuts it."""
    checkpoint = opened(checkpoints[family])
    task, model, _ = prepare(checkpoint, family)
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from the near-ties of small random weights
            parameter.mul_(2.0 if parameter.dim() > 1 else 1.0)
    ids, _ = task.tokenizers.source_ids(UNSEEN, 64)
    limits = torch.tensor([9, 14, 5, 11])
    pad, longest = checkpoint.tokenizer.pad_token_id, max(map(len, ids)) + 5
    padded = torch.tensor([row + [pad] * (longest - len(row)) for row in ids])
    mask = (torch.arange(longest) < torch.tensor([len(row) for row in ids])[:, None]).long()
    together = generate(model, task.tokenizers, padded, mask, limits, beams, 1.0).tolist()
    assert len(set(map(len, ids))) > 2, "rows of different length, or nothing is padded"
    cut = 0
    for row, tokens, limit in zip(together, ids, limits.tolist(), strict=True):
        alone = generate(
            model, task.tokenizers, torch.tensor([tokens]), torch.ones(1, len(tokens)).long(), torch.tensor([limit]), beams, 1.0
        )
        written = up_to_end(row, task.tokenizers.end)
        assert written == up_to_end(alone[0].tolist(), task.tokenizers.end)
        assert len(written) <= 1 + limit
        assert set(row[len(written) :]) <= {task.tokenizers.pad, task.tokenizers.end}
        cut += len(written) == 1 + limit
    assert cut, "a row that was ended by its limit"
    assert len({tuple(row) for row in together}) == len(UNSEEN)


CASES: list[dict[str, Any]] = [{"name": "full"}, {"name": "partial", "frozen_layers": "all"}, {"name": "lora", "r": 4}]


def declared(case: str, name: str, model: Any, encoder: set[int]) -> bool:
    """Whether a parameter should move, in other words than in the strategies."""
    if case == "lora":
        return "lora_" in name or "modules_to_save" in name
    fixed = name.startswith("encoder.pooler") or (model.config.model_type == "marian" and "embed_positions" in name)
    return not fixed and (case == "full" or id(model.get_parameter(name)) not in encoder)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
@pytest.mark.parametrize("family", ["bert", "marian", "t5", "mbart", "m2m100"])
def test_only_declared_parameters_of_translation_change(
    family: str, case: dict[str, Any], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint = opened(checkpoints[family])
    task, model, table = prepare(checkpoint, family)
    encoder = {id(parameter) for parameter in model.get_encoder().parameters()}
    given = {name: value.clone() for name, value in model.get_encoder().state_dict().items()}
    strategy = strategy_from(case)
    wrapped: Any = strategy.prepare_model(model)
    before = {name: value.clone() for name, value in wrapped.named_parameters()}
    training = TrainingConfig(max_steps=3, batch_size=16, precision="fp32", learning_rate=1e-2, weight_decay=0)
    Trainer(wrapped, task, {"train": table}, strategy=strategy, settings=training).train()
    moved = {name for name, value in wrapped.named_parameters() if not torch.equal(before[name], value)}
    should = {name for name in before if declared(case["name"], name, wrapped, encoder)}
    assert moved == should
    assert {name for name, value in wrapped.named_parameters() if value.requires_grad} == should
    assert should, "something must be learned"

    probe = table.batch(np.arange(6))
    inputs = {name: tensor for name, tensor in probe.items() if name != "labels"}

    def logits(one: Any) -> torch.Tensor:
        with torch.inference_mode():
            found: torch.Tensor = one.eval()(**inputs).logits
        return found

    trained = logits(wrapped)
    plain = strategy.export_model(wrapped, tmp_path)
    saved: Any = save_model(plain, checkpoint.tokenizer, task, tmp_path / "model", probe)
    again: Any = load_model(tmp_path / "model", AutoModelForSeq2SeqLM)
    for one in (plain, saved, again):
        assert torch.allclose(logits(one), trained, atol=1e-4)
        assert one.get_output_embeddings().weight is one.get_decoder().get_input_embeddings().weight
    if case["name"] == "lora":
        verify_adapter(tmp_path / "adapter", checkpoint, task, plain, probe)
        adapted: Any = open_adapter(tmp_path / "adapter")[0]
        assert torch.allclose(logits(adapted), trained, atol=1e-4)
        assert torch.equal(adapted.get_output_embeddings().weight, adapted.get_decoder().get_input_embeddings().weight)
    assert trained.std(1).max() > 1e-3, "logits that differ"
    after = again.get_encoder().state_dict()
    same = {name for name, value in given.items() if torch.equal(value, after[name])}
    if case["name"] == "partial":
        assert same == set(given)
    if case["name"] == "lora":  # the updates of the stack are merged, nothing else
        layers = {name.split("base_model.model.")[1].split(".lora_")[0] + ".weight" for name in should if ".lora_A" in name}
        names = {f"{name.partition('encoder.')[2]}" for name in layers if name.removeprefix("model.").startswith("encoder.")}
        assert set(given) - same == names
