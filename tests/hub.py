"""A read-only hub on the loopback interface that speaks what huggingface_hub and datasets ask for when they load."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

API = re.compile(r"^/api/(?P<kind>models|datasets)/(?P<id>[\w.-]+/[\w.-]+)(/(?P<verb>revision|tree|paths-info)/(?P<rest>.+))?$")
FILE = re.compile(r"^/(?P<data>datasets/)?(?P<id>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)$")


class Hub:
    """Serves `root/models/USER/NAME/...` and `root/datasets/USER/NAME/...`; `asked` keeps what was requested."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []

    def files(self, kind: str, repository: str) -> dict[str, Path]:
        folder = self.root / kind / repository
        return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}

    def commit(self, kind: str, repository: str) -> str:
        """The revision of a repository: a hash of what is in it."""
        digest = hashlib.sha1()
        for name, path in self.files(kind, repository).items():
            digest.update(name.encode() + path.read_bytes())
        return digest.hexdigest()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_POST(self) -> None:
            self.form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            if found := API.match(path):
                self._api(found["kind"], found["id"], found["verb"], found["rest"] or "")
            elif found := FILE.match(path):
                self._file("datasets" if found["data"] else "models", found["id"], found["path"], body)
            else:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        def _api(self, kind: str, repository: str, verb: str | None, rest: str) -> None:
            files = hub.files(kind, repository)
            if not files:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                return
            entries = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": hashlib.sha1(path.read_bytes()).hexdigest()}
                for name, path in files.items()
            ]
            answer: Any = {
                "id": repository,
                "sha": hub.commit(kind, repository),
                "siblings": [{"rfilename": entry["path"], "size": entry["size"], "blobId": entry["oid"]} for entry in entries],
            }
            if verb == "tree":
                below = rest.partition("/")[2]
                answer = [entry for entry in entries if not below or str(entry["path"]).startswith(below + "/")]
            if verb == "paths-info":
                answer = [entry for entry in entries if entry["path"] in self.form.get("paths", [])]
            self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

        def _file(self, kind: str, repository: str, name: str, body: bool) -> None:
            path = hub.files(kind, repository).get(name)
            headers = {"X-Repo-Commit": hub.commit(kind, repository)}
            if path is None:
                self._send(404, b"", headers | {"X-Error-Code": "EntryNotFound"})
                return
            content = path.read_bytes()
            self._send(200, content, headers | {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'}, body)

        def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool = True) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body and self.command != "HEAD":
                self.wfile.write(content)

    return Handler


@contextmanager
def serve(root: Path) -> Iterator[tuple[str, Hub]]:
    """The address of a running hub, and the hub."""
    hub = Hub(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(address: str, cache: Path) -> dict[str, str]:
    """What a child process needs to take the hub at `address` for the real one."""
    return os.environ | {
        "HF_ENDPOINT": address,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
