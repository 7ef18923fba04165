"""An adapter is put on the base that it was trained on, wherever that lies now, and on no other."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from nlp_transfer import load_adapters, load_predictor, load_translator
from nlp_transfer.saved_models.load import open_adapter, quiet
from tests.builders import command, printed, read_table, refused, run, succeed, write
from tests.helpers.models import save_tiny
from tests.helpers.seq2seq_models import PAIRS, save_tiny_seq2seq

pytestmark = pytest.mark.model

TEXTS = ["a good film", "the awful dull plot"]
STRATEGIES: dict[str, dict[str, Any]] = {"lora": {"name": "lora", "r": 4}, "prompts": {"name": "peft", "type": "P_TUNING"}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, sentiment: dict[str, Path]) -> Path:
    """A folder with a base and a run for each strategy; of LoRA's the adapter alone is used, the model is merged."""
    folder = tmp_path_factory.mktemp("bases")
    base = save_tiny("bert", folder / "base")
    for name, strategy in {**STRATEGIES, "full": {"name": "full"}}.items():
        run(
            model=base,
            data={"train": sentiment["train"]},
            task={"max_length": 30},
            strategy=strategy,
            training={"batch_size": 16, "learning_rate": 2e-2},
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


def recorded(made: Path, place: Path, **fields: Any) -> Path:
    """A copy of the LoRA adapter with other fields in its record; None removes one."""
    shutil.copytree(adapter(made, "lora"), place)
    record = json.loads((place / "nlp_transfer.json").read_text()) | fields
    write(place / "nlp_transfer.json", {name: value for name, value in record.items() if value is not None})
    return place


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("other", ["seed", "changed", "wide", "family"])
def test_another_base_model_is_refused(other: str, name: str, made: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    aside = tmp_path / "aside"
    shutil.move(made / "base", aside)
    try:
        shutil.copytree(bases[other], made / "base")
        for load in (lambda: load_predictor(adapter(made, name)), lambda: load_adapters(str(made / "base"), {"a": made / name})):
            with refused(str(adapter(made, name).parent), str((made / "base").resolve()), "base="):
                load()
    finally:
        shutil.rmtree(made / "base", ignore_errors=True)
        shutil.move(aside, made / "base")


@pytest.mark.parametrize("name", STRATEGIES)
def test_moved_base_is_reported(name: str, made: Path, bases: dict[str, Path]) -> None:
    here, there = load_predictor(adapter(made, name)), load_predictor(adapter(made, name), base=bases["moved"])
    assert here(TEXTS) == there(TEXTS)
    beside = load_adapters(str(bases["moved"]), {"a": made / name}).predictor("a")(TEXTS)
    assert [answer["prediction"] for answer in beside] == [answer["prediction"] for answer in here(TEXTS)]
    with refused("logits", str(made / "base"), str(bases["seed"]), "differ by"):
        load_predictor(adapter(made, name), base=bases["seed"])


def test_settings_do_not_change_the_base(made: Path) -> None:
    predictor = load_predictor(adapter(made, "lora"), settings={"max_length": 8, "text": "body"}, precision="bf16")
    assert predictor.task.inputs == ["body"]
    assert predictor.task.max_length == 8


def test_missing_base_message_names_the_option(made: Path, tmp_path: Path) -> None:
    copy = recorded(made, tmp_path / "adapter", base={"model": "/nowhere/base", "revision": None})
    with refused(str(copy), "/nowhere/base", "base=", "--base"):
        load_predictor(copy)
    assert load_predictor(copy, base=made / "base")(TEXTS) == load_predictor(adapter(made, "lora"))(TEXTS)
    assert load_adapters(str(made / "base"), {"a": copy}).names == ["a"], "what tells a base is its logits, not its name"


def test_record_without_logits_causes_a_warning(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = recorded(made, tmp_path / "adapter", probe=None)
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
    copy = recorded(made, tmp_path / "adapter", probe=probe)
    with refused("the logits are not those recorded"):
        load_predictor(copy)


def test_changed_adapter_weights_are_reported_as_such(made: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "adapter"
    shutil.copytree(adapter(made, "lora"), copy)
    weights = load_file(copy / "adapter_model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, copy / "adapter_model.safetensors", {"format": "pt"})
    with refused("adapter_model.safetensors: is not the file that was saved"):
        load_predictor(copy)


def test_complete_model_takes_no_base(made: Path, bases: dict[str, Path]) -> None:
    for name in ("full", "lora"):  # LoRA's was merged
        with refused("base: found", "is not an adapter"):
            load_predictor(made / name, base=bases["moved"])


def test_commands_accept_a_base(made: Path, bases: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path) -> None:
    given = [adapter(made, "lora"), "--precision", "fp32", "--base"]
    output = tmp_path / "out.csv"
    succeed("predict", *given, bases["moved"], "--input", sentiment["test"], "--output", output)
    texts = [row["text"] for row in read_table(sentiment["test"])]
    expected = [answer["prediction"] for answer in load_predictor(adapter(made, "lora"))(texts)]
    assert [row["prediction"] for row in read_table(output)] == expected
    assert printed("evaluate", *given, bases["moved"], "--data.test", sentiment["test"])["rows"] == len(texts)
    status, _, said = command("evaluate", *given, bases["seed"], "--data.test", sentiment["test"])
    assert (status, "logits" in said) == (2, True)


@pytest.mark.parametrize("family", ["bert", "marian"])
def test_translators_check_their_base(family: str, tmp_path: Path) -> None:
    base = save_tiny_seq2seq(family, tmp_path / "base")
    pairs = write(tmp_path / "pairs.csv", PAIRS, ("source", "target"))
    task = {"name": "translation", "beams": 1}
    run(model=base, data={"train": pairs}, task=task, strategy="lora", output_dir=tmp_path / "run")
    moved, place = tmp_path / "moved", tmp_path / "run" / "adapter"
    expected = load_translator(place)(["The dog is red."])
    shutil.move(base, moved)
    assert load_translator(place, base=moved)(["The dog is red."]) == expected
    output = tmp_path / "out.csv"
    source = write(tmp_path / "in.csv", [("The dog is red.",)], ("source",))
    succeed("translate", place, "--base", moved, "--precision", "fp32", "--input", source, "--output", output)
    assert [row["translation"] for row in read_table(output)] == expected
    with quiet():
        model: Any = open_adapter(place, base=moved)[0]
        torch.manual_seed(7)
        other = type(model)(model.config) if family == "marian" else AutoModel.from_config(model.config.encoder)
        other.save_pretrained(moved)
    with refused("logits"):
        load_translator(place, base=moved)


@pytest.mark.parametrize("name", STRATEGIES)
def test_base_with_another_tokenizer_is_refused(name: str, made: Path, tmp_path: Path) -> None:
    base = shutil.copytree(made / "base", tmp_path / "base")
    content = json.loads((base / "tokenizer.json").read_text())
    words = [word for word in content["model"]["vocab"] if not word.startswith("[")]
    ids = [content["model"]["vocab"][word] for word in words]
    content["model"]["vocab"] |= dict(zip(words, reversed(ids), strict=True))
    (base / "tokenizer.json").write_text(json.dumps(content))
    with refused("tokenizer"):
        load_predictor(adapter(made, name), base=base)
    assert len(load_predictor(adapter(made, name), base=made / "base")(TEXTS)) == 2


@pytest.mark.parametrize("name", ["models/base", "base", "./models/base", "models/../models/base", "~/base"])
def test_recorded_base_is_not_read_from_the_current_folder(
    name: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made / "base", tmp_path / "models" / "base")
    shutil.copytree(made / "base", tmp_path / "base")
    place = recorded(made, tmp_path / "adapter", base={"model": name, "revision": None})
    with refused(str(place), repr(name), "base="):
        load_predictor(place)
    assert load_predictor(place, base="models/base")(TEXTS) == load_predictor(adapter(made, "lora"))(TEXTS)


def test_recorded_decoder_is_not_read_from_the_current_folder(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made / "base", tmp_path / "models" / "base")
    settings = {"name": "translation", "source": "a", "target": "b", "architecture": "encoder_decoder", "decoder": "models/base"}
    place = recorded(made, tmp_path / "adapter", settings=settings)
    with refused("nlp_transfer.json: decoder: found 'models/base'"):
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
    with refused("/nowhere/base"):
        load_predictor(place)
    shutil.copytree(made / "base", tmp_path / "project" / "models" / "base")
    assert load_predictor(place)(TEXTS) == load_predictor(adapter(made, "lora"))(TEXTS)
