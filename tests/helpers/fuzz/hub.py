"""Answers of a hub that are changed at random: of a download, a push, the look for one file, and the commit of a data set."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, snapshot_download
from huggingface_hub.utils import disable_progress_bars
from huggingface_hub.utils import logging as hub_logging

from nlp_transfer.data.sources import ModelSource
from nlp_transfer.hub import client, permissions
from nlp_transfer.hub.client import asking
from nlp_transfer.models.verification.model_files import _list_files, find_file, pin
from nlp_transfer.utils.errors import UserError
from tests.helpers.fuzz.cases import Case, ViolationError, mutate, odd_text, replaced
from tests.helpers.hub import Fault
from tests.helpers.hub.client import TOKEN
from tests.helpers.hub.faults import Answer
from tests.helpers.hub.inside import ADDRESS, OTHER, inside

NAME = "ann/reviews"
FILES = {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"weights" * 100, "folder/vocab.txt": b"a\nb\n"}
CALLS = {
    "download": ("GET /api/models/", "/tree/", "HEAD ", "GET .*/resolve/", ""),
    "file": ("HEAD ", "GET .*/resolve/", "/tree/"),
    "data": ("/api/datasets/", "/tree/"),
    "push": (
        "whoami", "/refs", "GET /api/models/", "/preupload/", "objects/batch", "objects/verify", "/upload/", "POST .*/commit/",
        "/tree/", "/tag/", "/branch/", "validate-yaml", "",
    ),
}  # fmt: skip
ESCAPES = [
    *("../" * depth + "escaped" for depth in range(1, 9)), "/escaped", "..", ".", "a/b", "..\\x", "a" * 5000, "~", "\x1b[2J",
    "\t", " ", "%2e%2e/x", "é", "-", "", '"', 'W/"a"', "con", "a\x7f",
]  # fmt: skip
PLACES = [
    f"{OTHER}/x", f"{OTHER}/api/models/{NAME}", f"{ADDRESS}/x", "/x", "", "file:///etc/passwd", "http://[x", "//other.test/x",
    "x", "ftp://other.test", "http://ann:secret@hub.test/x", "http://hub.test:81/x", "https://hub.test/x", "HTTP://HUB.TEST/x",
    "http://hub.test@other.test/", "javascript:x", "http://hub.test\\@other.test/", "http://hub.test./x",
    "http://hub.test%2eother.test/", "http://other.test#@hub.test/", f"{ADDRESS}/" + "a" * 9000,
]  # fmt: skip
NUMBERS = ["0", "-1", "1", "99", "1e9", "9" * 30, "9" * 5000, "²", "x", "", "1, 2", " 7"]
LINKS = [f'<{place}>; rel="{kind}"' for place in PLACES for kind in ("next", "next", "xet-auth")] + ["<", "a;b=c", ","]
HEADERS: dict[str, list[str]] = {
    "ETag": ESCAPES,
    "X-Linked-Etag": ESCAPES,
    "X-Repo-Commit": ESCAPES,
    "Location": PLACES,
    "Link": LINKS,
    "X-Linked-Size": NUMBERS,
    "Content-Length": NUMBERS,
    "Retry-After": NUMBERS,
    "RateLimit": [f'"api";r=0;t={number}' for number in NUMBERS],
    "X-Xet-Hash": ["f" * 64, *ESCAPES],
    "X-Xet-Refresh-Route": PLACES,
    "Content-Type": ["text/html", "x", "application/json; charset=x"],
    "Content-Encoding": ["gzip", "br", "identity", "x", "deflate, gzip"],
    "Set-Cookie": ["a=b; Domain=test", "=", ";"],
    "X-Error-Code": ["RepoNotFound", "RevisionNotFound", "EntryNotFound", "GatedRepo", "x"],
    "X-Error-Message": ESCAPES,
    "X-HF-Warning": ["x; \x1b[2J", ";", "a"],
    "Content-Range": ["bytes 0-1/2", "bytes */9", "x", "bytes 5-6/x"],
    "X-Request-Id": ESCAPES,
}
STATUSES = [
    200, 201, 204, 206, 301, 302, 303, 307, 308, 304, 400, 401, 403, 404, 408, 409, 412, 416, 418, 422, 429, 500, 501, 503, 599,
    100,
]  # fmt: skip
ODD: list[Any] = [
    None, True, False, 0, -1, 7, 2**70, 1.5, "", "x", *ESCAPES, *PLACES, [], [[]], {}, {"a": {}}, ["x"], [None],
    "x" * 50_000, NAME, "model",
]  # fmt: skip


def odd_document(rng: random.Random, value: Any) -> Any:
    """A JSON document with something in it changed."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        copy = value.copy()
        key = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
        if rng.random() < 0.2:
            del copy[key]
        elif isinstance(copy, list) and rng.random() < 0.1:
            copy.extend(copy * rng.choice([1, 50]))
        else:
            copy[key] = odd_document(rng, copy[key])
        return copy
    if isinstance(value, str) and rng.random() < 0.7:
        return rng.choice(PLACES if "://" in value else ESCAPES)
    return rng.choice(ODD)


def odd_body(rng: random.Random, content: bytes) -> bytes:
    what = rng.randrange(8)
    if what < 4:
        try:
            return json.dumps(odd_document(rng, json.loads(content))).encode()
        except ValueError:
            pass
    if what < 6:
        return mutate(rng, content)
    odd = [b"", b"<html></html>", b"[" * 50_000, b"null", b"1" * 6000, b"\xff\xfe", content[: len(content) // 2], b" " * 300_000]
    return rng.choice([*odd, json.dumps(odd_text(rng)).encode()])


def odd_answer(rng: random.Random) -> Callable[[int, bytes, dict[str, str]], Answer]:
    def change(status: int, content: bytes, headers: dict[str, str]) -> Answer:
        headers = dict(headers)
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            what = rng.randrange(10)
            if what < 4:
                content = odd_body(rng, content)
            elif what < 8:
                name = rng.choice(list(HEADERS)[: 6 if rng.random() < 0.5 else None])
                headers[name] = rng.choice(HEADERS[name]).encode("latin-1", "replace").decode("latin-1")
            elif what == 8:
                headers.pop(rng.choice(list(headers)), None) if headers else None
            else:
                status = rng.choice(STATUSES)
                headers["Location"] = rng.choice(PLACES)
        return status, content, headers

    return change


def send() -> None:
    with asking(f"pushing to {NAME}"):
        api = permissions.connect(NAME)
        target = permissions.check_target(api, permissions.Target(NAME, tag="v1"))
        if target.state is None or target.state.head is None:
            raise UserError(f"{NAME}: is gone")
        ModelCard("---\ntags: [a]\n---\n").validate()
        files = [CommitOperationAdd("new.safetensors", b"new weights"), CommitOperationAdd("notes.txt", b"notes")]
        api.create_branch(NAME, branch="other", exist_ok=True)
        commit = api.create_commit(NAME, files, commit_message="message", parent_commit=target.state.head, num_threads=2)
        list(api.list_repo_tree(NAME, recursive=True, revision=commit.oid))
        api.create_tag(NAME, tag="v1", revision=commit.oid)


def make(rng: random.Random, folder: Path) -> Case:
    kind = rng.choice(["download", "download", "push", "push", "push", "file", "data"])
    change, call = odd_answer(rng), rng.choice(CALLS[kind])
    at = rng.choice([None, None, None, (1,), (2,)])
    cache = folder / "cache"

    def act() -> None:
        if kind == "push":
            send()
        elif kind == "file":
            _list_files.cache_clear()
            find_file(pin(ModelSource(NAME, NAME)), "model.safetensors")
        elif kind == "data":
            with asking(f"data.train: {NAME}"):
                HfApi().dataset_info(NAME)
                list(HfApi().list_repo_tree(NAME, repo_type="dataset"))
        else:
            with asking(f"model: {NAME}"):
                found = Path(snapshot_download(NAME, cache_dir=cache))
            if not found.resolve().is_relative_to(cache):
                raise ViolationError(f"the files are in {found}")

    def run() -> None:
        waited: list[float] = []
        with (
            inside(cache) as (hub, transport),
            replaced(time, "sleep", waited.append),
            replaced(permissions, "say", str),
        ):
            hub.seed(NAME, FILES)
            hub.repositories["datasets", NAME] = hub.repositories["models", NAME]
            hub.faults = [Fault("changed", call, at, change=change)]
            with replaced(client, "MAX_IN_MEMORY", 200_000):
                try:
                    act()
                finally:
                    told = [request for request in transport.elsewhere if TOKEN in str(request.headers.raw)]
                    if told or sum(waited) > 3600:
                        raise ViolationError(f"the token went to {told}" if told else f"{sum(waited)} seconds were waited")
                    if set(folder.iterdir()) > {cache}:
                        raise ViolationError(f"written outside the cache: {sorted(folder.iterdir())}")

    return Case(f"{kind} {call}", run, (NAME,))


disable_progress_bars()
hub_logging.set_verbosity(100)
