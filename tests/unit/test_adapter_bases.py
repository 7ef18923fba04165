"""An adapter is put on the base that it was trained on, wherever that lies now, and on no other."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from nlp_transfer import UserError, fine_tune, load_adapters, load_predictor, load_translator
from nlp_transfer.cli import cli
from nlp_transfer.saved_models.load import open_adapter, quiet
from tests.conftest import write_csv
from tests.models import save_tiny
from tests.seq2seq_models import PAIRS, save_tiny_seq2seq

pytestmark = pytest.mark.model

TEXTS = ["a good film", "the awful dull plot"]
STRATEGIES: dict[str, dict[str, Any]] = {"lora": {"name": "lora", "r": 4}, "prompts": {"name": "peft", "type": "P_TUNING"}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, sentiment: dict[str, Path]) -> Path:
    """A folder with a base and a run for each strategy; of LoRA's the adapter alone is used, the model is merged."""
    folder = tmp_path_factory.mktemp("bases")
    base = save_tiny("bert", folder / "base")
    for name, strategy in {**STRATEGIES, "full": {"name": "full"}}.items():
        fine_tune(
            model=str(base),
            data={"train": str(sentiment["train"]), "validation_share": 0},
            task={"name": "text_classification", "max_length": 30},
            strategy=strategy,
            training={"max_steps": 2, "batch_size": 16, "precision": "fp32", "learning_rate": 2e-2},
            output_dir=folder / name,
        )
    return folder


@pytest.fixture
def bases(made: Path, tmp_path: Path) -> dict[str, Path]:
    """The base where it was, moved, and others: of another seed, changed a little, of another width, of another family."""
    places = {"moved": tmp_path / "moved", "seed": tmp_path / "seed", "changed": tmp_path / "changed"}
    for place in places.values():
        shutil.copytree(made / "base", place)
    torch.manual_seed(7)
    with quiet():
        model = AutoModel.from_pretrained(made / "base")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=1e-3)
        model.save_pretrained(places["changed"])
        AutoModel.from_config(model.config).save_pretrained(places["seed"])
    places["wide"] = save_tiny("bert", tmp_path / "wide", hidden_size=48)
    places["family"] = save_tiny("roberta", tmp_path / "family")
    return places | {"old": made / "base"}


def adapter(made: Path, name: str) -> Path:
    return made / name / "adapter"


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("other", ["seed", "changed", "wide", "family"])
def test_another_base_model_is_refused(other: str, name: str, made: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    aside = tmp_path / "aside"
    shutil.move(made / "base", aside)
    try:
        shutil.copytree(bases[other], made / "base")
        for load in (lambda: load_predictor(adapter(made, name)), lambda: load_adapters(str(made / "base"), {"a": made / name})):
            with pytest.raises(UserError) as caught:
                load()
            for fact in (str(adapter(made, name).parent), str((made / "base").resolve()), "base="):
                assert fact in str(caught.value)
    finally:
        shutil.rmtree(made / "base", ignore_errors=True)
        shutil.move(aside, made / "base")


@pytest.mark.parametrize("name", STRATEGIES)
def test_moved_base_is_reported(name: str, made: Path, bases: dict[str, Path]) -> None:
    here, there = load_predictor(adapter(made, name)), load_predictor(adapter(made, name), base=bases["moved"])
    assert here(TEXTS) == there(TEXTS)
    beside = load_adapters(str(bases["moved"]), {"a": made / name}).predictor("a")(TEXTS)
    assert [answer["prediction"] for answer in beside] == [answer["prediction"] for answer in here(TEXTS)]
    with pytest.raises(UserError, match="logits") as caught:
        load_predictor(adapter(made, name), base=bases["seed"])
    for fact in (str(made / "base"), str(bases["seed"]), "differ by"):
        assert fact in str(caught.value)


def test_settings_do_not_change_the_base(made: Path) -> None:
    predictor = load_predictor(adapter(made, "lora"), settings={"max_length": 8, "text": "body"}, precision="bf16")
    assert predictor.task.inputs == ["body"]
    assert predictor.task.max_length == 8


def test_missing_base_message_names_the_option(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "adapter"
    shutil.copytree(adapter(made, "lora"), copy)
    record = json.loads((copy / "nlp_transfer.json").read_text())
    (copy / "nlp_transfer.json").write_text(json.dumps(record | {"base": {"model": "/nowhere/base", "revision": None}}))
    with pytest.raises(UserError) as caught:
        load_predictor(copy)
    for fact in (str(copy), "/nowhere/base", "base=", "--base"):
        assert fact in str(caught.value)
    assert load_predictor(copy, base=made / "base")(TEXTS) == load_predictor(adapter(made, "lora"))(TEXTS)
    assert load_adapters(str(made / "base"), {"a": copy}).names == ["a"], "what tells a base is its logits, not its name"


def test_record_without_logits_causes_a_warning(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "adapter"
    shutil.copytree(adapter(made, "lora"), copy)
    record = json.loads((copy / "nlp_transfer.json").read_text())
    del record["probe"]
    (copy / "nlp_transfer.json").write_text(json.dumps(record))
    assert load_predictor(copy)(TEXTS) == load_predictor(adapter(made, "lora"))(TEXTS)
    assert f"warning: {copy}" in capsys.readouterr().err


BROKEN = [
    {},
    {"input_ids": [[1]]},
    {"input_ids": [[1] * 8] * 2, "logits": "x"},
    {"input_ids": [[10**6] * 8] * 2, "logits": [[1]]},
]


@pytest.mark.parametrize("probe", BROKEN)
def test_broken_record_of_logits_is_refused(probe: dict[str, Any], made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "adapter"
    shutil.copytree(adapter(made, "lora"), copy)
    record = json.loads((copy / "nlp_transfer.json").read_text())
    (copy / "nlp_transfer.json").write_text(json.dumps(record | {"probe": probe}))
    with pytest.raises(UserError, match="logits"):
        load_predictor(copy)


def test_changed_adapter_weights_are_reported_as_such(made: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "adapter"
    shutil.copytree(adapter(made, "lora"), copy)
    weights = load_file(copy / "adapter_model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, copy / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: is not the file that was saved"):
        load_predictor(copy)


def test_complete_model_takes_no_base(made: Path, bases: dict[str, Path]) -> None:
    for run in ("full", "lora"):  # LoRA's was merged
        with pytest.raises(UserError, match=r"base: found .* is not an adapter"):
            load_predictor(made / run, base=bases["moved"])


def test_commands_accept_a_base(
    made: Path, bases: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, output = str(sentiment["test"]), tmp_path / "out.csv"
    given = [str(adapter(made, "lora")), "--precision", "fp32", "--base", str(bases["moved"])]
    cli.main(["predict", *given, "--input", table, "--output", str(output)], standalone_mode=False)
    with output.open(newline="") as file:
        predictions = [row["prediction"] for row in csv.DictReader(file)]
    with sentiment["test"].open(newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    assert predictions == [answer["prediction"] for answer in load_predictor(adapter(made, "lora"))(texts)]
    capsys.readouterr()
    cli.main(["evaluate", *given, "--data.test", table], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["rows"] == len(texts)
    with pytest.raises(UserError, match="logits"):
        cli.main(["evaluate", *given[:-1], str(bases["seed"]), "--data.test", table], standalone_mode=False)


@pytest.mark.parametrize("family", ["bert", "marian"])
def test_translators_check_their_base(family: str, tmp_path: Path) -> None:
    base = save_tiny_seq2seq(family, tmp_path / "base")
    fine_tune(
        model=str(base),
        data={"train": str(write_csv(tmp_path / "pairs.csv", list(PAIRS), ("source", "target"))), "validation_share": 0},
        task={"name": "translation", "beams": 1},
        strategy="lora",
        training={"max_steps": 2, "precision": "fp32"},
        output_dir=tmp_path / "run",
    )
    moved, place = tmp_path / "moved", tmp_path / "run" / "adapter"
    expected = load_translator(place)(["The dog is red."])
    shutil.move(base, moved)
    assert load_translator(place, base=moved)(["The dog is red."]) == expected
    output = tmp_path / "out.csv"
    source = write_csv(tmp_path / "in.csv", [("The dog is red.",)], ("source",))
    cli.main(
        ["translate", str(place), "--base", str(moved), "--precision", "fp32", "--input", str(source), "--output", str(output)],
        standalone_mode=False,
    )
    with output.open(newline="") as file:
        assert [row["translation"] for row in csv.DictReader(file)] == expected
    with quiet():
        model: Any = open_adapter(place, base=moved)[0]
        torch.manual_seed(7)
        other = type(model)(model.config) if family == "marian" else AutoModel.from_config(model.config.encoder)
        other.save_pretrained(moved)
    with pytest.raises(UserError, match="logits"):
        load_translator(place, base=moved)


@pytest.mark.parametrize("name", STRATEGIES)
def test_base_with_another_tokenizer_is_refused(name: str, made: Path, tmp_path: Path) -> None:
    base = shutil.copytree(made / "base", tmp_path / "base")
    content = json.loads((base / "tokenizer.json").read_text())
    words = [word for word in content["model"]["vocab"] if not word.startswith("[")]
    ids = [content["model"]["vocab"][word] for word in words]
    content["model"]["vocab"] |= dict(zip(words, reversed(ids), strict=True))
    (base / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="tokenizer"):
        load_predictor(adapter(made, name), base=base)
    assert len(load_predictor(adapter(made, name), base=made / "base")(TEXTS)) == 2


def recorded(made: Path, place: Path, **fields: Any) -> Path:
    """A copy of the LoRA adapter with another record."""
    shutil.copytree(adapter(made, "lora"), place)
    record = json.loads((place / "nlp_transfer.json").read_text())
    (place / "nlp_transfer.json").write_text(json.dumps(record | fields))
    return place


@pytest.mark.parametrize("name", ["models/base", "base", "./models/base", "models/../models/base", "~/base"])
def test_recorded_base_is_not_read_from_the_current_folder(
    name: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made / "base", tmp_path / "models" / "base")
    shutil.copytree(made / "base", tmp_path / "base")
    place = recorded(made, tmp_path / "adapter", base={"model": name, "revision": None})
    with pytest.raises(UserError) as caught:
        load_predictor(place)
    for fact in (str(place), repr(name), "base="):
        assert fact in str(caught.value)
    assert load_predictor(place, base="models/base")(TEXTS) == load_predictor(adapter(made, "lora"))(TEXTS)


def test_recorded_decoder_is_not_read_from_the_current_folder(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made / "base", tmp_path / "models" / "base")
    settings = {"name": "translation", "source": "a", "target": "b", "architecture": "encoder_decoder", "decoder": "models/base"}
    place = recorded(made, tmp_path / "adapter", settings=settings)
    with pytest.raises(UserError, match=r"nlp_transfer\.json: decoder: found 'models/base'"):
        load_predictor(place)


def test_base_of_moved_run_is_not_read_from_the_current_folder(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`config.yaml` beside the adapter says from which folder its relative paths are meant."""
    place = recorded(made, tmp_path / "project" / "run" / "adapter", base={"model": "/nowhere/base", "revision": None})
    settings = {"model": "models/base", "output_dir": "run", "provenance": {"directory": "..", "files": {}, "content": {}}}
    (place.parent / "config.yaml").write_text(json.dumps(settings))
    shutil.copytree(made / "base", tmp_path / "elsewhere" / "models" / "base")
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="/nowhere/base"):
        load_predictor(place)
    shutil.copytree(made / "base", tmp_path / "project" / "models" / "base")
    assert load_predictor(place)(TEXTS) == load_predictor(adapter(made, "lora"))(TEXTS)
