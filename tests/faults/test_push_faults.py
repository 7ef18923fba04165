"""Pushes that are refused send nothing; pushes that fail leave nothing; and no hub is so bad that a push does half of it."""

import base64
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nlp_transfer import UserError, fine_tune, push
from nlp_transfer.hub import package, retries
from nlp_transfer.hub.package import make_package
from tests.hub import Fault, Hub, RandomFaults
from tests.hub.client import TOKEN, connected

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
    """A copy that a test may spoil."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[tuple[Hub, list[float]]]:
    with connected(tmp_path) as found:
        yield found


@pytest.fixture
def hub(connection: tuple[Hub, list[float]]) -> Hub:
    return connection[0]


def holds(hub: Hub, run: Path, name: str = NAME, revision: str = "main") -> bool:
    """Whether a repository holds all that a push sends."""
    files = hub.repository(name).files(revision)
    return all(files.get(path) == content.bytes() for path, content in make_package(run, name).files.items())


def commits(hub: Hub, name: str = NAME) -> list[str]:
    """Titles, the newest first."""
    return [commit.title for commit in hub.repository(name).history()]


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


# What is done to the model's folder, and what the message must say.
SPOILED: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "bad YAML": (lambda m: edit(m / "README.md", lambda t: t.replace("tags:", "tags: [", 1)), ["README.md: its head"]),
    "no head": (lambda m: (m / "README.md").write_text("# A model"), ["README.md: has no head"]),
    "no card": (lambda m: (m / "README.md").unlink(), ["README.md: there is no model card"]),
    "card refused": (
        lambda m: edit(m / "README.md", lambda t: t.replace("---\n", "---\nbase_model: not an id!\n", 1)),
        ["the hub refuses the model card", "not an id!"],
    ),
    "a turned bit": (lambda m: turn_a_bit(m / "model.safetensors"), ["model.safetensors", "sha256 differs"]),
    "weights cut": (lambda m: cut(m / "model.safetensors"), ["model.safetensors: the weights cannot be read"]),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), ["there are no weights"]),
    "other configuration": (
        lambda m: set_field(m / "config.json", "hidden_act", "relu"),
        ["does not give the logits recorded"],
    ),
    "bad configuration": (lambda m: (m / "config.json").write_text("{"), ["config.json: cannot be read"]),
    "no tokenizer": (lambda m: (m / "tokenizer_config.json").unlink(), ["tokenizer_config.json: is missing"]),
    "no record": (lambda m: (m / "nlp_transfer.json").unlink(), ["nlp_transfer.json: is missing"]),
    "a shard short": (
        lambda m: (m / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00002-of-00002.safetensors"}}'),
        ["model-00002-of-00002.safetensors: is missing"],
    ),
    "a pickle": (lambda m: (m / "pytorch_model.bin").write_bytes(b"\x80\x04."), ["pytorch_model.bin: is no file of a model"]),
    "two more": (
        lambda m: ((m / "optimizer.pt").touch(), (m / ".DS_Store").touch()),
        ["2 problems", "optimizer.pt: is no file", ".DS_Store: is no file"],
    ),
    "checkpoints": (lambda m: (m / "checkpoint-10").mkdir(), ["checkpoint-10/: a model has no such folder"]),
    "own token": (lambda m: add(m / "README.md", f"use {TOKEN}"), ["README.md, line", "looks like a token"]),
    "another's token": (lambda m: set_field(m / "config.json", "note", "ghp_" + "a1B2" * 9), ["config.json, line"]),
    "a key": (lambda m: add(m / "README.md", "-----BEGIN PRIVATE KEY-----"), ["looks like a token or a key"]),
    "a variable": (lambda m: add(m / "README.md", "0123-not-a-known-shape-4567"), ["looks like a token or a key"]),
    "escaped in JSON": (
        lambda m: edit(m / "config.json", lambda t: t.replace("{", '{"note": "' + escaped("ghp_" + "a1B2" * 9) + '",', 1)),
        ["config.json, line 1: holds what looks"],
    ),
    "a key of JSON": (
        lambda m: set_field(m / "tokenizer_config.json", "x" * 9 + "\t" + TOKEN, 1),
        ["tokenizer_config.json, line"],
    ),
    "UTF-16": (lambda m: (m / "vocab.txt").write_text(f"[PAD]\n{TOKEN}\n", "utf-16"), ["vocab.txt, line", "looks like a token"]),
    "UTF-32": (lambda m: (m / "LICENSE").write_text(f"mine {TOKEN}", "utf-32-be"), ["LICENSE, line", "looks like a token"]),
    "base64": (
        lambda m: add(m / "README.md", base64.b64encode(f"user:{TOKEN}".encode()).decode()),
        ["README.md, line", "like a token"],
    ),
    "text in an image": (
        lambda m: picture(m, b"tEXt", b"Comment\0" + TOKEN.encode()),
        ["plot.png: holds what looks like a token"],
    ),
    "compressed text in an image": (
        lambda m: picture(m, b"zTXt", b"Comment\0\0" + zlib.compress(TOKEN.encode())),
        ["plot.png: holds what looks like a token"],
    ),
    "compressed Unicode text in an image": (
        lambda m: picture(m, b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(TOKEN.encode())),
        ["plot.png: holds what looks like a token"],
    ),
    "metadata of weights": (
        lambda m: save_file({"a": torch.zeros(1)}, m / "model.safetensors", {"note": TOKEN}),
        ["model.safetensors: holds what looks like a token"],
    ),
    "weights that are a token": (
        lambda m: save_file({"a": torch.tensor(list(TOKEN.encode()), dtype=torch.uint8)}, m / "model.safetensors"),
        ["model.safetensors: holds what looks like a token"],
    ),
    "an image that nothing shows": (lambda m: (m / "other.png").write_bytes(PNG), ["other.png: is no file of a model"]),
    "other text": (lambda m: (m / "notes.txt").write_text("mine"), ["notes.txt: is no file of a model"]),
    "a file in the wrong folder": (
        lambda m: ((m / "encoder").mkdir(), (m / "encoder/README.md").write_text("mine")),
        ["encoder/README.md: is no file of a model"],
    ),
    "a link": (
        lambda m: ((m.parent / "other").write_text("[PAD]"), (m / "vocab.txt").symlink_to(m.parent / "other")),
        ["vocab.txt: cannot be read", "no links"],
    ),
    "a link to a folder": (lambda m: (m / "encoder").symlink_to(m.parent), ["encoder: is no file of a model"]),
    "a pipe": (lambda m: os.mkfifo(m / "merges.txt"), ["merges.txt: cannot be read"]),
    "a pipe for a card": (lambda m: ((m / "README.md").unlink(), os.mkfifo(m / "README.md")), ["README.md: cannot be read"]),
    "own folder": (lambda m: add(m / "README.md", f"see {m.absolute()}/x"), ["names a folder of this machine"]),
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_spoiled_folder_is_refused_and_nothing_is_sent(
    what: str, run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123-not-a-known-shape-4567")
    spoil, said = SPOILED[what]
    spoil(run / "model")
    with pytest.raises(UserError) as error:
        push(run, NAME)
    assert all(words in str(error.value) for words in said), error.value
    printed = str(error.value) + "".join(capsys.readouterr())
    assert TOKEN not in printed
    assert "not-a-known-shape" not in printed
    assert hub.wrote() == []
    assert not hub.repositories


def test_the_bytes_that_were_checked_are_sent(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are replaced between the check and the upload: the hub gets those that were checked."""
    before = {name: (run / "model" / name).read_bytes() for name in ("model.safetensors", "vocab.txt", "tokenizer.json")
              if (run / "model" / name).exists()}  # fmt: skip
    checked = package._check_answers

    def replace_all(folder: Path) -> None:
        checked(folder)
        for name in before:
            (folder / "other").write_bytes(TOKEN.encode())
            os.replace(folder / "other", folder / name)

    monkeypatch.setattr(package, "_check_answers", replace_all)
    push(run, NAME)
    files = hub.repository(NAME).files()
    assert {name: files[name] for name in before} == before
    assert len(before) > 1


def test_an_image_that_the_card_shows_is_sent(run: Path, hub: Hub) -> None:
    picture(run / "model", b"tEXt", b"Software\0drawn by hand")
    push(run, NAME)
    assert hub.repository(NAME).files()["plot.png"] == (run / "model/plot.png").read_bytes()


def test_an_adapter_with_a_local_base_is_refused(run: Path, hub: Hub) -> None:
    with pytest.raises(UserError, match=r"nlp_transfer.json: base is /.*nobody else has; push the merged model"):
        push(run, NAME, adapter=True)
    set_field(run / "adapter/adapter_config.json", "base_model_name_or_path", str(run))
    with pytest.raises(UserError, match=r"2 problems[\s\S]*adapter_config.json: base_model_name_or_path is /"):
        push(run / "adapter", NAME)
    assert hub.wrote() == []


def test_what_is_no_finished_run_is_refused(run: Path, hub: Hub, tmp_path: Path) -> None:
    shutil.rmtree(run / "adapter")
    with pytest.raises(UserError, match="holds no adapter"):
        push(run, NAME, adapter=True)
    (run / "result.json").unlink()
    with pytest.raises(UserError, match="the run is not finished"):
        push(run, NAME)
    for place, words in ((tmp_path / "absent", "there is no such folder"), (tmp_path, "holds no model")):
        with pytest.raises(UserError, match=words):
            push(place, NAME)
    assert hub.wrote() == []


# Name of the repository, role and scopes of the token, and what the message must say.
RIGHTS: list[tuple[str, dict[str, Any], str]] = [
    ("ann/reviews", {"role": "read"}, "the token of ann may only read"),
    ("bob/reviews", {}, "bob is not the token's; allowed: ann, lab, library"),
    ("library/reviews", {}, "ann may only read in library"),
    ("ann/reviews", {"role": "fineGrained", "scopes": {"lab": ["repo.write"]}}, "it may in lab"),
    ("ann/reviews", {"role": "fineGrained", "scopes": {"ann": ["repo.content.read"]}}, "it may in no place"),
    ("reviews", {}, "allowed: USER/NAME"),
    ("ann/bad name", {}, "is no name of a repository"),
    ("ann/a/b", {}, "is no name of a repository"),
    ("ann/.hidden", {}, "is no name of a repository"),
]


@pytest.mark.parametrize(("name", "user", "said"), RIGHTS)
def test_who_may_not_write_sends_nothing(name: str, user: dict[str, Any], said: str, run: Path, hub: Hub) -> None:
    for field, value in user.items():
        setattr(hub.users[TOKEN], field, value)
    hub.seed("bob/reviews", {"README.md": b"his"})
    before = hub.repository("bob/reviews").state()
    with pytest.raises(UserError, match=said):
        push(run, name)
    assert hub.wrote() == []
    assert hub.repository("bob/reviews").state() == before


def test_without_a_token_that_the_hub_knows_nothing_is_sent(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="does not accept the token") as error:
        push(run, NAME, token="hf_" + "unknown" * 5)
    assert "unknown" not in str(error.value)
    monkeypatch.delenv("HF_TOKEN")
    asked = len(hub.asked)
    with pytest.raises(UserError, match="there is no token to push with; allowed: the environment variable HF_TOKEN"):
        push(run, NAME)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="nothing can be pushed in offline mode; unset HF_HUB_OFFLINE"):
        push(run, NAME)
    assert len(hub.asked) == asked
    assert hub.wrote() == []


def test_places_that_cannot_be_pushed_to(run: Path, hub: Hub) -> None:
    for settings, said in (
        ({"revision": "0" * 40}, "a commit; allowed: a branch"),
        ({"create_pr": True}, "there is no repository"),
        ({"revision": "refs/pr/1"}, "has no refs/pr/1"),
    ):
        with pytest.raises(UserError, match=said):
            push(run, NAME, **settings)
    found = hub.seed(NAME, {"README.md": b"before"})
    found.tags["v1"] = found.branches["main"]
    for settings, said in (({"tag": "v1"}, "has a tag v1 already"), ({"revision": "v1"}, "v1 is a tag"),
                           ({"create_pr": True, "revision": "dev"}, "has no branch dev")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            push(run, NAME, **settings)
    assert hub.wrote() == []


def test_a_name_that_a_hidden_repository_has(run: Path, hub: Hub) -> None:
    hub.seed(NAME, {"README.md": b"hidden"}, private=True)
    hub.users[TOKEN].blind = True
    before = hub.repository(NAME).state()
    with pytest.raises(UserError, match="the name is taken by a repository that the token may not see"):
        push(run, NAME)
    assert hub.repository(NAME).state() == before


CALLS = {
    "whoami": "whoami", "info": "GET /api/models", "card": "validate-yaml", "create": "repos/create", "tree": "/tree/",
    "preupload": "/preupload/", "batch": "objects/batch", "upload": "PUT /upload", "verify": "objects/verify",
    "commit": "/commit/main",
}  # fmt: skip
ONCE = ("500", "503", "429", "500-after", "cut-answer", "drop")


@pytest.mark.parametrize(
    ("call", "kind"),
    [(call, kind) for call in CALLS for kind in ONCE if (call, kind) != ("upload", "cut-answer")],  # that answer is empty
)
def test_a_call_that_fails_once_is_made_again(
    call: str, kind: str, run: Path, connection: tuple[Hub, list[float]], capsys: pytest.CaptureFixture[str]
) -> None:
    hub, waits = connection
    hub.faults = [Fault(kind, CALLS[call], at=(1,), retry_after=7 if kind == "429" else None)]
    assert push(run, NAME).changed
    assert holds(hub, run)
    assert commits(hub) == ["Push model with nlp_transfer", "initial commit"]  # one, also where its answer was lost
    assert len(waits) == 1
    assert (7 <= waits[0] <= 8) if kind == "429" else (0 < waits[0] <= 1)
    assert "trying again in" in capsys.readouterr().err


@pytest.mark.parametrize("call", ["preupload", "upload", "commit", "card"])
def test_a_request_that_is_cut_is_sent_again(call: str, run: Path, hub: Hub) -> None:
    hub.faults = [Fault("cut-request", CALLS[call], at=(1, 2))]
    push(run, NAME)
    assert holds(hub, run)
    assert len(commits(hub)) == 2


def test_a_hub_that_does_not_answer_in_time(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PATIENCE", 0.3)
    hub.faults = [Fault("slow", "/commit/main|/tree/", at=(1, 3), seconds=1.0)]
    push(run, NAME)
    assert holds(hub, run)
    assert len(commits(hub)) == 2


@pytest.mark.parametrize("call", ["create", "preupload", "batch", "upload", "verify", "commit"])
@pytest.mark.parametrize("there", [False, True])
def test_a_call_that_always_fails_leaves_all_as_it_was(
    call: str, there: bool, run: Path, connection: tuple[Hub, list[float]]
) -> None:
    hub, waits = connection
    if there:
        hub.seed(NAME, {"model.safetensors": b"before", "README.md": b"before"})
    before = {name: found.state() for name, found in hub.repositories.items()}
    hub.faults = [Fault("500", CALLS[call])]
    if there and call == "create":
        push(run, NAME)  # it is there, and so is not created
        return
    with pytest.raises(UserError, match=r"answered 500 .*, 6 times; push again later"):
        push(run, NAME)
    assert {name: found.state() for name, found in hub.repositories.items()} == before
    assert len(waits) == 5
    assert all(earlier < 2 * later and later <= 30 for earlier, later in pairwise(waits))


@pytest.mark.parametrize("kind", ["drop", "500-after"])
def test_a_repository_whose_making_was_never_answered_is_removed(kind: str, run: Path, hub: Hub) -> None:
    hub.faults = [Fault(kind, CALLS["create"])]
    with pytest.raises(UserError, match=r"creating ann/reviews: .* 6 times; push again later"):
        push(run, NAME)
    assert not hub.repositories


def test_a_hidden_repository_is_not_taken_for_a_new_one(run: Path, hub: Hub) -> None:
    """Its name is found taken only by the second try, which could as well mean that the first did arrive."""
    before = hub.seed(NAME, {"README.md": b"hidden"}, private=True).state()
    hub.users[TOKEN].blind = True
    hub.faults = [Fault("500", CALLS["create"], at=(1,))]
    with pytest.raises(UserError, match="the name is taken by a repository that the token may not see"):
        push(run, NAME)
    assert hub.repository(NAME).state() == before


def test_what_was_sent_is_not_sent_again(run: Path, hub: Hub) -> None:
    hub.faults = [Fault("503", CALLS["commit"], at=(1, 2, 3))]
    push(run, NAME)
    assert sum(call.startswith("PUT /upload") for call in hub.asked) == 1
    assert sum("/commit/" in call for call in hub.asked) == 4


def test_a_wait_that_is_too_long_is_not_waited_for(run: Path, connection: tuple[Hub, list[float]]) -> None:
    hub, waits = connection
    hub.faults = [Fault("429", CALLS["commit"], retry_after=4000)]
    with pytest.raises(UserError, match="asks to wait for 4000 seconds; push again later"):
        push(run, NAME)
    assert not waits
    assert not hub.repositories


@pytest.mark.parametrize("call", ["upload", "commit"])
@pytest.mark.parametrize("there", [False, True])
def test_what_arrives_damaged_is_taken_back(call: str, there: bool, run: Path, hub: Hub, capsys: Any) -> None:
    if there:
        hub.seed(NAME, {"model.safetensors": b"before", "README.md": b"before", "pytorch_model.bin": b"old", "note": b"kept"})
    before = {name: found.state() for name, found in hub.repositories.items()}
    hub.faults = [Fault("corrupt", CALLS[call], at=(1,))]
    with pytest.raises(UserError, match=r"the hub does not hold what was sent \(.*\); push again"):
        push(run, NAME)
    assert {name: found.state() for name, found in hub.repositories.items()} == before
    said = " ".join(capsys.readouterr().err.split())
    assert "the commit was taken back; the files are as they were" in said if there else "was removed again" in said


def test_a_token_that_is_withdrawn_on_the_way(run: Path, hub: Hub, capsys: Any) -> None:
    hub.faults = [Fault("401", CALLS["preupload"])]
    with pytest.raises(UserError, match="does not accept the token"):
        push(run, NAME)
    assert set(hub.repository(NAME).files()) == {".gitattributes"}
    said = " ".join(capsys.readouterr().err.split())
    assert "remove it by hand" in said
    assert TOKEN not in said


def test_a_commit_from_elsewhere_in_between_stays(run: Path, hub: Hub) -> None:
    hub.faults = [Fault("rival", CALLS["commit"], at=(1,))]
    assert push(run, NAME).changed
    assert commits(hub) == ["Push model with nlp_transfer", "from elsewhere", "initial commit"]
    assert holds(hub, run)
    assert "rival.txt" in hub.repository(NAME).files()


def test_commits_from_elsewhere_without_an_end(run: Path, hub: Hub, capsys: Any) -> None:
    hub.seed(NAME, {})
    hub.faults = [Fault("rival", CALLS["commit"])]
    with pytest.raises(UserError, match="others commit to main all the time"):
        push(run, NAME)
    assert set(commits(hub)) == {"from elsewhere", "initial commit"}
    assert set(hub.repository(NAME).files()) == {".gitattributes", "rival.txt"}


def test_a_new_repository_in_which_others_have_put_something_stays(run: Path, hub: Hub, capsys: Any) -> None:
    hub.faults = [Fault("rival", CALLS["commit"])]
    with pytest.raises(UserError, match="others commit to main all the time"):
        push(run, NAME)
    assert "rival.txt" in hub.repository(NAME).files()
    assert "and stays: others have put rival.txt there" in " ".join(capsys.readouterr().err.split())


def test_a_conflict_is_tried_again(run: Path, hub: Hub) -> None:
    hub.faults = [Fault("409", CALLS["commit"], at=(1, 2))]
    assert push(run, NAME).changed
    assert len(commits(hub)) == 2


@pytest.mark.parametrize("kind", ["drop", "500-after", "500"])
def test_a_pull_request_is_opened_once(kind: str, run: Path, hub: Hub) -> None:
    found = hub.seed(NAME, {"README.md": b"before"})
    before = found.files()
    hub.faults = [Fault(kind, CALLS["commit"], at=(1,))]
    pushed = push(run, NAME, create_pr=True)
    assert pushed.revision == "refs/pr/1"
    assert list(found.pulls.values()) == [pushed.commit]
    assert holds(hub, run, revision="refs/pr/1")
    assert found.files() == before


def test_a_branch_that_was_made_is_removed_again(run: Path, hub: Hub) -> None:
    before = hub.seed(NAME, {"README.md": b"before"}).state()
    hub.faults = [Fault("500", "/commit/dev")]
    with pytest.raises(UserError, match="push again later"):
        push(run, NAME, revision="dev")
    assert hub.repository(NAME).state() == before


@pytest.mark.parametrize("kind", ["drop", "503"])
def test_a_tag_is_set_once(kind: str, run: Path, hub: Hub) -> None:
    hub.faults = [Fault(kind, "/tag/", at=(1,))]
    pushed = push(run, NAME, tag="v1")
    assert hub.repository(NAME).tags == {"v1": pushed.commit}


def test_a_tag_that_cannot_be_set(run: Path, hub: Hub) -> None:
    hub.faults = [Fault("500", "/tag/")]
    with pytest.raises(UserError, match=r"the model was pushed .*, its tag v1 was not set"):
        push(run, NAME, tag="v1")
    assert holds(hub, run)


@pytest.mark.parametrize("seed", range(12))
def test_random_faults(seed: int, run: Path, hub: Hub) -> None:
    """Absent, as before, or whole; and what was said to be pushed is whole."""
    if seed % 2:
        hub.seed(NAME, {"model.safetensors": b"before", "README.md": b"before"})
    before = {name: found.state() for name, found in hub.repositories.items()}
    faults = RandomFaults(seed, rate=(0.2, 0.35, 0.5)[seed % 3])
    hub.faults = [faults]
    try:
        push(run, NAME)
    except UserError:
        hub.faults = []
        left = {name: found.state() for name, found in hub.repositories.items()}
        empty = NAME in hub.repositories and set(hub.repository(NAME).files()) == {".gitattributes"}
        assert left == before or empty or holds(hub, run)
    else:
        assert holds(hub, run)
    assert faults.struck
