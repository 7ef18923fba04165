"""Models, adapters and settings that were made to do harm: refused by name, without running a line of theirs, opening a file of
their choice, or allocating what they ask for."""

import ast
import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, dynamic_module_utils

import nlp_transfer
from nlp_transfer import fine_tune, load_adapters, load_predictor
from nlp_transfer.cli import cli
from nlp_transfer.commands.exit_status import run_command
from nlp_transfer.data.sources import find_model
from nlp_transfer.experiments.comparison_page import write_page
from nlp_transfer.experiments.summary_rows import Summary, SummaryRow
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.models.verification.model_files import load_tokenizer
from nlp_transfer.report.model_card import write_card
from nlp_transfer.report.rendering import one_line
from nlp_transfer.run.document import parse_overrides, read_document
from nlp_transfer.tasks import task_from
from nlp_transfer.utils.errors import UserError
from tests.builders import edit
from tests.helpers.hub import environment, serve

pytestmark = pytest.mark.hub

ROOT = Path(nlp_transfer.__file__).parent
GIB = 2**30


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny: dict[str, Path], sentiment: dict[str, Path]) -> dict[str, Path]:
    """Finished runs: of a plain model, of the toolkit's own head, and of an adapter."""
    folder = tmp_path_factory.mktemp("runs")
    wanted: dict[str, Any] = {
        "plain": {},
        "head": {"task": {"name": "text_classification", "head": {"hidden": [8]}}},
        "lora": {"strategy": {"name": "lora", "r": 2}},
    }
    for name, more in wanted.items():
        settings = {"model": str(tiny["bert"]), "data": {"train": str(sentiment["train"])}, "task": "text_classification"} | more
        fine_tune(settings, training={"max_steps": 1}, output_dir=str(folder / name), with_report=False)
    return {name: folder / name for name in wanted}


class Plant:
    """Code that writes a file when it is run, and a pickle that does so when it is opened."""

    def __init__(self, folder: Path) -> None:
        self.marker = folder / "it-ran"
        self.code = f"from pathlib import Path\nPath({str(self.marker)!r}).write_text('x')\n"

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (self.code,)

    def ran(self) -> bool:
        found = self.marker.exists()
        self.marker.unlink(missing_ok=True)
        return found


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    return Plant(tmp_path)


def copy_of(model: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(model, folder))


def refusal(use: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as found:
        use()
    return str(found.value)


@contextmanager
def little_memory() -> Iterator[None]:
    """Within it nobody may allocate more than a few GiB besides what there is."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + 3 * GIB, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def with_code(folder: Path, plant: Plant) -> None:
    (folder / "evil.py").write_text(
        f"{plant.code}\nfrom transformers import BertConfig, BertModel\n"
        "class C(BertConfig):\n    model_type = 'evil'\nclass M(BertModel):\n    pass\n"
    )
    names = ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForSeq2SeqLM", "AutoModelForCausalLM")
    edit(folder / "config.json", auto_map={"AutoConfig": "evil.C"} | dict.fromkeys(names, "evil.M"), model_type="evil")


def test_code_in_a_model_is_refused_and_does_not_run(
    tmp_path: Path, tiny: dict[str, Path], runs: dict[str, Path], plant: Plant, monkeypatch: pytest.MonkeyPatch,
    sentiment: dict[str, Path], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers asks on the terminal, when it is not told
    evil = copy_of(tiny["bert"], tmp_path / "evil")
    with_code(evil, plant)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    AutoConfig.from_pretrained(evil, trust_remote_code=True)
    assert plant.ran(), "the planted code must be able to run, or this test shows nothing"

    def open_it() -> None:
        Checkpoint.open(find_model(str(evil))).load(AutoModel)

    assert "auto_map" in refusal(open_it)
    (evil / "evil.py").rename(tmp_path / "kept.py")  # the same, referred to from another place
    found = refusal(open_it)
    assert "auto_map" in found
    assert "families that transformers knows" in found
    known = copy_of(tiny["bert"], tmp_path / "known")
    with_code(known, plant)
    edit(known / "config.json", model_type="bert")
    Checkpoint.open(find_model(str(known))).load(AutoModel)
    assert not plant.ran(), "a family that transformers knows needs none of the code that came with it"

    document: dict[str, Any] = {
        "model": str(tiny["bert"]), "data": {"train": str(sentiment["train"])}, "task": {"name": "text_classification"},
        "training": {"max_steps": 1}, "output_dir": str(tmp_path / "out"),
    }  # fmt: skip
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("source,target\n" + "".join(f"a good film {word},film\n" for word in ("one", "two", "red", "blue")))
    ways: list[dict[str, Any]] = [
        {"model": str(evil)},
        {"strategy": {"name": "distill", "teacher": str(evil)}},
        {"data": {"train": str(pairs), "validation_share": 0}, "task": {"name": "translation", "decoder": str(evil)}},
        {"data": {"train": str(pairs), "validation_share": 0}, "task": {"name": "translation", "target_tokenizer": str(evil)}},
    ]
    for way in ways:
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(document | way))
        with pytest.raises(SystemExit) as ended:
            run_command(lambda: cli.main(["train", str(tmp_path / "run.yaml")], standalone_mode=False))
        assert ended.value.code == 2, way
        assert "auto_map" in capsys.readouterr().err, way
        assert not (tmp_path / "out").exists()
    adapter = copy_of(runs["lora"] / "adapter", tmp_path / "adapter")
    edit(adapter / "nlp_transfer.json", base={"model": str(evil), "revision": None})
    assert "auto_map" in refusal(lambda: load_predictor(adapter))

    tokenizer = copy_of(tiny["bert"], tmp_path / "tokenizer")
    edit(tokenizer / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "evil.T"]})
    assert "auto_map" in refusal(lambda: Checkpoint.open(find_model(str(tokenizer))).tokenizer)
    for name, value in {"trust_remote_code": True, "inner": {"auto_map": {"AutoModel": "x--evil.M"}}}.items():
        asking = copy_of(tiny["bert"], tmp_path / "asking")
        edit(asking / "config.json", **{name: value})
        assert not hasattr(Checkpoint.open(find_model(str(asking))).config, name)
        assert f"ignored '{name}'" in capsys.readouterr().err
    assert not plant.ran()


def test_pickles_are_opened_only_for_tensors(tmp_path: Path, runs: dict[str, Path], plant: Plant) -> None:
    model = copy_of(runs["plain"] / "model", tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    torch.save({"x": plant}, model / "pytorch_model.bin")
    torch.load(model / "pytorch_model.bin", weights_only=False)
    assert plant.ran(), "the pickle must be able to run something, or this test shows nothing"
    for name in "training_args.bin optimizer.pt scheduler.pt rng_state.pth model.pkl head.joblib tokenizer.pickle".split():
        (model / name).write_bytes(pickle.dumps(plant))
    wanted = load_predictor(model)(["a good film"])  # safetensors are taken, and no other file is opened
    (model / "model.safetensors").unlink()
    assert "pytorch_model.bin is a pickle that contains more than tensors" in refusal(lambda: load_predictor(model))
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(plant))  # the older format
    assert "pytorch_model.bin is a pickle" in refusal(lambda: load_predictor(model))
    torch.save(weights, model / "pytorch_model.bin")
    assert load_predictor(model)(["a good film"]) == wanted

    adapter = copy_of(runs["lora"] / "adapter", tmp_path / "adapter")
    wanted = load_predictor(adapter)(["a good film"])
    weights = load_file(adapter / "adapter_model.safetensors")
    torch.save({"x": plant}, adapter / "adapter_model.bin")
    assert load_predictor(adapter)(["a good film"]) == wanted
    (adapter / "adapter_model.safetensors").unlink()
    assert "adapter_model.bin is a pickle that contains more than tensors" in refusal(lambda: load_predictor(adapter))
    torch.save(weights, adapter / "adapter_model.bin")
    assert load_predictor(adapter)(["a good film"]) == wanted
    assert not plant.ran()


def test_no_file_outside_the_model_is_read(tmp_path: Path, tiny: dict[str, Path], runs: dict[str, Path]) -> None:
    def opened(folder: Path) -> str:
        return refusal(lambda: Checkpoint.open(find_model(str(folder))).load(AutoModel))

    outside = copy_of(tiny["bert"], tmp_path / "outside")
    for name in ("model.safetensors", "config.json"):
        linked = copy_of(tiny["bert"], tmp_path / "linked")
        (linked / name).unlink()
        (linked / name).symlink_to(outside / name)
        assert f"{name} is a link out of the folder" in opened(linked)
    linked = copy_of(tiny["bert"], tmp_path / "linked")
    (linked / "target_tokenizer").symlink_to(outside)
    for folder, name in (("", "tokenizer.json"), ("target_tokenizer", "target_tokenizer/tokenizer_config.json")):
        if not folder:
            (linked / name).unlink()
            (linked / name).symlink_to(outside / name)
        source = find_model(str(linked))
        assert f"{name} is a link out of the folder" in refusal(lambda: load_tokenizer(source, folder))  # noqa: B023
    name = "model.safetensors"  # in a/b, a link two levels down would lead out
    for place in (f"../outside/{name}", str(outside / name), 5, f"a/../../outside/{name}", f"a/b/{name}"):
        sharded = copy_of(tiny["bert"], tmp_path / "sharded")
        names = list(load_file(sharded / "model.safetensors"))
        (sharded / "model.safetensors").unlink()
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, place)}
        (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "outside of the model's folder" in opened(sharded)
    for index in ({}, {"weight_map": []}, {"weight_map": {}, "metadata": 3}):
        (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "weight_map" in opened(sharded)
    adapter = copy_of(runs["lora"] / "adapter", tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.safetensors").symlink_to(runs["lora"] / "adapter" / "adapter_model.safetensors")
    assert "is a link out of the folder" in refusal(lambda: load_predictor(adapter))


def test_valid_models_are_not_refused(tmp_path: Path, tiny: dict[str, Path]) -> None:
    """Shards in the folder, the hub's cache, which is made of links, and a link to a whole folder."""
    sharded = copy_of(tiny["bert"], tmp_path / "sharded")
    weights = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: weights[name] for name in own}, sharded / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, own in parts.items() for name in own}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))

    cached = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    cached.mkdir(parents=True)
    blobs = copy_of(tiny["bert"], cached.parents[1] / "blobs")
    for path in blobs.iterdir():
        (cached / path.name).symlink_to(Path("../../blobs") / path.name)
    (tmp_path / "link").symlink_to(tiny["bert"])
    for folder in (sharded, cached, tmp_path / "link"):
        model = Checkpoint.open(find_model(str(folder))).load(AutoModel)
        assert torch.equal(model.embeddings.word_embeddings.weight, weights["embeddings.word_embeddings.weight"])


SIZES: dict[str, Any] = {
    "hidden_size": 10**9, "vocab_size": 10**9, "num_hidden_layers": 10**9, "num_labels": 10**9, "intermediate_size": 1e20,
    "max_position_embeddings": 10**9, "num_attention_heads": 0, "hidden_act": ["gelu"], "id2label": {"a": 1}, "model_type": {},
    "quantization_config": "x", "dtype": "evil", "pad_token_id": 10**6,
}  # fmt: skip


def test_hostile_config_is_refused_before_allocation(tmp_path: Path, tiny: dict[str, Path]) -> None:
    copy_of(tiny["bert"], tmp_path / "outside")
    for name, value in SIZES.items():
        model = copy_of(tiny["bert"], tmp_path / "model")
        edit(model / "config.json", **{name: value})
        with little_memory():
            found = refusal(lambda: Checkpoint.open(find_model(str(model))).load(AutoModel))  # noqa: B023
        assert "model: " in found, name
    for text in ("[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, "[]", "nothing", '{"model_type": NaN}', "\udcff"):
        model = copy_of(tiny["bert"], tmp_path / "model")
        (model / "config.json").write_text(text, errors="surrogateescape")
        assert "model" in refusal(lambda: Checkpoint.open(find_model(str(model)))), text[:20]  # noqa: B023


HEADS: dict[str, Any] = {
    "hidden": [10**9], "encoder": {"model_type": "nlp_transfer_encoder_head"}, "pooling": "evil", "layers": 7, "head_dropout": 5,
    "normalize": "maybe",
}  # fmt: skip


def test_hostile_head_is_refused(tmp_path: Path, runs: dict[str, Path]) -> None:
    assert load_predictor(runs["head"])(["a good film"])
    more: list[dict[str, Any]] = [
        {"hidden": "big"}, {"hidden": [8] * 9}, {"hidden": [-1]}, {"encoder": None}, {"encoder": "bert"}, {"encoder": {}},
        {"encoder": {"model_type": "../bert"}},
        {"encoder": json.loads((runs["head"] / "model/config.json").read_text())["encoder"] | {"hidden_size": 10**9}},
    ]  # fmt: skip
    for fields in [{name: value} for name, value in HEADS.items()] + more:
        model = copy_of(runs["head"] / "model", tmp_path / "model")
        edit(model / "config.json", **fields)
        with little_memory():
            found = refusal(lambda: load_predictor(model))  # noqa: B023
        assert "config.json" in found or "cannot be loaded" in found or "encoder" in found, (fields, found)


def test_hostile_record_is_refused(tmp_path: Path, runs: dict[str, Path], tiny: dict[str, Path]) -> None:
    good = json.loads((runs["plain"] / "model" / "nlp_transfer.json").read_text())["settings"]
    settings: list[Any] = [
        None, 5, "text_classification", [], {}, {"name": 5}, {"name": "../cli"}, {"name": "os.system"}, {"name": "translation"},
        good | {"labels": "negative"}, good | {"labels": ["evil", "negative"]}, good | {"labels": [["negative"], {}]},
        good | {"max_length": 10**12}, good | {"max_length": -1}, good | {"max_length": "all"}, good | {"text": ["a"]},
        good | {"head": {"hidden": [10**9]}}, good | {"head": {"pooling": "../x"}}, good | {"evil": "/etc/passwd"},
    ]  # fmt: skip
    for hostile in settings:
        model = copy_of(runs["plain"] / "model", tmp_path / "model")
        edit(model / "nlp_transfer.json", settings=hostile)
        with little_memory():
            refusal(lambda: load_predictor(model))  # noqa: B023
    for text in ("[" * 100_000, "[]", "{", '{"settings": ' * 200 + "1" + "}" * 200, "null"):
        (model / "nlp_transfer.json").write_text(text)
        refusal(lambda: load_predictor(model))
    (model / "nlp_transfer.json").unlink()
    (model / "nlp_transfer.json").symlink_to("/etc/passwd")
    assert "is a link out of the folder" in refusal(lambda: load_predictor(model))
    teacher = copy_of(runs["plain"] / "model", tmp_path / "teacher")
    data = tmp_path / "d.csv"
    data.write_text(
        "text,label\n" + "".join(f"a {word} film,{('negative', 'positive')[i % 2]}\n" for i, word in enumerate("bcdefgh"))
    )
    for hostile in (10**12, -3, "x", True, [1]):
        edit(teacher / "nlp_transfer.json", max_length=hostile)
        found = refusal(
            lambda: fine_tune(
                model=str(tiny["bert"]), data={"train": str(data)}, task="text_classification", output_dir=str(tmp_path / "out"),
                strategy={"name": "distill", "teacher": str(teacher)},
            )
        )  # fmt: skip
        assert "strategy.teacher" in found
        assert "max_length" in found


def test_hostile_adapter_is_refused(tmp_path: Path, runs: dict[str, Path]) -> None:
    adapter = tmp_path / "adapter"
    bases: list[Any] = [
        None, 5, [], {"model": 5}, {"model": None}, {"model": "bert", "revision": 5}, {"model": "../../etc", "revision": None},
        {"model": "./plain", "revision": None}, {"model": "~/x", "revision": None}, {"model": "/etc", "revision": None},
        {"model": "/etc/passwd", "revision": None}, {"model": str(adapter), "revision": None},
        {"model": "a" * 10_000, "revision": None},
    ]  # fmt: skip
    for base in bases:
        copy_of(runs["lora"] / "adapter", adapter)
        edit(adapter / "nlp_transfer.json", base=base)
        refusal(lambda: load_predictor(adapter))
        refusal(lambda: load_adapters(str(runs["plain"]), {"x": adapter}))
    settings: dict[str, Any] = {
        "r": 10**9, "megatron_config": {"x": 1}, "rank_pattern": {"query": 10**9}, "peft_type": "EVIL", "target_modules": 5,
        "lora_dropout": "x", "task_type": "EVIL",
    }  # fmt: skip
    for name, value in settings.items():
        copy_of(runs["lora"] / "adapter", adapter)
        edit(adapter / "adapter_config.json", **{name: value})
        with little_memory():
            assert str(adapter) in refusal(lambda: load_predictor(adapter)), name
    copy_of(runs["lora"] / "adapter", adapter)
    good = json.loads((adapter / "nlp_transfer.json").read_text())["settings"]
    for hostile in ({"head": {"hidden": [10**9]}}, {"labels": 5}, {"max_length": 10**9}):
        edit(adapter / "nlp_transfer.json", settings=good | hostile)
        with little_memory():
            refusal(lambda: load_predictor(adapter))
    model = copy_of(runs["plain"] / "model", tmp_path / "model")  # transformers would load another model in place of this one
    shutil.copy(runs["lora"] / "adapter" / "adapter_config.json", model)
    assert "adapter_config.json" in refusal(lambda: Checkpoint.open(find_model(str(model))))


def test_yaml_creates_no_objects(tmp_path: Path, plant: Plant) -> None:
    for tag in ("!!python/object/apply:builtins.exec", "!!python/object/new:builtins.exec", "!!python/name:os.system"):
        text = f"{tag} [{json.dumps(plant.code)}]"
        (tmp_path / "run.yaml").write_text(f"model: {text}\n")
        assert "is not valid YAML" in refusal(lambda: read_document(tmp_path / "run.yaml"))
        assert parse_overrides(["--model", text]) == [("model", text)], "a flag's value is text where it is no plain YAML"
    with pytest.raises(yaml.constructor.ConstructorError):
        yaml.safe_load(text)
    assert not plant.ran()


def test_no_document_can_allow_hub_metrics(
    tmp_path: Path, tiny: dict[str, Path], sentiment: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import evaluate

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("foreign code was asked for")

    monkeypatch.setattr(evaluate, "load", never)
    document: dict[str, Any] = {
        "model": str(tiny["bert"]), "data": {"train": str(sentiment["train"])}, "task": "text_classification",
        "output_dir": str(tmp_path / "out"), "training": {"hub_metrics": ["evil/metric"]},
    }  # fmt: skip
    for name in ("allow_hub_metrics", "allow_foreign_code", "trust_remote_code"):
        assert f"{name}: unknown setting" in refusal(lambda: fine_tune(document | {name: True}))  # noqa: B023
        inner = {"training": document["training"] | {name: True}}
        assert f"training.{name}: unknown setting" in refusal(lambda: fine_tune(document | inner))  # noqa: B023
    assert "--allow-hub-metrics" in refusal(lambda: fine_tune(document))
    kwargs = {
        "strategy": {"name": "peft", "type": "PROMPT_TUNING", "settings": {"tokenizer_kwargs": {"trust_remote_code": True}}}
    }
    assert "tokenizer_kwargs" in refusal(lambda: fine_tune(document | kwargs | {"training": {}}))
    assert not (tmp_path / "out").exists()


def test_each_promise_names_an_existing_test() -> None:
    folder, seen = ROOT.parent, 0
    for line in (folder / "SECURITY.md").read_text(encoding="utf-8").splitlines():
        file = ""
        for place, name in re.findall(r"`([\w/]*(?:\.py)?)::(\w+)`", line):
            file = place or file
            assert f"\ndef {name}(" in (folder / file).read_text(encoding="utf-8"), (file, name)
            seen += 1
    assert seen > 20


CALLS = ("from_pretrained", "from_config")


def test_trust_remote_code_is_always_off() -> None:
    """Said in each call: left open, transformers asks on the terminal, where somebody may press y."""
    seen = 0
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner, name = ast.unparse(node.func.value), node.func.attr
            said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if name in CALLS and "Peft" not in owner:
                assert said.get("trust_remote_code") == "False", f"{path.name}: {ast.unparse(node)}"
                seen += 1
            assert said.get("trust_remote_code", "False") == "False"
            assert (owner, name) not in (("torch", "load"), ("joblib", "load"), ("pickle", "loads")), path
            if (owner, name) == ("pickle", "load"):
                assert path.name == "run_server.py", "only what this process wrote to itself through a pipe"
            if owner == "yaml" and name in ("load", "load_all", "unsafe_load", "full_load"):
                assert said.get("Loader") == "_StrictLoader", path
            if (owner, name) == ("np", "load"):
                assert said.get("allow_pickle", "False") == "False", path
    assert seen >= 6


CHILD = """
import sys
from nlp_transfer.cli import cli
from nlp_transfer.commands.exit_status import run_command

for line in ("train run.yaml --model tester/coded", "train run.yaml --data.train tester/scripted", "predict tester/coded --input "
             "new.txt --output answers.csv", "train run.yaml --model tester/pointing", "train run.yaml --model tester/pickled"):
    try:
        run_command(lambda: cli.main(line.split(), standalone_mode=False))
    except SystemExit as ended:
        print(f"ended {ended.code}", file=sys.stderr)
"""


def test_code_on_the_hub_is_refused_and_does_not_run(
    tmp_path: Path, tiny: dict[str, Path], sentiment: dict[str, Path], plant: Plant
) -> None:
    root = tmp_path / "hub"
    with_code(copy_of(tiny["bert"], root / "models/tester/coded"), plant)
    scripted = root / "datasets/tester/scripted"
    scripted.mkdir(parents=True)
    (scripted / "scripted.py").write_text(
        f"{plant.code}\nimport datasets\nclass Scripted(datasets.GeneratorBasedBuilder):\n    pass\n"
    )
    pointing = copy_of(tiny["bert"], root / "models/tester/pointing")
    (pointing / "model.safetensors").unlink()
    (pointing / "model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": {"a": "../../../../../etc/passwd"}}')
    pickled = copy_of(tiny["bert"], root / "models/tester/pickled")
    (pickled / "model.safetensors").unlink()
    torch.save({"x": plant}, pickled / "pytorch_model.bin")
    document = {
        "model": str(tiny["bert"]), "data": {"train": str(sentiment["train"])}, "task": "text_classification",
        "training": {"max_steps": 1}, "output_dir": "out",
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    (tmp_path / "new.txt").write_text("a good film\n")
    with serve(root) as (address, _):
        done = subprocess.run(
            [sys.executable, "-c", CHILD], cwd=tmp_path, env=environment(address, tmp_path / "cache"), input="y\n" * 9,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    ends = done.stderr.split("ended ")
    assert [end.partition("\n")[0] for end in ends[1:]] == ["2"] * 5, done.stderr
    for text, said in zip(
        ends, ("auto_map", "script", "auto_map", "outside of the model", "is a pickle that contains more"), strict=False
    ):
        assert said in text, done.stderr
    assert not plant.ran()
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "answers.csv").exists()


HOSTILE = (
    "<script>alert(1)</script>", "`code` ``` end", "a | b", "x\n---\nlicense: evil\n---\n# Title", "---", "- item: [1",
    "&lt;b&gt;", "\u2028\x85tags: evil", "![x](http://evil/x.png)", "\x00\x1b[31mred", "'\"<!--", "{{ jinja }} {% x %}", "null",
)  # fmt: skip


class Shown(HTMLParser):
    """The tags of a page in their order, the names of their attributes, and its words."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.words = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.words += data


def test_user_text_is_escaped_in_model_cards(tmp_path: Path, runs: dict[str, Path]) -> None:
    result = json.loads((runs["plain"] / "result.json").read_text())
    model = copy_of(runs["plain"] / "model", tmp_path / "model")

    def card(text: str) -> tuple[dict[str, Any], Shown]:
        """The front matter as YAML reads it, and what a reader sees."""
        task = task_from({"name": "text_classification", "labels": [text.strip() for text in HOSTILE]})
        more: dict[str, Any] = {"model": f"/models/{text}", "strategy": [{"name": text}, {"name": "lora"}]}
        more |= {"signatures": {"accuracy": text}, "metrics": {"test": {"accuracy": 0.5, f"evil/{text}": 0.25}}}
        data = {"train": text, "test": {"a": text}, "rows": {"train": 4, "test": 2}}
        write_card(model, task, result | more, data, {"best_metric": text})
        content = (model / "README.md").read_text()
        front, _, body = content.removeprefix("---\n").partition("\n---\n")
        return yaml.safe_load(front), Shown(MarkdownIt("commonmark", {"html": True}).enable("table").render(body))

    harmless, wanted = card("word")
    assert {"h1", "table", "code", "li"} <= set(wanted.tags)
    for text in HOSTILE:
        front, seen = card(text)
        shown = one_line(text)
        assert set(front) == set(harmless)
        assert front["tags"] == ["nlp_transfer", "text_classification", f"{shown} + lora"]
        (entry,) = front["model-index"]
        assert entry["name"].endswith(f"{one_line(Path(text.partition('#')[2] or text).name)}, fine-tuned")
        assert entry["results"][0]["dataset"] == {"name": shown, "type": "local", "split": "test"}
        assert entry["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.5, "name": "accuracy"}]
        assert seen.tags == wanted.tags, text
        assert seen.attributes == wanted.attributes, text
        assert seen.words.count(shown.replace("`", "'")) >= 5, text


def test_user_text_is_escaped_in_comparisons(tmp_path: Path) -> None:
    figures: dict[str, Any] = {"difference": 0.1, "difference_low": 0.0, "difference_high": 0.2, "p": 0.5, "p_best": 0.5}
    figures |= dict.fromkeys(("trainable_parameters", "peak_memory_bytes", "model_bytes", "stored_bytes"), 5)

    def page(label: str) -> Shown:
        rows = [
            SummaryRow(label=name, shots=shots, seeds=[0, 1], mean=0.5, low=0.4, high=0.6, seconds=3.0 + i, note=name, **figures)
            for i, name in enumerate((label, "full"))
            for shots in (8, None)
        ]
        summary = Summary(rows, advice=label, metric=label, split="test", higher=True)
        write_page(tmp_path / "page.html", summary, [0, 1])
        return Shown((tmp_path / "page.html").read_text())

    harmless = page("a label")
    assert {"svg", "table", "h1"} <= set(harmless.tags)
    for text in (*HOSTILE, '" onmouseover="evil', "' onload='evil", "</title><img src=x>", "</svg>", "\udcff"):
        shown = page(text)
        assert shown.tags == harmless.tags, text
        assert shown.attributes == harmless.attributes, text
        assert one_line(text.encode(errors="replace").decode()) in one_line(shown.words), text
