"""The HTTP calls of the fake hub, on the loopback interface."""

import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.helpers.hub import writing
from tests.helpers.hub.faults import AFTER, Fault
from tests.helpers.hub.store import Hub, RefusedError, Repository, User

ID = r"(?P<id>[\w.-]+/[\w.-]+)"
REPOSITORY = rf"/api/(?P<kind>models|datasets)/{ID}"
ROUTES = [
    (method, re.compile(pattern + "$"), name)
    for method, pattern, name in [
        ("GET", "/api/whoami-v2", "whoami"),
        ("POST", "/api/validate-yaml", "validate"),
        ("POST", "/api/repos/create", "create"),
        ("GET", REPOSITORY + r"(/revision/(?P<revision>[^/]+))?", "info"),
        ("GET", REPOSITORY + r"/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", "tree"),
        ("POST", REPOSITORY + r"/paths-info/(?P<revision>[^/]+)", "paths"),
        ("GET", REPOSITORY + "/refs", "refs"),
        ("POST", REPOSITORY + r"/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", REPOSITORY + r"/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", REPOSITORY + r"/branch/(?P<revision>[^/]+)", "branch"),
        ("POST", REPOSITORY + r"/tag/(?P<revision>[^/]+)", "tag"),
        ("POST", rf"/(?P<data>datasets/)?{ID}\.git/info/lfs/objects/batch", "batch"),
        ("POST", rf"/(?P<data>datasets/)?{ID}\.git/info/lfs/objects/verify", "verify"),
        ("PUT|POST", r"/upload/(?P<oid>[0-9a-f]{64})(/(?P<part>\d+))?", "upload"),
        ("GET|HEAD", rf"/(?P<data>datasets/)?{ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "file"),
    ]
]


class Handler(BaseHTTPRequestHandler):
    """A request, answered by the method that ROUTES names, or spoiled by a fault."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def answer(self) -> None:
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        call = f"{self.command} {unquote(parts.path)}"
        with self.hub.lock:
            self.hub.asked.append(call)
            self.fault = next(filter(None, (fault.strikes(call) for fault in self.hub.faults)), None)
        kind = self.fault.kind if self.fault else ""
        if kind == "cut-request":
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self.cut()
            return
        try:
            body = self.body()
        except (ConnectionError, TimeoutError):
            return
        while kind == "trickling-head":
            try:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX: " if not self.headers.get("begun") else b"x")
                self.headers["begun"] = "yes"
                time.sleep(0.05)
            except ConnectionError:
                return
        try:
            with self.hub.lock:
                if self.fault and kind not in (*AFTER, "corrupt", "rival"):
                    self.refuse(self.fault)
                status, content, headers = self.route(parts.path, body)
        except RefusedError as refused:
            status, content, headers = self.error(refused)
        try:
            self.send(status, content, headers, kind)
        except ConnectionError:
            self.close_connection = True

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def route(self, path: str, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        self.token, self.sent = token, body
        for methods, pattern, name in ROUTES:
            match = pattern.match(path)
            if match and re.fullmatch(methods, self.command):
                fields = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                fields.setdefault("kind", "datasets" if fields.get("data") else "models")
                user = self.hub.who(token)
                answer = getattr(self, f"on_{name}")(fields, user)
                return answer if isinstance(answer, tuple) else (200, json.dumps(answer).encode(), {})
        raise RefusedError(404, "Not found", "RepoNotFound")

    def refuse(self, fault: Fault) -> None:
        if fault.kind == "401" and self.headers.get("Authorization"):
            self.hub.users.pop(self.headers["Authorization"].removeprefix("Bearer "), None)
            raise RefusedError(401, "Invalid credentials in Authorization header")
        words = {"409": "Another operation is in progress", "429": "Too Many Requests"}
        raise RefusedError(int(fault.kind), words.get(fault.kind, "Internal Error"))

    def error(self, refused: RefusedError) -> tuple[int, bytes, dict[str, str]]:
        headers = {"X-Error-Message": refused.message}
        if refused.code:
            headers["X-Error-Code"] = refused.code
        if refused.status == 429 and self.fault and self.fault.retry_after is not None:
            headers["Retry-After"] = str(self.fault.retry_after)
        more = dict(refused.more)
        if "url" in more:
            more["url"] = f"http://{self.headers['Host']}/{more['url']}"
        if "commit" in more:
            headers["X-Repo-Commit"] = more.pop("commit")
        return refused.status, json.dumps({"error": refused.message} | more).encode(), headers

    def send(self, status: int, content: bytes, headers: dict[str, str], kind: str) -> None:
        if kind == "drop":
            self.cut()
            return
        if kind == "500-after":
            status, content, headers = 500, b'{"error": "Internal Error"}', {}
        pieces: Iterable[bytes] = content
        headers = {"Content-Type": "application/json"} | headers
        if self.fault and self.fault.change:
            status, pieces, changed = self.fault.change(status, content, headers)
            headers = dict(changed)
        if isinstance(pieces, bytes):
            headers = {"Content-Length": str(len(pieces))} | headers
            pieces = [pieces[: len(pieces) // 2] if kind == "cut-answer" else pieces]
        self.close_connection = kind == "changed"  # the client may not know where such an answer ends
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        for piece in pieces if self.command != "HEAD" else ():
            self.wfile.write(piece)
            self.wfile.flush()
        if kind == "cut-answer":
            self.wfile.flush()
            self.cut()

    def cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    # Each method returns the JSON document of the answer, or (status, content, headers).

    def on_whoami(self, _: dict[str, str], user: User | None) -> Any:
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        return user.document()

    def on_validate(self, _: dict[str, str], __: User | None) -> Any:
        return writing.check_card(json.loads(self.sent)["content"])

    def on_create(self, _: dict[str, str], user: User | None) -> Any:
        made = self.hub.create(json.loads(self.sent), user)
        return {"url": f"http://{self.headers['Host']}/{made.name}", "name": made.name}

    def on_info(self, fields: dict[str, str], user: User | None) -> Any:
        repository = self.hub.read(fields["kind"], fields["id"], user)
        commit = repository.find(fields.get("revision", "main"))
        siblings = [
            {"rfilename": path, "size": len(blob.content), "blobId": blob.oid}
            | (
                {"lfs": {"sha256": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}}
                if blob.large
                else {}
            )
            for path, blob in commit.files.items()
        ]
        return {"id": repository.name, "sha": commit.sha, "private": repository.private, "siblings": siblings}

    def on_tree(self, fields: dict[str, str], user: User | None) -> Any:
        files = self.hub.read(fields["kind"], fields["id"], user).find(fields["revision"]).files
        below = f"{fields['path']}/" if "path" in fields else ""
        return [blob.entry(path) for path, blob in files.items() if path.startswith(below)]

    def on_paths(self, fields: dict[str, str], user: User | None) -> Any:
        files = self.hub.read(fields["kind"], fields["id"], user).find(fields["revision"]).files
        asked = parse_qs(self.sent.decode()).get("paths", [])
        return [blob.entry(path) for path, blob in files.items() if path in asked]

    def on_refs(self, fields: dict[str, str], user: User | None) -> Any:
        repository = self.hub.read(fields["kind"], fields["id"], user)

        def shown(names: dict[str, str], prefix: str) -> list[dict[str, str]]:
            return [{"name": name.removeprefix(prefix), "ref": prefix + name.removeprefix(prefix), "targetCommit": sha}
                    for name, sha in names.items()]  # fmt: skip

        refs = {
            "branches": shown(repository.branches, "refs/heads/"),
            "converts": [],
            "tags": shown(repository.tags, "refs/tags/"),
        }
        return refs | ({"pullRequests": shown(repository.pulls, "refs/pr/")} if "include_prs" in self.query else {})

    def on_preupload(self, fields: dict[str, str], user: User | None) -> Any:
        repository = self.writable(fields, user)
        return writing.preupload(repository, fields["revision"], json.loads(self.sent))

    def on_commit(self, fields: dict[str, str], user: User | None) -> Any:
        repository = self.writable(fields, user)
        kind = self.fault.kind if self.fault else ""
        made = writing.commit(
            self.hub, repository, fields["revision"], self.sent, "create_pr" in self.query, kind == "corrupt", kind == "rival"
        )
        address = f"http://{self.headers['Host']}/{repository.name}"
        pull = next((name for name, sha in repository.pulls.items() if sha == made.sha), None)
        more = {"pullRequestUrl": f"{address}/discussions/{pull.removeprefix('refs/pr/')}"} if pull else {}
        return {"success": True, "commitOid": made.sha, "commitUrl": f"{address}/commit/{made.sha}"} | more

    def writable(self, fields: dict[str, str], user: User | None) -> Repository:
        """Return the repository. Everyone who may read may open a pull request."""
        if "create_pr" in self.query and user is not None and user.role != "read":
            return self.hub.read(fields["kind"], fields["id"], user)
        return self.hub.write(fields["kind"], fields["id"], user)

    def on_branch(self, fields: dict[str, str], user: User | None) -> Any:
        repository = self.hub.write(fields["kind"], fields["id"], user)
        start = json.loads(self.sent or b"{}").get("startingPoint", "main")
        return writing.add_ref(repository.branches, fields["revision"], repository.find(start).sha)

    def on_tag(self, fields: dict[str, str], user: User | None) -> Any:
        repository = self.hub.write(fields["kind"], fields["id"], user)
        return writing.add_ref(repository.tags, json.loads(self.sent)["tag"], repository.find(fields["revision"]).sha)

    def on_batch(self, fields: dict[str, str], user: User | None) -> Any:
        repository = self.hub.read(fields["kind"], fields["id"], user)
        if user is None or user.role == "read":
            raise RefusedError(403, "You don't have the rights to upload here")
        return writing.batch(self.hub, repository, f"http://{self.headers['Host']}", json.loads(self.sent))

    def on_verify(self, fields: dict[str, str], user: User | None) -> Any:
        self.hub.read(fields["kind"], fields["id"], user)
        body = json.loads(self.sent)
        if len(self.hub.stored.get(body["oid"], b"")) != body["size"]:
            raise RefusedError(422, "the object has another size")
        self.hub.verified.add(body["oid"])
        return {}

    def on_upload(self, fields: dict[str, str], _: User | None) -> Any:
        broken = self.fault is not None and self.fault.kind == "corrupt"
        etag = writing.upload(self.hub, fields["oid"], fields.get("part"), self.command, self.sent, broken)
        return 200, b"", {"ETag": etag}

    def on_file(self, fields: dict[str, str], user: User | None) -> Any:
        commit = self.hub.read(fields["kind"], fields["id"], user).find(fields["revision"])
        blob = commit.files.get(fields["path"])
        if blob is None:
            raise RefusedError(404, "Entry not found", "EntryNotFound", commit=commit.sha)
        etag = blob.sha256 if blob.large else hashlib.sha1(blob.content).hexdigest()
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{etag}"', "Content-Type": "application/octet-stream"}
        return 200, blob.content, headers


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # faults make clients close connections


@contextmanager
def serve(root: Path | None = None) -> Iterator[tuple[str, Hub]]:
    """Yield the address of a running hub, and the hub."""
    hub = Hub(root)
    server = Server(("127.0.0.1", 0), type("HandlerOfOne", (Handler,), {"hub": hub}))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(address: str, cache: Path) -> dict[str, str]:
    """Return the environment of a child process that uses the hub at `address`."""
    return {name: value for name, value in os.environ.items() if name != "HF_TOKEN"} | {
        "HF_ENDPOINT": address,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
