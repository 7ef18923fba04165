"""Changes of a repository: checks of model cards, uploads of files, and atomic commits."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from tests.helpers.hub.store import LARGE, Blob, Commit, Hub, RefusedError, Repository

CARD = re.compile(r"^\s*---\r?\n(.*?)\r?\n---(\r?\n|$)", re.DOTALL)
MODEL_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


def check_card(content: str) -> dict[str, Any]:
    """Check the metadata of a model card as the real hub does. Raises RefusedError with status 400."""
    errors, warnings = [], []
    match = CARD.match(content)
    try:
        card = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError as error:
        raise RefusedError(400, "Invalid metadata", errors=[{"message": f"YAML: {str(error).splitlines()[0]}"}]) from None
    if not isinstance(card, dict):
        raise RefusedError(400, "Invalid metadata", errors=[{"message": "the metadata must be an object"}])
    if not card:
        warnings.append({"message": "empty or missing yaml metadata in repo card"})
    bases = card.get("base_model", [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not MODEL_ID.match(str(base)):
            errors.append({"message": f'"base_model" with value {base!r} is not valid. Use a model id from the hub.'})
    if "pipeline_tag" in card and not isinstance(card["pipeline_tag"], str):
        errors.append({"message": '"pipeline_tag" must be a string'})
    for index in card.get("model-index", []):
        if not index.get("name") or not isinstance(index.get("results"), list):
            errors.append({"message": '"model-index[0].results" is required'})
    if errors:
        raise RefusedError(400, "Invalid metadata", errors=errors, warnings=warnings)
    return {"errors": [], "warnings": warnings}


def preupload(repository: Repository, revision: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return which files are uploaded as large files, and the hashes of the files that the repository has."""
    there = repository.find(revision).files
    answers = []
    for file in body["files"]:
        base64.b64decode(file["sample"], validate=True)
        answer = {"path": file["path"], "uploadMode": "lfs" if _large(file["path"]) else "regular", "shouldIgnore": False}
        if known := there.get(file["path"]):
            answer["oid"] = known.sha256 if known.large else known.oid
        answers.append(answer)
    return {"files": answers}


def _large(path: str) -> bool:
    return path.endswith(LARGE)


def batch(hub: Hub, repository: Repository, address: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the upload address of each large file that is not stored yet."""
    objects = []
    for asked in body["objects"]:
        oid, size = asked["oid"], asked["size"]
        item: dict[str, Any] = {"oid": oid, "size": size}
        if oid not in hub.verified:
            upload: dict[str, Any] = {"href": f"{address}/upload/{oid}"}
            if hub.part_size:
                count = -(-size // hub.part_size)
                parts = {str(number + 1): f"{address}/upload/{oid}/{number + 1}" for number in range(count)}
                upload["header"] = {"chunk_size": str(hub.part_size)} | parts
            item["actions"] = {
                "upload": upload,
                "verify": {"href": f"{address}/{repository.name}.git/info/lfs/objects/verify"},
            }
        objects.append(item)
    return {"transfer": "multipart" if hub.part_size else "basic", "objects": objects}


def upload(hub: Hub, oid: str, part: str | None, method: str, content: bytes, broken: bool) -> str:
    """Store a large file or a part of one, or join the parts (POST). Returns the ETag."""
    if broken and content:
        content = _turned(content)
    if method == "POST":
        parts = [f"{oid}/{one['partNumber']}" for one in json.loads(content)["parts"]]
        if any(name not in hub.stored for name in parts):
            raise RefusedError(400, "a part is missing")
        content = b"".join(hub.stored.pop(name) for name in parts)
    if part is None and not broken and hashlib.sha256(content).hexdigest() != oid:
        raise RefusedError(400, "the content is not what was announced")
    hub.stored[oid if part is None else f"{oid}/{part}"] = content
    return f'"{hashlib.md5(content).hexdigest()}"'


def _turned(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def commit(
    hub: Hub, repository: Repository, revision: str, body: bytes, pull: bool, corrupt: bool = False, rival: bool = False
) -> Commit:
    """Make a commit, and let its branch or a pull request point to it after all checks."""
    if rival and revision in repository.branches:
        other = repository.find(revision)
        note = Blob(f"after {other.sha}".encode(), False)
        repository.branches[revision] = repository.add(other.sha, "from elsewhere", {**other.files, "rival.txt": note}).sha
    lines = [json.loads(line) for line in body.splitlines() if line]
    head = lines[0]["value"]
    parent = repository.find(revision)
    if not pull and revision not in (*repository.branches, *repository.pulls):
        raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    if head.get("parentCommit") and head["parentCommit"] != parent.sha and not pull:
        raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
    files = dict(parent.files)
    for line in lines[1:]:
        kind, value = line["key"], line["value"]
        path = value["path"]
        if kind == "file":
            content = base64.b64decode(value["content"], validate=True)
            if path == "README.md":
                check_card(content.decode())
            files[path] = Blob(_turned(content) if corrupt and content else content, False)
        elif kind == "lfsFile":
            if value["oid"] not in hub.verified and not _known(repository, value["oid"]):
                raise RefusedError(400, f"LFS pointer pointed to a file that does not exist: {path}")
            files[path] = Blob(hub.stored.get(value["oid"]) or _known(repository, value["oid"]) or b"", True)
        elif kind == "deletedFile":
            if files.pop(path, None) is None:
                raise RefusedError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        elif kind == "deletedFolder":
            files = {name: blob for name, blob in files.items() if not name.startswith(path.rstrip("/") + "/")}
        else:
            raise RefusedError(400, f"unknown operation {kind}")
    made = repository.add(parent.sha, head["summary"], files)
    if pull:
        repository.pulls[f"refs/pr/{len(repository.pulls) + 1}"] = made.sha
    elif revision in repository.pulls:
        repository.pulls[revision] = made.sha
    else:
        repository.branches[revision] = made.sha
    return made


def _known(repository: Repository, oid: str) -> bytes | None:
    blobs = (blob for one in repository.commits.values() for blob in one.files.values())
    return next((blob.content for blob in blobs if blob.large and blob.sha256 == oid), None)


def add_ref(refs: dict[str, str], name: str, sha: str) -> dict[str, Any]:
    """Create a branch or a tag."""
    if name in refs:
        raise RefusedError(409, f"Reference already exists: {name}")
    refs[name] = sha
    return {}
