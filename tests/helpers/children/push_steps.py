"""What the process that pushes does to the hub, step by step, and what it finds there."""

import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from nlp_transfer import load_predictor, load_translator, push
from tests.builders import command, read_lines, run, succeed, write
from tests.helpers.hub import Fault, Hub

ANN, BEA = "hf_" + "AnnsOwnToken" * 3, "hf_" + "BeasOwnToken" * 3
BATCH = ["a good film", "the awful plot was dull"]


def status(address: str, token: str | None = None) -> int:
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    return [(a["prediction"], round(a["probability"], 5)) for a in one] == [
        (b["prediction"], round(b["probability"], 5)) for b in other
    ]


def train_and_push(folder: Path, hub: Hub, address: str) -> None:
    """`train --push-to` creates a private repository. The model loaded by id gives the predictions of the run."""
    assert not [said for said in succeed("train", folder / "run.yaml", "--push-to", "ann/reviews") if ANN in said]
    repository = hub.repository("ann/reviews")
    assert [commit.title for commit in repository.history()] == ["Push model with nlp_transfer", "initial commit"]
    assert repository.private
    assert status(f"{address}/api/models/ann/reviews") == 401
    assert status(f"{address}/api/models/ann/reviews", BEA) == 404
    assert status(f"{address}/api/models/ann/reviews", ANN) == 200
    plots = {name for name in repository.files() if name.endswith(".png")}
    assert {"plot_confusions.png", "plot_reliability.png"} <= plots
    assert all(f"]({name})" in repository.files()["README.md"].decode() for name in plots)
    assert set(repository.files()) - plots == {
        ".gitattributes", "README.md", "config.json", "model.safetensors", "nlp_transfer.json", "tokenizer.json",
        "tokenizer_config.json", "training/config.yaml", "training/result.json",
    }  # fmt: skip
    assert not any(str(folder).encode() in content for content in repository.files().values())
    card = repository.files()["README.md"].decode()
    assert "type: accuracy" in card.split("---")[1]
    assert 'pipeline("text-classification", "ann/reviews")' in card
    wanted = load_predictor(folder / "run")(BATCH)
    assert same(load_predictor("ann/reviews")(BATCH), wanted)
    classify = pipeline("text-classification", "ann/reviews")
    assert [answer["label"] for answer in classify(BATCH)] == [answer["prediction"] for answer in wanted]
    AutoModelForSequenceClassification.from_pretrained("ann/reviews")
    assert len(AutoTokenizer.from_pretrained("ann/reviews")) > 10


def unchanged(folder: Path, hub: Hub, address: str) -> None:
    """A second push of the same model makes no commit, but sets a tag."""
    head, asked = hub.commit("models", "ann/reviews"), len(hub.asked)
    _, said = succeed("push", folder / "run/model", "ann/reviews", "--tag", "v1")
    assert "no commit was made" in said
    assert hub.commit("models", "ann/reviews") == head
    assert hub.repository("ann/reviews").tags == {"v1": head}
    assert not any(part in call for call in hub.asked[asked:] for part in ("/commit/", "/preupload/", "PUT ", "batch"))


def changed(folder: Path, hub: Hub, address: str) -> None:
    """Only changed files are sent, and files of an earlier model are deleted."""
    before = hub.repository("ann/reviews").files()
    old = dict.fromkeys(["pytorch_model.bin", "model-00001-of-00002.safetensors", "encoder/config.json", "vocab.txt"], b"old")
    kept = {"LICENSE": b"mine", "onnx/model.onnx": b"mine", "notes/model.safetensors": b"mine", "plot.png": b"mine"}
    hub.seed("lab/reviews", {**before, **old, **kept, "README.md": b"# old"})
    asked = len(hub.asked)
    pushed = push(folder / "run", "lab/reviews", message="A better one")
    assert not pushed.private
    assert pushed.changed
    files = hub.repository("lab/reviews").files()
    assert not set(old) & set(files)
    assert {name: files[name] for name in kept} == kept
    assert files["README.md"] == before["README.md"].replace(b'"ann/reviews"', b'"lab/reviews"')
    assert hub.repository("lab/reviews").history()[0].title == "A better one"
    assert not any("PUT " in call for call in hub.asked[asked:])


def visibility(folder: Path, hub: Hub, address: str) -> None:
    """`--public` applies to new repositories. An existing repository keeps its visibility, and a message says so."""
    status_code, _, output = command("push", folder / "run", "ann/open", "--public")
    assert (status_code, hub.repository("ann/open").private) == (0, False), output
    assert status(f"{address}/ann/open/resolve/main/config.json") == 200
    status_code, _, output = command("push", folder / "run", "ann/reviews", "--public")
    assert (status_code, hub.repository("ann/reviews").private) == (0, True), output
    assert "stays private" in " ".join(output.split())
    status_code, _, output = command("push", folder / "run", "ann/open")
    assert (status_code, hub.repository("ann/open").private) == (0, False), output
    assert "exists and stays public" in " ".join(output.split())


def adapter(folder: Path, hub: Hub, address: str) -> None:
    """The adapter with the tokenizer, on its base from the hub, gives the predictions of the merged model."""
    push(folder / "run", "ann/adapter", adapter=True)
    files = hub.repository("ann/adapter").files()
    assert "adapter_model.safetensors" in files
    assert "tokenizer.json" in files
    assert "config.json" not in files
    assert b'"model": "ann/tiny"' in files["nlp_transfer.json"]
    assert same(load_predictor("ann/adapter")(BATCH), load_predictor(folder / "run")(BATCH))
    assert isinstance(try_to_load_from_cache("ann/adapter", "adapter_model.safetensors"), str)
    assert try_to_load_from_cache("ann/adapter", "tokenizer.json") is None, "an adapter downloads only needed files"
    assert push(folder / "run/adapter", "ann/adapter").changed is False
    with_peft = AutoPeftModelForSequenceClassification.from_pretrained("ann/adapter", num_labels=2)
    assert with_peft.num_labels == 2


def branch_and_pull_request(folder: Path, hub: Hub, address: str) -> None:
    pushed = push(folder / "run", "ann/branches", revision="dev", tag="v1")
    repository = hub.repository("ann/branches")
    assert set(repository.files()) == {".gitattributes"}
    assert repository.branches["dev"] == pushed.commit == repository.tags["v1"]
    for revision in ("dev", "v1", pushed.commit):
        assert same(load_predictor(f"ann/branches@{revision}")(BATCH), load_predictor(folder / "run")(BATCH))
    proposed = push(folder / "run", "bea/hers", create_pr=True)
    hers = hub.repository("bea/hers")
    assert hers.pulls == {"refs/pr/1": proposed.commit}
    assert set(hers.files()) == {".gitattributes", "note.txt"}
    assert "model.safetensors" in hers.files("refs/pr/1")
    updated = push(folder / "run", "ann/branches", revision="main", create_pr=True, message="Take it over")
    assert updated.revision == "refs/pr/1"


def translation(folder: Path, hub: Hub, address: str) -> None:
    """Both tokenizers are sent, and no paths of this machine."""
    back = write(folder / "train.back", [line[::-1] for line in read_lines(folder / "train.txt")])
    done = run(
        model=folder / "tiny",
        data={"train": {"source": folder / "train.txt", "target": back}, "validation_share": 0.1},
        task={"name": "translation", "target_vocabulary": 300, "target_language": "de", "max_length": 12, "beams": 1},
        training={"evaluate_every": 2},
        output_dir=folder / "translation",
    )
    push(done.output_dir, "ann/translation")
    files = hub.repository("ann/translation").files()
    assert "target_tokenizer/tokenizer.json" in files
    assert not any(str(folder).encode() in content for content in files.values())
    assert load_translator("ann/translation")(BATCH) == done.translator()(BATCH)
    AutoModelForSeq2SeqLM.from_pretrained("ann/translation")
    AutoTokenizer.from_pretrained("ann/translation", subfolder="target_tokenizer")


def summarization(folder: Path, hub: Hub, address: str) -> None:
    """The card has the tag and the metrics of the task."""
    texts = read_lines(folder / "train.txt")
    source = write(folder / "summaries.csv", {"text": texts, "summary": [text[:9] for text in texts]})
    task = {"name": "summarization", "target_vocabulary": 300, "beams": 1}
    data = {"train": source, "validation_share": 0.1}
    done = run(model=folder / "tiny", data=data, task=task, output_dir=folder / "summarization")
    push(done.output_dir, "ann/summarization")
    card = hub.repository("ann/summarization").files()["README.md"].decode()
    assert "pipeline_tag: summarization" in card
    assert {name for name in ("rouge1", "rouge2", "rougeL", "rougeLsum") if f"type: {name}\n" in card} >= {"rouge1", "rougeLsum"}
    assert load_predictor("ann/summarization")(BATCH) == done.predictor()(BATCH)


def custom_head(folder: Path, hub: Hub, address: str) -> None:
    """A head of this toolkit, with a plain encoder in a subfolder. Large files are sent in parts."""
    data, task = {"train": folder / "train.csv"}, {"head": {"hidden": [8]}}
    done = run(model=folder / "tiny", data=data, task=task, output_dir=folder / "head")
    hub.part_size = 30_000
    push(done.output_dir, "ann/head")
    hub.part_size = None
    assert sum(call.startswith("PUT /upload") and call.count("/") == 3 for call in hub.asked) >= 4
    assert "encoder/model.safetensors" in hub.repository("ann/head").files()
    assert same(load_predictor("ann/head")(BATCH), done.predictor()(BATCH))


def refused_before_training(folder: Path, hub: Hub, address: str) -> None:
    before = set(hub.repositories)
    for name, fact in (("bea/reviews", "the token does not belong to bea"), ("nothing", "USER/NAME")):
        status_code, _, output = command("train", folder / "run.yaml", "--output_dir", folder / "never", "--push-to", name)
        assert status_code == 2
        assert fact in output
        assert not (folder / "never").exists()
    assert set(hub.repositories) == before


def failed_after_training(folder: Path, hub: Hub, address: str) -> None:
    """The run is finished, and the message names the command that pushes it later."""
    later = folder / "later"
    hub.faults = [Fault("500", "/preupload/")]
    status_code, _, output = command("train", folder / "run.yaml", "--output_dir", later, "--push-to", "ann/later")
    assert status_code == 2
    assert "the run is finished and complete in" in output
    assert f"nlp-transfer push {later} ann/later" in output
    assert (later / "result.json").is_file()
    assert set(hub.repository("ann/later").files()) == {".gitattributes"}
    assert "hf repos delete ann/later" in " ".join(output.split())
    hub.faults = []
    succeed("push", later, "ann/later")
    assert "model.safetensors" in hub.repository("ann/later").files()


STEPS: list[Callable[[Path, Hub, str], None]] = [
    train_and_push, unchanged, changed, visibility, adapter, branch_and_pull_request, translation, summarization,
    custom_head, refused_before_training, failed_after_training,
]  # fmt: skip
