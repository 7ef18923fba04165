"""Exports for CTranslate2: the texts of the trained model in every family, and usable by every command."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nlp_transfer import load_predictor, load_translator
from nlp_transfer.export.exporter import export_model
from nlp_transfer.inference.translator import Translator
from tests.builders import edit, printed, read_table, refused, run, succeed, write
from tests.helpers.seq2seq_models import PAIRS, SEQ2SEQ, languages, save_tiny_seq2seq

FAMILIES = [*SEQ2SEQ, "marian-multilingual", "mbart50", "bart", "bert"]
SOURCES = [source for source, _ in PAIRS]
TEXTS = [*SOURCES[::4], "", " ", "River", " ".join(SOURCES[:9])]


def train(family: str, folder: Path, name: str = "translation") -> Path:
    """A run of a few steps; its data stays in place."""
    sides = ("source", "target") if name == "translation" else ("text", "summary")
    pairs = write(folder / f"{name}.csv", PAIRS, sides)
    output = folder / f"{name}-{family}"
    run(
        model=save_tiny_seq2seq(family, folder / f"{name}-{family}-base"), data={"train": pairs, "validation": pairs},
        task={"name": name, "beams": 2, **languages(family)}, output_dir=output,
        training={"max_steps": 20, "learning_rate": 1e-2, "label_smoothing": 0, "dropout": 0, "seed": 1},
    )  # fmt: skip
    return output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ctranslate2")


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    return train("m2m100", folder / "one")


@pytest.fixture(scope="module")
def exported(trained: Path) -> Any:
    return export_model(trained, "ctranslate2", "int8", max_loss=1)


def translations(folder: Path, beams: int, **settings: Any) -> list[str]:
    translate: Translator = load_translator(folder, settings={"beams": beams, **settings})
    # The search stops when as many hypotheses as beams are finished, as in CTranslate2.
    generation: Any = translate.predictor.model.generation_config
    generation.early_stopping = True
    return translate(TEXTS)


@pytest.mark.parametrize("family", FAMILIES)
def test_fp32_exports_translate_like_the_model(folder: Path, family: str) -> None:
    trained = train(family, folder)
    export = export_model(trained, "ctranslate2", max_loss=1)
    assert translations(export.folder, 1) == translations(trained, 1)
    # Beam search ranks texts that are cut at the length limit by another length, and half-trained models write some.
    pairs = list(zip(translations(export.folder, 3), translations(trained, 3), strict=True))
    assert sum(before == after for before, after in pairs) > len(pairs) / 2


def test_target_language_is_that_of_the_call(trained: Path) -> None:
    fp32 = export_model(trained, "ctranslate2", max_loss=1).folder
    assert translations(fp32, 1, target_language="fr") == translations(trained, 1, target_language="fr")


def test_published_model_is_exported_with_its_languages(tmp_path: Path) -> None:
    model, table = save_tiny_seq2seq("nllb", tmp_path / "nllb"), write(tmp_path / "pairs.csv", PAIRS[:3], ("en", "de"))
    flags = {"source_language": "eng_Latn", "target_language": "deu_Latn", "source": "en", "target": "de"}
    task = [text for name, value in flags.items() for text in (f"--task.{name}", value)]
    output, validation = ["--output", tmp_path / "export"], ["--data.validation", table]
    succeed("export", model, "--to", "ctranslate2", *output, *validation, *task, "--max-loss", 1)
    greedy = {"beams": 1}
    expected = load_translator(model, settings=flags | greedy)(SOURCES)
    assert load_translator(tmp_path / "export", settings=greedy)(SOURCES) == expected  # knows its languages


def test_int8_is_smaller_and_reported(trained: Path, exported: Any) -> None:
    report = json.loads((exported.folder / "export.json").read_text())
    assert (report["rows"], report["metric"]) == (len(PAIRS), "bleu")
    assert report["metric_loss"] == pytest.approx(report["trained"] - report["exported"])
    assert report["bytes"] < sum(path.stat().st_size for path in (trained / "model").glob("*.safetensors")) / 2
    assert set(report["tokens_per_second"]) == {"trained", "exported"}


def test_commands_accept_an_export(exported: Any, tmp_path: Path) -> None:
    table = write(tmp_path / "in.csv", [*PAIRS[:2], ("", "")], ("source", "target"))
    succeed("translate", exported.folder, "--input", table, "--output", tmp_path / "out.csv")
    rows = read_table(tmp_path / "out.csv")
    assert [row["translation"] for row in rows] == load_translator(exported.folder)([row["source"] for row in rows])
    metrics = printed("evaluate", exported.folder, "--data.test", write(tmp_path / "test.csv", PAIRS[:3], ("source", "target")))
    assert metrics["rows"] == 3
    assert {"bleu", "chrf"} < set(metrics)
    assert not {"loss", "token_accuracy"} & set(metrics)  # these need logits


def test_summaries_are_exported(folder: Path) -> None:
    trained = train("bart", folder, "summarization")
    export = export_model(trained, "ctranslate2", max_loss=1)
    assert export.report["metric"] == "rougeL"
    greedy = {"beams": 1}
    assert load_predictor(export.folder, settings=greedy)(SOURCES) == load_predictor(trained, settings=greedy)(SOURCES)


def test_refusals_name_what_is_allowed(trained: Path, exported: Any, tmp_path: Path) -> None:
    with refused("--to: found onnx", "translation", "ctranslate2"):
        export_model(trained, "onnx", output=tmp_path / "export")
    with refused("--precision", "bf16", "int8"):
        export_model(trained, "ctranslate2", "fp16")
    with refused("--precision", "ctranslate2", "fp32"):
        load_translator(exported.folder, precision="bf16")
    with refused("--backend ctranslate2", "model.bin"):
        load_translator(trained, backend="ctranslate2")
    changed = shutil.copytree(exported.folder, tmp_path / "changed")
    edit(changed / "generation_config.json", repetition_penalty=1.3)
    with refused("repetition_penalty: 1.3"):
        load_translator(changed)
    (changed / "ctranslate2/model.bin").write_bytes(b"damaged")
    edit(changed / "generation_config.json", repetition_penalty=1.0)
    with refused("model.bin", "cannot be loaded"):
        load_translator(changed)


def test_lossy_export_is_refused(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nlp_transfer.export import exporter as module

    real = module.write_ctranslate2

    def damaged(model: Any, *arguments: Any) -> None:
        model.get_input_embeddings().weight.data.zero_()
        real(model, *arguments)

    monkeypatch.setattr(module, "write_ctranslate2", damaged)
    with refused("bleu on 32 validation rows", "--max-loss"):
        export_model(trained, "ctranslate2", output=tmp_path / "export", max_loss=0)
    assert not (tmp_path / "export").exists()
