"""A push makes one commit with all files or none, sends nothing secret, and reports what went wrong."""

import base64
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nlp_transfer import UserError, fine_tune, push
from nlp_transfer.hub import package
from nlp_transfer.hub.package import make_package
from tests.builders import refused
from tests.helpers.hub import Fault, Hub, RandomFaults
from tests.helpers.hub.client import TOKEN, connected

pytestmark = pytest.mark.hub

NAME = "ann/reviews"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: dict[str, Path], sentiment: dict[str, Path]) -> Path:
    """A run with a merged model and an adapter."""
    return fine_tune(
        model=str(tiny["bert"]),
        data={"train": str(sentiment["train"]), "validation_share": 0.1},
        task="text_classification",
        strategy={"name": "lora", "r": 2},
        training={"max_steps": 24, "learning_rate": 0.02},  # so that the logits are not all alike
        output_dir=str(tmp_path_factory.mktemp("finished") / "run"),
    ).output_dir


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[tuple[Hub, list[float]]]:
    with connected(tmp_path) as connection:
        yield connection


@pytest.fixture
def hub(connection: tuple[Hub, list[float]]) -> Hub:
    return connection[0]


@pytest.fixture(scope="module")
def expected(finished: Path) -> dict[str, bytes]:
    """The files that a push of the run sends."""
    with make_package(finished, NAME) as package:
        return {name: path.read_bytes() for name, path in package.files.items()}


def is_complete(hub: Hub, expected: dict[str, bytes], revision: str = "main") -> bool:
    return expected.items() <= hub.repository(NAME).files(revision).items()


def commits(hub: Hub) -> list[str]:
    """Titles of the commits in the repository, the newest first."""
    return [commit.title for commit in hub.repository(NAME).history()]


def states(hub: Hub) -> dict[Any, dict[str, Any]]:
    return {name: repository.state() for name, repository in hub.repositories.items()}


def failure(run: Path, *facts: str, name: str = NAME, **settings: Any) -> str:
    """The message of a push that fails, which holds the facts."""
    with refused(*facts) as error:
        push(run, name, **settings)
    assert TOKEN not in str(error.value)
    return str(error.value)


def edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


def add(path: Path, text: str) -> None:
    edit(path, lambda before: f"{before}\n{text}\n")


def set_field(path: Path, name: str, value: Any) -> None:
    edit(path, lambda text: json.dumps(json.loads(text) | {name: value}))


def turn_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 64
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SafetensorError), safe_open(path, framework="numpy"):
        pass


PNG = b"\x89PNG\r\n\x1a\n"


def picture(folder: Path, kind: bytes, text: bytes) -> None:
    """An image that the card shows, with a chunk of text."""
    chunk = kind + text
    (folder / "plot.png").write_bytes(PNG + len(text).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big"))
    add(folder / "README.md", "![plot](plot.png)")


def escaped(text: str) -> str:
    return "".join(f"\\u{ord(letter):04x}" for letter in text)


# A change to the model's folder, and the facts that the message must name.
SPOILED: dict[str, tuple[Any, ...]] = {
    "bad YAML": (lambda m: edit(m / "README.md", lambda t: t.replace("tags:", "tags: [", 1)),
        "README.md: the metadata cannot be read"),
    "no head": (lambda m: (m / "README.md").write_text("# A model"), "README.md: the YAML metadata is missing"),
    "no card": (lambda m: (m / "README.md").unlink(), "README.md: the model card is missing"),
    "card refused": (lambda m: edit(m / "README.md", lambda t: t.replace("---\n", "---\nbase_model: not an id!\n", 1)),
        "the hub refuses the model card", "not an id!"),
    "a turned bit": (lambda m: turn_a_bit(m / "model.safetensors"), "model.safetensors", "sha256 differs"),
    "weights cut": (lambda m: cut(m / "model.safetensors"), "model.safetensors: the weights cannot be read"),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), "there are no weights"),
    "other configuration": (lambda m: set_field(m / "config.json", "hidden_act", "relu"), "does not give the logits recorded"),
    "bad configuration": (lambda m: (m / "config.json").write_text("{"), "config.json: cannot be read"),
    "no tokenizer": (lambda m: (m / "tokenizer_config.json").unlink(), "tokenizer_config.json: is missing"),
    "no record": (lambda m: (m / "nlp_transfer.json").unlink(), "nlp_transfer.json: is missing"),
    "a shard short": (
        lambda m: (m / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00002-of-00002.safetensors"}}'),
        "model-00002-of-00002.safetensors: is missing"),
    "a pickle": (lambda m: (m / "pytorch_model.bin").write_bytes(b"\x80\x04."), "pytorch_model.bin: a model has no file"),
    "two more": (lambda m: ((m / "optimizer.pt").touch(), (m / ".DS_Store").touch()), "2 problems",
        "optimizer.pt: a model has no file", ".DS_Store: a model has no file"),
    "checkpoints": (lambda m: (m / "checkpoint-10").mkdir(), "checkpoint-10/: a model has no folder of this name"),
    "own token": (lambda m: add(m / "README.md", f"use {TOKEN}"), "README.md, line", "looks like a token"),
    "another's token": (lambda m: set_field(m / "config.json", "note", "ghp_" + "a1B2" * 9), "config.json, line"),
    "a key": (lambda m: add(m / "README.md", "-----BEGIN PRIVATE KEY-----"), "looks like a token or a key"),
    "a variable": (lambda m: add(m / "README.md", "0123-not-a-known-shape-4567"), "looks like a token or a key"),
    "escaped in JSON": (
        lambda m: edit(m / "config.json", lambda t: t.replace("{", '{"note": "' + escaped("ghp_" + "a1B2" * 9) + '",', 1)),
        "config.json, line 1: contains what looks"),
    "a key of JSON": (lambda m: set_field(m / "tokenizer_config.json", "x" * 9 + "\t" + TOKEN, 1), "tokenizer_config.json, line"),
    "UTF-16": (lambda m: (m / "vocab.txt").write_text(f"[PAD]\n{TOKEN}\n", "utf-16"), "vocab.txt, line", "looks like a token"),
    "UTF-32": (lambda m: (m / "LICENSE").write_text(f"mine {TOKEN}", "utf-32-be"), "LICENSE, line", "looks like a token"),
    "base64": (lambda m: add(m / "README.md", base64.b64encode(f"user:{TOKEN}".encode()).decode()), "README.md, line",
        "like a token"),
    "text in an image": (lambda m: picture(m, b"tEXt", b"Comment\0" + TOKEN.encode()),
        "plot.png: contains what looks like a token"),
    "compressed text in an image": (lambda m: picture(m, b"zTXt", b"Comment\0\0" + zlib.compress(TOKEN.encode())),
        "plot.png: contains what looks like a token"),
    "compressed Unicode text in an image": (lambda m: picture(m, b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(TOKEN.encode())),
        "plot.png: contains what looks like a token"),
    "metadata of weights": (lambda m: save_file({"a": torch.zeros(1)}, m / "model.safetensors", {"note": TOKEN}),
        "model.safetensors: contains what looks like a token"),
    "weights that are a token": (
        lambda m: save_file({"a": torch.tensor(list(TOKEN.encode()), dtype=torch.uint8)}, m / "model.safetensors"),
        "model.safetensors: contains what looks like a token"),
    "an image that nothing shows": (lambda m: (m / "other.png").write_bytes(PNG), "other.png: a model has no file"),
    "other text": (lambda m: (m / "notes.txt").write_text("mine"), "notes.txt: a model has no file"),
    "a file in the wrong folder": (lambda m: ((m / "encoder").mkdir(), (m / "encoder/README.md").write_text("mine")),
        "encoder/README.md: a model has no file"),
    "a link": (lambda m: ((m.parent / "other").write_text("[PAD]"), (m / "vocab.txt").symlink_to(m.parent / "other")),
        "vocab.txt: cannot be copied to", "no links"),
    "a link to a folder": (lambda m: (m / "encoder").symlink_to(m.parent), "encoder: a model has no file"),
    "a pipe": (lambda m: os.mkfifo(m / "merges.txt"), "merges.txt: cannot be copied"),
    "a pipe for a card": (lambda m: ((m / "README.md").unlink(), os.mkfifo(m / "README.md")), "README.md: cannot be copied"),
    "own folder": (lambda m: add(m / "README.md", f"see {m.absolute()}/x"), "contains a local path"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_folder_is_refused_and_nothing_is_sent(
    name: str, run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123-not-a-known-shape-4567")
    spoil, *facts = SPOILED[name]
    spoil(run / "model")
    printed = failure(run, *facts) + "".join(capsys.readouterr())
    assert TOKEN not in printed
    assert "not-a-known-shape" not in printed
    assert hub.wrote() == []
    assert not hub.repositories


def test_the_bytes_that_were_checked_are_sent(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are replaced or overwritten after the checks are sent as they were checked."""
    before = {name: (run / "model" / name).read_bytes() for name in ("model.safetensors", "vocab.txt", "tokenizer.json")
              if (run / "model" / name).exists()}  # fmt: skip
    check = package._check_predictions

    def check_and_replace(checked: package.Package) -> None:
        check(checked)
        for name in before:
            os.rename(checked.folder / name, checked.folder / "old")
            for place in (checked.folder / "old", checked.folder / name):
                place.write_bytes(TOKEN.encode())

    monkeypatch.setattr(package, "_check_predictions", check_and_replace)
    push(run, NAME)
    files = hub.repository(NAME).files()
    assert {name: files[name] for name in before} == before
    assert len(before) > 1


def test_an_image_that_the_card_shows_is_sent(run: Path, hub: Hub) -> None:
    picture(run / "model", b"tEXt", b"Software\0drawn by hand")
    push(run, NAME)
    assert hub.repository(NAME).files()["plot.png"] == (run / "model/plot.png").read_bytes()


def test_an_adapter_with_a_local_base_is_refused(run: Path, hub: Hub) -> None:
    failure(run, "nlp_transfer.json: base is /", "not available to others", "the merged model", adapter=True)
    set_field(run / "adapter/adapter_config.json", "base_model_name_or_path", str(run))
    failure(run / "adapter", "2 problems", "adapter_config.json: base_model_name_or_path is /")
    assert hub.wrote() == []


def test_only_a_finished_run_is_pushed(run: Path, hub: Hub, tmp_path: Path) -> None:
    shutil.rmtree(run / "adapter")
    failure(run, "holds no adapter", adapter=True)
    (run / "result.json").unlink()
    failure(run, "the run is not finished")
    for place, words in ((tmp_path / "absent", "no such folder"), (tmp_path, "holds no model")):
        failure(place, words)
    assert hub.wrote() == []


# The name of the repository, the role and scopes of the token, and a fact that the message must name.
RIGHTS: list[tuple[str, dict[str, Any], str]] = [
    ("ann/reviews", {"role": "read"}, "the token of ann is read-only"),
    ("bob/reviews", {}, "does not belong to bob; allowed: ann, lab, library"),
    ("library/reviews", {}, "ann may only read in library"),
    ("ann/reviews", {"role": "fineGrained", "scopes": {"lab": ["repo.write"]}}, "it may write to: lab"),
    ("ann/reviews", {"role": "fineGrained", "scopes": {"ann": ["repo.content.read"]}}, "it may write to: none"),
    ("reviews", {}, "allowed: USER/NAME"),
    ("ann/bad name", {}, "is not a valid repository name"),
    ("ann/a/b", {}, "is not a valid repository name"),
    ("ann/.hidden", {}, "is not a valid repository name"),
]


@pytest.mark.parametrize(("name", "user", "fact"), RIGHTS)
def test_without_the_right_to_write_nothing_is_sent(name: str, user: dict[str, Any], fact: str, run: Path, hub: Hub) -> None:
    for field, value in user.items():
        setattr(hub.users[TOKEN], field, value)
    hub.seed("bob/reviews", {"README.md": b"his"})
    before = hub.repository("bob/reviews").state()
    failure(run, fact, name=name)
    assert hub.wrote() == []
    assert hub.repository("bob/reviews").state() == before


def test_without_a_valid_token_nothing_is_sent(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "unknown" not in failure(run, "does not accept the token", token="hf_" + "unknown" * 5)
    monkeypatch.delenv("HF_TOKEN")
    asked = len(hub.asked)
    failure(run, "no token", "HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    failure(run, "offline", "HF_HUB_OFFLINE")
    assert len(hub.asked) == asked
    assert hub.wrote() == []


def test_places_that_cannot_be_pushed_to(run: Path, hub: Hub) -> None:
    for settings, fact in (
        ({"revision": "0" * 40}, "a commit; allowed: a branch"),
        ({"create_pr": True}, "there is no repository"),
        ({"revision": "refs/pr/1"}, "has no refs/pr/1"),
    ):
        failure(run, fact, **settings)
    repository = hub.seed(NAME, {"README.md": b"before"})
    repository.tags["v1"] = repository.branches["main"]
    for settings, fact in (({"tag": "v1"}, "already has a tag v1"), ({"revision": "v1"}, "v1 is a tag"),
                           ({"create_pr": True, "revision": "dev"}, "has no branch dev")):  # fmt: skip
        failure(run, fact, **settings)
    assert hub.wrote() == []


def test_a_name_taken_by_a_hidden_repository_is_refused(run: Path, hub: Hub) -> None:
    hub.seed(NAME, {"README.md": b"hidden"}, private=True)
    hub.users[TOKEN].blind = True
    before = hub.repository(NAME).state()
    failure(run, "taken", "the token may not see")
    assert hub.repository(NAME).state() == before


CALLS = {
    "create": "repos/create", "preupload": "/preupload/", "batch": "objects/batch", "upload": "PUT /upload",
    "verify": "objects/verify", "commit": "/commit/main", "tree": "/tree/",
}  # fmt: skip
BEFORE = {"model.safetensors": b"before", "README.md": b"before", "pytorch_model.bin": b"old", "notes.txt": b"kept"}


@pytest.mark.parametrize("call", ["preupload", "batch", "upload", "verify", "tree"])
@pytest.mark.parametrize("kind", ["503", "cut-request", "drop"])
def test_a_transient_failure_is_retried(call: str, kind: str, run: Path, hub: Hub, expected: dict[str, bytes]) -> None:
    """huggingface_hub repeats the call."""
    hub.faults = [Fault(kind, CALLS[call], at=(1,))]
    assert push(run, NAME).changed
    assert hub.faults[0].seen > 1
    assert is_complete(hub, expected)


@pytest.mark.parametrize("kind", ["500-after", "cut-answer", "drop"])
def test_a_commit_whose_answer_is_lost_is_found(
    kind: str, run: Path, hub: Hub, expected: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    hub.faults = [Fault(kind, CALLS["commit"])]
    pushed = push(run, NAME)
    assert pushed.changed
    assert pushed.commit == hub.commit("models", NAME)
    assert is_complete(hub, expected)
    assert commits(hub) == ["Push model with nlp_transfer", "initial commit"]
    assert f"the commit {pushed.commit} arrived" in capsys.readouterr().err


def test_a_second_push_uploads_no_large_file_again(run: Path, hub: Hub, expected: dict[str, bytes]) -> None:
    hub.faults = [Fault("503", CALLS["commit"], at=(1,))]
    failure(run, "503")
    push(run, NAME)
    assert is_complete(hub, expected)
    large = [name for name in expected if name.endswith((".safetensors", ".png"))]
    assert sum(call.startswith("PUT /upload") for call in hub.asked) == len(large)


@pytest.mark.parametrize("call", ["create", "preupload", "batch", "upload", "verify", "commit", "tree"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_lasting_failure_leaves_the_hub_unchanged(call: str, exists: bool, run: Path, hub: Hub) -> None:
    if exists:
        hub.seed(NAME, BEFORE)
    before = states(hub)
    hub.faults = [Fault("500", CALLS[call])]
    if exists and call == "create":
        push(run, NAME)  # an existing repository is not created
        return
    message = failure(run)
    assert "500" in message
    if call == "tree":
        assert "the state is unknown" in message
    elif exists:
        assert f"{NAME}, main is unchanged" in message
    elif call == "create":
        assert "nothing was created" in message
    else:
        assert f"{NAME} did not exist before this push, and contains none of its files" in message
        assert f"hf repos delete {NAME}" in message
    if exists or call == "create":
        assert states(hub) == before
    else:
        assert set(hub.repository(NAME).files()) == {".gitattributes"}


def test_a_hub_that_asks_for_a_long_wait_is_not_waited_for(run: Path, connection: tuple[Hub, list[float]]) -> None:
    hub, waits = connection
    hub.faults = [Fault("429", CALLS["preupload"], retry_after=4000)]
    failure(run, "429")
    assert 0 < sum(waits) < 60


@pytest.mark.parametrize("exists", [False, True])
def test_a_commit_by_somebody_else_refuses_the_push(exists: bool, run: Path, hub: Hub) -> None:
    if exists:
        hub.seed(NAME, BEFORE)
    hub.faults = [Fault("rival", CALLS["commit"])]
    message = failure(run)
    assert commits(hub) == ["from elsewhere", "initial commit"]
    newest, oldest = hub.repository(NAME).history()
    for fact in (f"{NAME}, main has moved from {oldest.sha} to {newest.sha}", f"/{NAME}/commit/{newest.sha}", "push again"):
        assert fact in message
    assert set(hub.repository(NAME).files()) == {".gitattributes", "rival.txt"} | set(BEFORE if exists else ())


@pytest.mark.parametrize("call", ["upload", "commit"])
def test_damage_is_reported_with_the_commit(call: str, run: Path, hub: Hub, expected: dict[str, bytes]) -> None:
    hub.seed(NAME, BEFORE)
    hub.faults = [Fault("corrupt", CALLS[call], at=(1,))]
    message = failure(run)
    files, commit = hub.repository(NAME).files(), hub.commit("models", NAME)
    damaged = [name for name in expected if files.get(name) != expected[name]]
    assert damaged
    for fact in (f"/{NAME}/commit/{commit}", f"({', '.join(damaged)})", "main", "push again"):
        assert fact in message
    if call == "commit":  # a damaged large file stays in the fake hub's storage
        assert push(run, NAME).changed
        assert is_complete(hub, expected)


def test_a_commit_that_cannot_be_checked(run: Path, hub: Hub, expected: dict[str, bytes]) -> None:
    hub.faults = [Fault("500", CALLS["tree"], at=tuple(range(2, 20)))]
    message = failure(run, "could not be checked")
    assert f"/{NAME}/commit/{hub.commit('models', NAME)}" in message
    hub.faults = []
    assert not push(run, NAME).changed
    assert is_complete(hub, expected)


def test_a_token_that_is_revoked_during_the_push(run: Path, hub: Hub) -> None:
    hub.faults = [Fault("401", CALLS["preupload"])]
    failure(run, "401", "hf auth login", "the state is unknown", NAME)


def test_a_pull_request(run: Path, hub: Hub, expected: dict[str, bytes]) -> None:
    repository = hub.seed(NAME, {"README.md": b"before"})
    before = repository.files()
    hub.faults = [Fault("500", CALLS["commit"], at=(1,))]
    assert f"{NAME}, main is unchanged; if http" in failure(run, create_pr=True)
    assert not repository.pulls
    pushed = push(run, NAME, create_pr=True)
    assert repository.pulls == {"refs/pr/1": pushed.commit}
    assert pushed.revision == "refs/pr/1"
    assert is_complete(hub, expected, "refs/pr/1")
    assert repository.files() == before


def test_a_new_branch_that_stays_empty_is_reported(run: Path, hub: Hub) -> None:
    before = hub.seed(NAME, {"README.md": b"before"}).files()
    hub.faults = [Fault("500", "/commit/dev")]
    failure(run, f"the branch dev of {NAME} did not exist before this push", f"hf repos branch delete {NAME} dev", revision="dev")
    assert hub.repository(NAME).files("dev") == hub.repository(NAME).files() == before


def test_a_branch_that_cannot_be_created(run: Path, hub: Hub) -> None:
    hub.faults = [Fault("500", "/branch/dev")]
    assert f"{NAME} did not exist before this push, and contains none of its files" in failure(run, revision="dev")
    assert f"{NAME}, dev is unchanged (there is no such branch)" in failure(run, revision="dev")
    assert set(hub.repository(NAME).branches) == {"main"}


def test_a_repository_that_somebody_else_has_just_created(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A public one is not used for a push to a new private repository."""
    check = package._check_predictions

    def check_and_create(checked: package.Package) -> None:
        check(checked)
        hub.seed(NAME, BEFORE)

    monkeypatch.setattr(package, "_check_predictions", check_and_create)
    failure(run, NAME, "somebody else has just created it", "public", "contains files of somebody else")
    assert commits(hub) == ["initial commit"]


def test_a_tag_that_cannot_be_set(run: Path, hub: Hub, expected: dict[str, bytes]) -> None:
    hub.faults = [Fault("500", "/tag/")]
    message = failure(run, "--tag", "the tag v1 was not set", "500", tag="v1")
    assert hub.commit("models", NAME) in message
    assert is_complete(hub, expected)
    hub.faults = []
    push(run, NAME, tag="v1")
    assert hub.repository(NAME).tags == {"v1": hub.commit("models", NAME)}


@pytest.mark.parametrize("seed", range(12))
def test_random_faults(seed: int, run: Path, hub: Hub, expected: dict[str, bytes]) -> None:
    """The repository is absent, empty, unchanged or complete. It is complete if the push succeeds."""
    if seed % 2:
        hub.seed(NAME, BEFORE)
    before = states(hub)
    faults = RandomFaults(seed, rate=(0.15, 0.25, 0.4)[seed % 3])
    hub.faults = [faults]
    try:
        push(run, NAME)
    except UserError:
        is_empty = ("models", NAME) in hub.repositories and set(hub.repository(NAME).files()) == {".gitattributes"}
        assert states(hub) == before or is_empty or is_complete(hub, expected)
    else:
        assert is_complete(hub, expected)
    assert faults.struck
