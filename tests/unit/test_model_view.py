"""What is taken of a model that comes from elsewhere, and that nothing else has an effect."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from nlp_transfer.data.sources import ModelSource, find_model
from nlp_transfer.models.compatibility import OTHER_INPUTS
from nlp_transfer.models.verification import allocation_limit
from nlp_transfer.models.verification.allowed import TOKENIZER_FILES, TOKENIZER_NUMBERS, TOKENIZER_WORDS, TOKENS
from nlp_transfer.models.verification.model_files import load_configuration, load_tokenizer, private_folder
from nlp_transfer.models.verification.reduced_configs import reduce_config, reduce_generation, reduce_tokenizer
from nlp_transfer.models.verification.weight_files import check_weights
from nlp_transfer.utils.errors import UserError
from tests.builders import edit, opened, refused
from tests.helpers.families import CLASSIFIERS, family_config

pytestmark = pytest.mark.model

SECRET = "zqsecretzq"
UNSOUND = ("zamba", "zamba2")  # transformers itself does not read what it saves of a small configuration


@pytest.fixture
def model(tmp_path: Path, tiny: dict[str, Path]) -> Path:
    return Path(shutil.copytree(tiny["bert"], tmp_path / "model"))


def test_no_tokenizer_key_reads_another_file(tmp_path: Path, model: Path, tiny: dict[str, Path]) -> None:
    """Whichever key names a file: its lines are in no token, and nothing of it is saved."""
    secret = tmp_path / "secret.txt"
    secret.write_text("".join(f"{SECRET}{i}\n" for i in range(20)))
    wanted = opened(tiny["bert"]).tokenizer
    keys = {
        "vocab", "vocab_file", "merges", "merges_file", "tokenizer_file", "tokenizer_object", "spm_file", "gguf_file",
        "source_spm", "src_vocab_file", "monolingual_vocab_file", "emoji_file", "normalizer_file",
        "special_tokens_map_file", "name_or_path", "added_tokens_file", "fast_tokenizer_files", "full_tokenizer_file",
        "init_inputs", "chat_template_file", "any_key_to_come", *TOKENIZER_WORDS, *TOKENIZER_NUMBERS,
    } - {"tokenizer_class", "backend"}  # fmt: skip
    for files in (("tokenizer.json",), ("vocab.txt",)):
        for key in sorted(keys):
            shutil.rmtree(model)
            shutil.copytree(tiny["bert"], model)
            for name in TOKENIZER_FILES:
                if name not in (*files, "tokenizer_config.json"):
                    (model / name).unlink(missing_ok=True)
            if files == ("vocab.txt",):
                words = {position: word for word, position in wanted.get_vocab().items()}
                (model / "vocab.txt").write_text("".join(f"{words[i]}\n" for i in sorted(words)))
                edit(model / "tokenizer_config.json", tokenizer_class="BertTokenizer")
            for value in (str(secret), [str(secret)]):
                edit(model / "tokenizer_config.json", **{key: value})
                tokenizer = load_tokenizer(find_model(str(model)))
                assert tokenizer.get_vocab() == wanted.get_vocab(), (key, value)
                tokenizer.save_pretrained(tmp_path / "saved")
                assert SECRET not in "".join(path.read_text() for path in (tmp_path / "saved").iterdir()), (key, value)


def test_config_is_reduced_to_listed_keys(capsys: pytest.CaptureFixture[str]) -> None:
    known = {
        "model_type": "bert", "hidden_size": 32, "hidden_act": "gelu", "id2label": {"0": "a/b", "1": "../c"}, "num_labels": 2,
    }  # fmt: skip
    hostile: dict[str, Any] = {
        "_attn_implementation": {"": "org/kernel"}, "attn_implementation": "org/kernel", "any_key_to_come": True,
        "auto_map": {"AutoModel": "evil.M"}, "trust_remote_code": True, "transformers_weights": "../other/model.safetensors",
        "custom_generate": "org/name", "per_layer_config": {"0": {"x": 1}}, "gguf_file": "x.gguf", "use_kernels": 1,
        "encoder": {"auto_map": {"AutoModel": "evil.M"}},
    }  # fmt: skip
    reduced, ignored = reduce_config(known | hostile)
    assert reduced == known
    assert sorted(ignored) == sorted(hostile)
    for value in ("org/name", "/etc/passwd", "..\\x", "a\nb", "x" * 65, {"a/b": "gelu"}, float("nan"), ["a/b"]):
        assert reduce_config(known | {"summary_type": value}) == (known, ["summary_type"])  # no field of BERT
        for key in ("hidden_act", "problem_type"):  # without a field of its own it would be another model
            with refused(key):
                reduce_config(known | {key: value})
    for types in ("p2c|c2p", ["p2c", "c2p"]):
        assert reduce_config({"model_type": "deberta-v2", "pos_att_type": types}) == (
            {"model_type": "deberta-v2", "pos_att_type": types},
            [],
        )
    assert reduce_config({"model_type": "bert", "_name_or_path": "/home/someone", "vocab_size": None}) == (
        {"model_type": "bert", "vocab_size": None},
        [],
    )
    inner = {"model_type": "bert", "hidden_size": 8, "auto_map": {"AutoModel": "evil.M"}, "_attn_implementation": "org/kernel"}
    assert reduce_config({"model_type": "encoder-decoder", "encoder": inner, "decoder": inner})[0]["encoder"] == {
        "model_type": "bert",
        "hidden_size": 8,
    }
    with refused("quantization_config"):
        reduce_config(known | {"quantization_config": {"bits": 4}})
    with refused("encoder.model_type"):
        reduce_config({"model_type": "encoder-decoder", "encoder": {"model_type": "evil"}})


def test_generation_and_tokenizer_configs_are_reduced() -> None:
    assert reduce_generation(
        {"num_beams": 4, "bad_words_ids": [[5]], "custom_generate": "org/name", "cache_implementation": "x"}
    ) == ({"num_beams": 4, "bad_words_ids": [[5]]}, ["custom_generate", "cache_implementation"])
    token = {"content": "</s>", "lstrip": False, "__type": "AddedToken", "file": "/etc/passwd"}
    kept = {"content": "</s>", "lstrip": False, "__type": "AddedToken"}
    document = {
        "eos_token": token,
        "added_tokens_decoder": {"2": token},
        "extra_special_tokens": ["<a/b>"],
        "do_lower_case": True,
    }
    hostile = {"vocab": "/etc/passwd", "sp_model_kwargs": {"model_file": "/etc/passwd"}, "src_lang": "../x", "gguf_file": "x"}
    reduced, ignored = reduce_tokenizer(document | hostile)
    assert reduced == document | {"eos_token": kept, "added_tokens_decoder": {"2": kept}}
    assert sorted(ignored) == sorted(hostile)
    assert not TOKENS & (TOKENIZER_WORDS | TOKENIZER_NUMBERS)
    with refused("auto_map"):
        reduce_tokenizer({"auto_map": {"AutoTokenizer": ["evil.T", None]}})


@pytest.mark.parametrize("family", [name for name in CLASSIFIERS if name not in (*OTHER_INPUTS, *UNSOUND)])
def test_default_config_of_each_family_is_unchanged(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = family_config(family, id2label={0: "a/b", 1: "c"})
    config.save_pretrained(tmp_path)
    wanted, reduced = AutoConfig.from_pretrained(tmp_path), load_configuration(find_model(str(tmp_path)))
    assert type(reduced) is type(wanted)
    assert reduced.to_dict() == wanted.to_dict()
    assert not capsys.readouterr().err, "nothing that a family saves is unknown"


def test_unknown_keys_do_not_change_the_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["a good film", "a bad film"]

    def logits() -> torch.Tensor:
        checkpoint = opened(model)
        torch.manual_seed(0)
        loaded = checkpoint.load(AutoModelForSequenceClassification).eval()
        return loaded(**checkpoint.tokenizer(texts, return_tensors="pt", padding=True)).logits

    wanted = logits()
    edit(model / "config.json", adapters={"a": 1}, my_note="a word", my_number=3, _name_or_path="/x", gradient_checkpointing=True)
    edit(model / "tokenizer_config.json", my_note="a word", name_or_path="/x")
    assert torch.equal(logits(), wanted)
    shown = capsys.readouterr().err
    assert "config.json: ignored 'adapters', 'my_note', 'my_number'" in shown
    assert "tokenizer_config.json: ignored 'my_note'" in shown


def test_private_folder_contains_only_listed_files(model: Path) -> None:
    for name in ("modeling_evil.py", "vocab.pkl", "training_args.bin", "tokenizer.py", "notes.json", "model-0.safetensors"):
        (model / name).write_text("x")
    (model / "x").mkdir()
    (model / "x" / "config.json").write_text("{}")
    source = ModelSource(str(model), str(model))
    before = {path.name for path in model.iterdir()}
    with private_folder(source, weights=True, tokenizer="") as folder:
        names = {path.name for path in folder.iterdir()}
        assert names == before & {"config.json", "generation_config.json", "model.safetensors", *TOKENIZER_FILES}
        assert not (folder / "config.json").is_symlink()
        assert (folder / "model.safetensors").resolve() == (model / "model.safetensors").resolve()
    assert not folder.exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "generation_config.json"])
def test_only_regular_files_inside_the_model_are_opened(name: str, tmp_path: Path, model: Path, tiny: dict[str, Path]) -> None:
    path, source = model / name, ModelSource("m", str(model))

    def message() -> str:
        with pytest.raises(UserError) as found, private_folder(source, weights=True, tokenizer=""):
            pass
        return str(found.value)

    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert f"{name} is not a regular file" in message()
    path.unlink()
    path.symlink_to("/dev/zero")
    assert f"{name} is a link out of the folder" in message()
    path.unlink()
    path.symlink_to(name)
    assert name in message()
    path.unlink()
    path.mkdir()
    assert f"{name} is not a regular file" in message()


def test_loaded_objects_name_the_model_not_the_private_folder(tmp_path: Path, model: Path) -> None:
    checkpoint = opened(model)
    loaded = checkpoint.load(AutoModel)
    names = [checkpoint.config._name_or_path, loaded.config._name_or_path, loaded.name_or_path, checkpoint.tokenizer.name_or_path]
    assert names == [str(model)] * 4
    checkpoint.tokenizer.save_pretrained(tmp_path / "saved")
    assert not json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())["local_files_only"]
    assert "nlp_transfer-model-" not in "".join(path.read_text() for path in (tmp_path / "saved").iterdir())
    assert torch.equal(
        loaded.embeddings.word_embeddings.weight, load_file(model / "model.safetensors")["embeddings.word_embeddings.weight"]
    )


def test_loading_preserves_truncation_of_the_tokenizer(model: Path) -> None:
    checkpoint = opened(model)
    checkpoint.tokenizer(["a good film"], truncation=True, max_length=7, padding="max_length")
    before = json.loads(checkpoint.tokenizer.backend_tokenizer.to_str())
    checkpoint.load(AutoModel)
    after = json.loads(checkpoint.tokenizer.backend_tokenizer.to_str())
    assert after["truncation"]["max_length"] == 7
    assert after == before


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("albert", {"inner_group_num": 10**9}), ("xlnet", {"n_layer": 10**9}), ("gpt2", {"n_layer": 10**8}),
        ("mobilebert", {"num_feedforward_networks": 10**9}), ("funnel", {"block_sizes": [10**9]}),
        ("canine", {"num_hash_functions": 10**9}), ("switch_transformers", {"num_experts": 10**8}),
        ("roformer", {"max_position_embeddings": 2 * 10**7}), ("m2m_100", {"max_position_embeddings": 2**26}),
    ],
)  # fmt: skip
def test_config_that_takes_hours_to_build_is_refused(family: str, fields: dict[str, Any]) -> None:
    with refused(*fields):
        reduce_config({"model_type": family} | fields)


@pytest.mark.parametrize("kind", ["BertConfig", "RagTokenizer", "ProcessorMixin", "TapasTokenizer"])
def test_tokenizer_class_that_is_not_a_tokenizer_is_refused(kind: str, model: Path) -> None:
    edit(model / "tokenizer_config.json", tokenizer_class=kind)
    says = "has no tokenizer that can be loaded" if kind == "TapasTokenizer" else f"the tokenizer_class {kind} is not a tokenizer"
    with refused(says):
        load_tokenizer(find_model(str(model)))


def test_buffers_count_and_building_is_limited(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class WithBuffer(torch.nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.register_buffer("table", torch.empty(10**9), persistent=False)

    with torch.device("meta"), refused("1,000,000,006 numbers"):
        check_weights(find_model(str(model)), WithBuffer())
    monkeypatch.setattr(allocation_limit, "MAX_META_OPERATIONS", 3)
    with refused("operations"):
        opened(model).load(AutoModel)
