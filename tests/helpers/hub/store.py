"""The state of the fake hub: users and their rights, repositories, commits, large files."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any

LARGE = (".safetensors", ".bin", ".parquet", ".model", ".png")
FIRST = {".gitattributes": "".join(f"*{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LARGE).encode()}


class RefusedError(Exception):
    """An error answer: the status, the code and the message of the real hub."""

    def __init__(self, status: int, message: str, code: str | None = None, **more: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.more = status, message, code, more


@dataclass
class User:
    """The owner of a token. `role` belongs to the token: read, write or fineGrained (then `scopes` maps names to rights)."""

    name: str
    role: str = "write"
    orgs: dict[str, str] = field(default_factory=dict)
    scopes: dict[str, list[str]] = field(default_factory=dict)
    blind: bool = False
    """Whether private repositories are hidden from the token."""

    def document(self) -> dict[str, Any]:
        """Return the answer of whoami-v2."""
        token: dict[str, Any] = {"displayName": "test", "role": self.role}
        if self.role == "fineGrained":
            scoped = [{"entity": {"name": name, "type": "user"}, "permissions": rights} for name, rights in self.scopes.items()]
            token["fineGrained"] = {"global": [], "scoped": scoped}
        return {
            "type": "user",
            "name": self.name,
            "orgs": [{"type": "org", "name": name, "roleInOrg": role} for name, role in self.orgs.items()],
            "auth": {"type": "access_token", "accessToken": token},
        }

    def reads(self, repository: str) -> bool:
        """Return whether the user may see a private repository."""
        return not self.blind and repository.split("/")[0] in (self.name, *self.orgs)

    def writes(self, repository: str) -> bool:
        namespace = repository.split("/")[0]
        if self.role == "fineGrained":
            return any("repo.write" in self.scopes.get(name, []) for name in (namespace, repository))
        member = namespace == self.name or self.orgs.get(namespace) in ("contributor", "write", "admin")
        return self.role == "write" and member


@dataclass(frozen=True)
class Blob:
    """A file's content as it is stored, and whether it lies in the store of large files."""

    content: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git itself keeps."""
        if not self.large:
            return self.content
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()

    @property
    def oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.pointer) + self.pointer).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        """Return the entry in a listing."""
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(self.content), "oid": self.oid}
        if self.large:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}
        return entry


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    title: str
    files: Mapping[str, Blob]


class Repository:
    """Commits, and the branches, tags and pull requests that point to them."""

    def __init__(self, kind: str, name: str, private: bool, files: Mapping[str, Blob]) -> None:
        self.kind, self.name, self.private = kind, name, private
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.pulls: dict[str, str] = {}
        self.branches["main"] = self.add(None, "initial commit", files).sha

    def add(self, parent: str | None, title: str, files: Mapping[str, Blob]) -> Commit:
        """Add a commit to which no branch points yet."""
        digest = hashlib.sha1(json.dumps([self.name, parent, title, len(self.commits)]).encode())
        for path, blob in sorted(files.items()):
            digest.update(path.encode() + blob.oid.encode())
        made = Commit(digest.hexdigest(), parent, title, dict(files))
        self.commits[made.sha] = made
        return made

    def find(self, revision: str) -> Commit:
        """Return the commit of a branch, a tag, a pull request or a hash."""
        sha = self.branches.get(revision) or self.tags.get(revision) or self.pulls.get(revision) or revision
        if sha not in self.commits:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return {path: blob.content for path, blob in self.find(revision).files.items()}

    def history(self, revision: str = "main") -> list[Commit]:
        """Return the commits, the newest first."""
        commits: list[Commit] = [self.find(revision)]
        while commits[-1].parent is not None:
            commits.append(self.commits[commits[-1].parent])
        return commits

    def state(self) -> dict[str, Any]:
        """Return the visible state, for comparisons."""
        refs = {f"{kind}/{name}": sha for kind in ("branches", "tags", "pulls") for name, sha in getattr(self, kind).items()}
        return {"private": self.private} | {ref: self.files(sha) for ref, sha in refs.items()}


class Hub:
    """Repositories by (kind, name). Folders `root/models/USER/NAME` and `root/datasets/USER/NAME` are public ones.

    `asked` holds the requests as `METHOD /path`. `part_size` is the size of the parts in which large files are sent.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root
        self.asked: list[str] = []
        self.users: dict[str, User] = {}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.stored: dict[str, bytes] = {}
        """Large files by their announced hash."""
        self.verified: set[str] = set()
        self.part_size: int | None = None
        self.faults: list[Any] = []
        self.lock = RLock()

    def user(self, token: str, name: str, role: str = "write", **more: Any) -> User:
        """Register a token, and return its owner."""
        self.users[token] = User(name, role, **more)
        return self.users[token]

    def who(self, token: str | None) -> User | None:
        """Return the owner of a token. Raises RefusedError if the token is not known."""
        if token is None:
            return None
        if token not in self.users:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return self.users[token]

    def known(self, kind: str, name: str) -> Repository | None:
        repository = self.repositories.get((kind, name))
        folder = self.root / kind / name if self.root and name else None
        if repository is None and folder is not None and folder.is_dir():
            files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
            blobs = {path: Blob(file.read_bytes(), path.endswith(LARGE)) for path, file in files.items()}
            repository = self.repositories[kind, name] = Repository(kind, name, False, blobs)
        return repository

    def repository(self, name: str, kind: str = "models") -> Repository:
        """Return a repository. Raises KeyError if there is none."""
        repository = self.known(kind, name)
        if repository is None:
            raise KeyError(name)
        return repository

    def commit(self, kind: str, name: str) -> str:
        """Return the commit of the main branch."""
        return self.repository(name, kind).branches["main"]

    def read(self, kind: str, name: str, user: User | None) -> Repository:
        """Return a repository for a user. Raises RefusedError if it does not exist or is hidden from the user."""
        repository = self.known(kind, name)
        if repository is None or (repository.private and not (user and user.reads(name))):
            raise RefusedError(404 if user else 401, "Repository not found", "RepoNotFound")
        return repository

    def write(self, kind: str, name: str, user: User | None) -> Repository:
        repository = self.read(kind, name, user)
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        if not user.writes(name):
            raise RefusedError(403, "You don't have the rights to write to this repository")
        return repository

    def create(self, body: Mapping[str, Any], user: User | None) -> Repository:
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        name = f"{body.get('organization') or user.name}/{body['name']}"
        kind = f"{body.get('type') or 'model'}s"
        if not user.writes(name):
            raise RefusedError(
                403, f'You don\'t have the rights to create a {kind[:-1]} under the namespace "{name.split("/")[0]}"'
            )
        if self.known(kind, name):
            raise RefusedError(409, f"You already created this {kind[:-1]} repo", url=name)
        blobs = {path: Blob(content, False) for path, content in FIRST.items()}
        made = self.repositories[kind, name] = Repository(kind, name, body.get("visibility") == "private", blobs)
        return made

    def seed(self, name: str, files: Mapping[str, bytes], private: bool = False) -> Repository:
        """Create a repository with files."""
        blobs = {path: Blob(content, path.endswith(LARGE)) for path, content in (FIRST | dict(files)).items()}
        made = self.repositories["models", name] = Repository("models", name, private, blobs)
        return made

    def wrote(self) -> list[str]:
        """Return the requests that could have changed something."""
        writes = ("repos/create", "/preupload/", "/info/lfs/", "/commit/", "/branch/", "/tag/", "/upload/")
        return [call for call in self.asked if not call.startswith(("GET", "HEAD")) and any(part in call for part in writes)]
