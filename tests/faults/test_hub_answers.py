"""Hostile and broken answers of a hub: the token stays with the hub, and nothing is written outside the cache."""

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    constants,
    get_session,
    hf_hub_download,
    set_client_factory,
    snapshot_download,
)
from huggingface_hub.utils import httpx

from nlp_transfer.data.sources import ModelSource
from nlp_transfer.hub import client
from nlp_transfer.hub.client import HubError, asking
from nlp_transfer.hub.permissions import Target, check_target, connect
from nlp_transfer.hub.responses import PATH, RESPONSES
from nlp_transfer.models.verification.model_files import find_file, pin
from nlp_transfer.utils.errors import UserError
from tests.builders import refused
from tests.helpers.hub import Fault, Hub, serve
from tests.helpers.hub.client import TOKEN
from tests.helpers.hub.faults import Answer
from tests.helpers.hub.inside import ADDRESS, OTHER, Inside, inside

pytestmark = pytest.mark.hub

NAME = "ann/reviews"
FILES = {"config.json": b"{}", "model.safetensors": b"weights" * 100, "folder/vocab.txt": b"a\nb\n"}


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[tuple[Hub, Inside]]:
    with inside(tmp_path / "cache") as (hub, transport):
        hub.seed(NAME, FILES)
        yield hub, transport


@pytest.fixture
def hub(connection: tuple[Hub, Inside]) -> Hub:
    return connection[0]


def with_headers(**more: str) -> Callable[[int, bytes, dict[str, str]], Answer]:
    added = {name.replace("_", "-"): value for name, value in more.items()}
    return lambda status, content, headers: (status, content, {**headers, **added})


def with_document(change: Callable[[Any], Any]) -> Callable[[int, bytes, dict[str, str]], Answer]:
    return lambda status, content, headers: (status, json.dumps(change(json.loads(content))).encode(), headers)


def download(cache: Path) -> Path:
    """Download a model."""
    with asking(f"model: {NAME}"):
        return Path(snapshot_download(NAME, cache_dir=cache))


def send() -> str:
    """Make the calls of a push with a large and a small file, a tag and a pull request, and return the commit."""
    with asking(f"pushing to {NAME}"):
        api = connect(NAME)
        target = check_target(api, Target(NAME, tag="v1"))
        assert target.state is not None
        files = [CommitOperationAdd("new.safetensors", b"new weights"), CommitOperationAdd("notes.txt", b"notes")]
        commit = api.create_commit(NAME, files, commit_message="message", parent_commit=target.state.head, num_threads=2)
        list(api.list_repo_tree(NAME, recursive=True, revision=commit.oid))
        api.create_tag(NAME, tag="v1", revision=commit.oid)
        more = [CommitOperationAdd("more.txt", b"more")]
        api.create_commit(NAME, more, commit_message="message", parent_commit=commit.oid, create_pr=True)
        return commit.oid


def outcome(action: Callable[[], object]) -> str:
    """Return the message of a UserError, or NAME if there is none."""
    try:
        action()
    except UserError as error:
        return str(error)
    return NAME


def test_a_well_behaved_hub(connection: tuple[Hub, Inside], tmp_path: Path) -> None:
    hub, transport = connection
    folder = download(tmp_path / "cache")
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert hub.repository(NAME).files(send())["new.safetensors"] == b"new weights"
    assert not transport.elsewhere
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["cache"]


# --- the token


def elsewhere(document: Any) -> Any:
    for action in document["objects"][0]["actions"].values():
        action["href"] = f"{OTHER}/x"
    return document


ELSEWHERE: dict[str, Fault] = {
    "verify and upload": Fault("changed", "objects/batch", change=with_document(elsewhere)),
    "next page": Fault("changed", "GET .*/tree/", change=with_headers(Link=f'<{OTHER}/next>; rel="next"')),
    "next page, by case": Fault("changed", "/tree/", change=with_headers(LINK='<http://HUB.TEST:81/next>; rel="next"')),
    "redirect": Fault("changed", "GET ", change=lambda *_: (302, b"", {"Location": f"{OTHER}/x", "Set-Cookie": "a=b"})),
    "redirect of a post": Fault("changed", "POST ", change=lambda *_: (307, b"", {"Location": f"{OTHER}/x"})),
    "redirect of a file": Fault(
        "changed", "HEAD ", change=lambda _, __, headers: (302, b"", {**headers, "Location": f"{OTHER}/x"})
    ),
    "xet": Fault(
        "changed", "HEAD ", change=with_headers(X_Xet_Hash="f" * 64, X_Xet_Refresh_Route=f"{OTHER}/x", X_Linked_Etag="e" * 64)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ELSEWHERE)
def test_the_token_goes_to_the_hub_alone(case: str, connection: tuple[Hub, Inside], tmp_path: Path) -> None:
    hub, transport = connection
    hub.faults = [ELSEWHERE[case]]
    for action in (lambda: download(tmp_path / "cache"), send):
        assert NAME in outcome(action)
    assert hub.faults[0].seen > 0
    assert transport.elsewhere or case == "xet"  # which is disabled
    for request in transport.elsewhere:
        assert TOKEN not in str(request.headers.raw)
        assert "Cookie" not in request.headers


def test_nothing_unneeded_is_sent(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No versions of other libraries, and no environment variables, which a hub can request by name."""
    agents: list[str] = []
    handle = Inside.handle_request

    def listen(self: Inside, request: Any) -> Any:
        agents.append(request.headers["User-Agent"])
        return handle(self, request)

    monkeypatch.setattr(Inside, "handle_request", listen)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    download(tmp_path / "cache")
    send()
    assert set(agents) == {client.USER_AGENT}
    assert all(NAME in call or call == "GET /api/whoami-v2" or "/upload/" in call for call in hub.asked)


def test_the_users_own_client_factory(connection: tuple[Hub, Inside], tmp_path: Path) -> None:
    """The user's client sends the requests, and is unchanged outside `asking`."""
    _, transport = connection
    asked: list[str] = []

    def note(request: Any) -> None:
        asked.append(request.url.path)

    set_client_factory(lambda: httpx.Client(transport=transport, follow_redirects=True, event_hooks={"request": [note]}))
    download(tmp_path / "cache")
    assert any("config.json" in path for path in asked)
    get_session().get(f"{OTHER}/own", headers={"Authorization": "Bearer mine", "User-Agent": "mine"})
    headers = transport.elsewhere[-1].headers
    assert (headers["Authorization"], headers["User-Agent"]) == ("Bearer mine", "mine")
    assert "gzip" in headers["Accept-Encoding"]


# --- names of files

OUTSIDE = ["../../../escaped", "..", ".", "a/b", "/escaped", "..\\escaped", "a" * 300, "-a", "~", "", "é", "a\tb"]
NAMED: dict[str, Callable[[str], Fault]] = {
    "ETag": lambda name: Fault("changed", "HEAD ", change=with_headers(ETag=f'"{name}"')),
    "X-Linked-Etag": lambda name: Fault("changed", "HEAD ", change=with_headers(X_Linked_Etag=f'"{name}"')),
    "X-Repo-Commit": lambda name: Fault("changed", "HEAD ", change=with_headers(X_Repo_Commit=name)),
    "X-Repo-Commit of a missing file": lambda name: Fault(
        "changed", "HEAD ", change=lambda *_: (404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": name})
    ),
    "sha": lambda name: Fault(
        "changed", f"GET /api/models/{NAME}(/revision/main)?$", change=with_document(lambda info: {**info, "sha": name})
    ),
    "path": lambda name: Fault(
        "changed", "/tree/", change=with_document(lambda entries: [{**entries[0], "path": f"../{name}"}, *entries[1:]])
    ),
    "oid": lambda name: Fault("changed", "/tree/", change=with_document(lambda entries: [{**entries[0], "oid": name}])),
}


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("field", NAMED)
def test_no_answer_names_a_file_outside_the_cache(field: str, name: str, hub: Hub, tmp_path: Path) -> None:
    hub.faults = [NAMED[field](name)]

    def fetch() -> None:
        with asking(f"model: {NAME}"):
            hf_hub_download(NAME, "config.json", cache_dir=tmp_path / "cache")
        download(tmp_path / "cache")

    with refused(NAME, ADDRESS, field.split()[0], "refused") as error:
        fetch()
    assert isinstance(error.value, HubError)
    assert [entry.name for entry in tmp_path.iterdir()] in ([], ["cache"])
    allowed = {tmp_path / "cache" / name for name in ("models--ann--reviews", ".locks", "CACHEDIR.TAG")}
    assert set(tmp_path.glob("cache/*")) <= allowed


def test_etags_of_real_hubs(hub: Hub, tmp_path: Path) -> None:
    for tag in ('W/"' + "a1" * 20 + '"', '"' + "f" * 64 + '"', '"d41d8cd98f00b204e9800998ecf8427e-5"'):
        hub.faults = [Fault("changed", "HEAD ", change=with_headers(ETag=tag))]
        with asking("a file"):
            assert Path(hf_hub_download(NAME, "config.json", cache_dir=tmp_path / tag.strip('W/"')[:9])).read_bytes() == b"{}"
    # The ETag of an answer that is not a file may hold anything.
    hub.faults = [Fault("changed", "GET /api", change=with_headers(ETag='W/"2a-cE/+x="'))]
    download(tmp_path / "cache")


@pytest.mark.parametrize("path", ["a", "a/b.txt", ".gitattributes", "a..b", "..a/b", "a/.b", "ü/漢"])
def test_valid_paths(path: str) -> None:
    assert PATH.fullmatch(path)


# --- the form of answers


def spoiled(document: Any, at: tuple[Any, ...], value: Any) -> Any:
    """Return a document with another value at a place; `...` removes the value."""
    if not at:
        return value
    copy = dict(document) if isinstance(document, dict) else list(document)
    if value is ... and len(at) == 1:
        del copy[at[0]]
    else:
        copy[at[0]] = spoiled(document[at[0]], at[1:], value)
    return copy


def places(shape: Any, document: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the places in a document that a shape describes."""
    yield at
    if isinstance(shape, dict) and isinstance(document, dict):
        for key in shape:
            if document.get(key.rstrip("?")) is not None:
                yield from places(shape[key], document[key.rstrip("?")], (*at, key.rstrip("?")))
    if isinstance(shape, list) and document:
        yield from places(shape[0], document[0], (*at, 0))


WRONG: list[Any] = [None, 7, -1, "", "../x", "\x1b[2J", [], [[]], {}, {"a": {}}, True, 1.5, "x" * 10_000]


@pytest.mark.parametrize("number", range(len(RESPONSES)), ids=[f"{method} {path}" for method, path, _ in RESPONSES])
def test_wrong_values_in_every_field_of_every_answer(number: int, hub: Hub, tmp_path: Path) -> None:
    """Each field, with values of each type, gives a result or a UserError, and no other exception."""
    method, pattern, shape = RESPONSES[number]
    documents: list[Any] = []

    def record(status: int, content: bytes, headers: dict[str, str]) -> Answer:
        documents.append(json.loads(content))
        return status, content, headers

    def act(round_: int) -> None:
        if pattern.endswith("create"):
            with asking(f"pushing to {NAME}"):
                connect(NAME).create_repo(f"{NAME}-{round_}", private=True)
        elif "paths-info" in pattern:
            with asking(f"data: {NAME}"):
                HfApi().get_paths_info(NAME, ["config.json"])
        else:
            repository = hub.repository(NAME)
            repository.tags.clear()
            send()

    hub.faults = [Fault("changed", f"^{method} {pattern}$", change=record)]
    act(0)
    errors = count = 0
    for at in places(shape, documents[0]):
        for value in (*WRONG, ...):
            if value is ... and (not at or at[-1] == 0):
                continue
            count += 1
            change = partial(spoiled, at=at, value=value)
            hub.faults = [Fault("changed", f"^{method} {pattern}$", change=with_document(change))]
            message = outcome(lambda: act(count))  # noqa: B023
            errors += message != NAME
            assert NAME in message
    assert errors > count / 2


CALLS = (
    "whoami", "/refs", "/preupload/", "objects/batch", "POST .*/commit/", "/tree/", f"GET /api/models/{NAME}", "HEAD ",
    "GET .*/resolve/",
)  # fmt: skip
BODIES: dict[str, Callable[[int, bytes, dict[str, str]], Answer]] = {
    "HTML": lambda *_: (200, b"<html>Sign in to this network</html>", {"Content-Type": "text/html"}),
    "nothing": lambda *_: (200, b"", {}),
    "half": lambda status, content, headers: (status, content[: len(content) // 2], headers),
    "short": lambda status, content, headers: (status, content, {**headers, "Content-Length": str(len(content) + 10)}),
    "an error": lambda *_: (200, b'{"error": "Internal Error"}', {}),
    "a number": lambda *_: (200, b"1e999", {}),
    "a long number": lambda *_: (200, b"1" * 5000, {}),
    "deep": lambda *_: (200, b"[" * 100_000, {}),
    "no text": lambda *_: (200, b"\xff\xfe\x00", {}),
    "a loop": lambda *_: (302, b"", {"Location": f"{ADDRESS}/api/models/{NAME}"}),
    "to a file": lambda *_: (302, b"", {"Location": "file:///etc/passwd"}),
    "to nowhere": lambda *_: (302, b"", {"Location": "http://[x"}),
    "packed": lambda *_: (200, b"\x1f\x8b", {"Content-Encoding": "gzip"}),
    "huge": lambda *_: (200, b" " * 200_000, {}),
    "huge redirect": lambda *_: (302, b" " * 200_000, {"Location": "/x"}),
    "huge error": lambda *_: (400, b" " * 200_000, {}),
    "odd error": lambda *_: (400, b'{"error": {}, "errors": 7}', {}),
    "another error": lambda *_: (418, b"[]", {"X-Error-Message": "\x1b[2J"}),
    "warning": lambda status, content, headers: (status, content, {**headers, "X-HF-Warning": "x; \x1b[2J"}),
    "for ever": lambda *_: (429, b"", {"Retry-After": "99999999999999999999"}),
    "for days": lambda *_: (503, b"", {"RateLimit": '"api";r=0;t=999999', "Retry-After": "999999"}),
}


@pytest.mark.parametrize("kind", BODIES)
def test_malformed_answers(kind: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(client, "MAX_IN_MEMORY", 100_000)
    monkeypatch.setattr(time, "sleep", waited.append)
    for number, call in enumerate(CALLS):
        hub.repository(NAME).tags.clear()
        hub.faults = [Fault("changed", call, change=BODIES[kind])]
        for action in (lambda: download(tmp_path / f"cache{number}"), send):  # noqa: B023
            message = outcome(action)
            assert NAME in message
            assert "\x1b" not in message
    assert sum(waited) < 3600


def test_facts_in_the_message_for_a_refused_answer(hub: Hub, tmp_path: Path) -> None:
    hub.faults = [Fault("changed", "/api/models", change=BODIES["HTML"])]
    with refused(f"model: {NAME}", f"GET {ADDRESS}/api/models/{NAME}", "not valid JSON", "HF_ENDPOINT", "try again") as error:
        download(tmp_path / "cache")
    assert isinstance(error.value, HubError)


# --- without end


def test_endless_pages(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_REQUESTS", 30)
    pages = iter(range(1000))

    def next_page(*_: Any) -> Answer:
        return 200, b"[]", {"Link": f'<{ADDRESS}/api/models/{NAME}/tree/main?x={next(pages)}>; rel="next"'}

    hub.faults = [Fault("changed", "/tree/", change=next_page)]
    with pytest.raises(HubError, match="there is no end"):
        download(tmp_path / "cache")
    assert next(pages) < 100


def test_a_download_that_breaks_off_again_and_again(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_DOWNLOADS", 3)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    hub.faults = [Fault("changed", "GET .*/config.json", change=lambda *_: (206, b"1", {"Content-Length": "2"}))]
    with pytest.raises(HubError, match=r"config.json.*there is no end"):
        download(tmp_path / "cache")


@pytest.mark.parametrize("part", ["body", "head"])
def test_an_answer_that_is_too_slow(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chunk comes in time, but the answer does not end in time."""

    def trickle() -> Iterator[bytes]:
        for _ in range(600):
            time.sleep(0.05)
            yield b"x"

    def slowly(status: int, content: bytes, headers: dict[str, str]) -> Answer:
        return status, trickle(), headers | {"Content-Length": "600"}

    monkeypatch.setattr(client, "SPEED_INTERVAL", 0.5)
    monkeypatch.setattr(client, "RESPONSE_TIMEOUT", 0.5)
    with serve() as (address, hub), pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", address)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        hub.seed(NAME, FILES)
        hub.faults = [
            Fault("changed", "GET .*/config.json", change=slowly) if part == "body" else Fault("trickling-head", "config.json")
        ]
        with pytest.raises(HubError, match="too slow" if part == "body" else "has not begun"):
            download(tmp_path / "cache")
        hub.faults = []
        assert (download(tmp_path / "cache") / "config.json").read_bytes() == FILES["config.json"]


@pytest.mark.parametrize("status", [404, 501])
def test_files_of_a_hub_that_cannot_list_them(hub: Hub, status: int) -> None:
    """A file that is not listed is not taken for missing: without its tokenizer settings, the model would differ."""
    hub.seed(NAME, FILES | {"tokenizer_config.json": b"{}"})
    hub.faults = [Fault("changed", "tree", None, change=lambda _, content, headers: (status, content, headers))]
    source = pin(ModelSource(NAME, NAME))
    path = find_file(source, "tokenizer_config.json")
    assert path is not None
    assert path.read_bytes() == b"{}"
    assert find_file(source, "added_tokens.json") is None


def test_a_gated_repository_is_reported(hub: Hub) -> None:
    gated = with_headers(X_Error_Code="GatedRepo")
    hub.faults = [Fault("changed", "", None, change=lambda _, content, headers: (403, *gated(403, content, headers)[1:]))]
    with pytest.raises(UserError, match=r"(?s)403.*(gated|restricted|access|Gated)"):
        pin(ModelSource(NAME, NAME))
