"""What a hub's answers must look like: the fields that are read, and their types. Other fields may hold anything.

Names and commits become names of files and folders in the cache, so they are of characters that cannot leave it.
"""

import re
from typing import Any

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
PATH = re.compile(r"(?!/)(?!(.*/)?\.{1,2}(/|$))[^\\\x00-\x1f\x7f-\x9f]{1,1024}")
TEXT = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,300}")
ADDRESS = re.compile(r"https?://[!-~]{1,8000}")
SIZE = range(2**62)
MEANINGS = {NAME: "a hash or a name", PATH: "a path inside a folder", TEXT: "a short text", ADDRESS: "an address"}

LFS = {"oid": NAME, "size": SIZE}
REF = {"name": TEXT, "ref": TEXT, "targetCommit": NAME}
ROLE = {"entity": {"name?": TEXT}, "permissions?": [TEXT]}
# A name that ends in `?` may be missing or null; a pattern must match the whole text.
ANSWERS: tuple[tuple[str, str, Any], ...] = (
    ("GET", r"/api/whoami-v2", {
        "name": TEXT, "orgs?": [{"name": TEXT, "roleInOrg?": TEXT}],
        "auth?": {"accessToken?": {"role?": TEXT, "fineGrained?": {"scoped?": [ROLE]}}},
    }),
    ("GET", r"/api/(models|datasets)/[^/]+(/[^/]+)?(/revision/[^/]+)?", {
        "id": TEXT, "sha": NAME, "private?": bool, "siblings?": [{"rfilename": PATH}],
    }),
    ("GET", r"/api/.+/tree/.+", [{"type": TEXT, "path": PATH, "oid": NAME, "size": SIZE, "lfs?": LFS}]),
    ("POST", r"/api/.+/paths-info/.+", [{"type": TEXT, "path": PATH, "oid": NAME, "size": SIZE, "lfs?": LFS}]),
    ("GET", r"/api/.+/refs", {"branches": [REF], "tags": [REF], "converts": [REF], "pullRequests?": [REF]}),
    ("GET", r"/api/.+/commits/.+", [{"id": NAME, "title": str, "message": str}]),
    ("POST", r"/api/repos/create", {"url": ADDRESS}),
    ("POST", r"/api/.+/preupload/.+", {
        "files": [{"path": PATH, "uploadMode": TEXT, "shouldIgnore": bool, "oid?": NAME}],
    }),
    ("POST", r"/.+\.git/info/lfs/objects/batch", {
        "objects": [LFS | {"actions?": {"upload?": {"href": ADDRESS, "header?": dict}, "verify?": {"href": ADDRESS}}}],
    }),
    ("POST", r"/api/.+/commit/.+", {"commitOid": NAME, "commitUrl": ADDRESS, "pullRequestUrl?": ADDRESS}),
)  # fmt: skip


def shape_of(method: str, path: str) -> Any:
    """The shape of the answer to a call; None where it is not known."""
    return next((shape for called, pattern, shape in ANSWERS if called == method and re.fullmatch(pattern, path)), None)


def fault(shape: Any, value: Any, place: str = "the document") -> str | None:
    """What is wrong with an answer; None where it has the shape."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return _wrong(place, value, "an object")
        for key, inner in shape.items():
            name = key.rstrip("?")
            if value.get(name) is None and key.endswith("?"):
                continue
            if name not in value:
                return f"{place} has no {name}"
            if found := fault(inner, value[name], name):
                return found
        return None
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _wrong(place, value, "a list")
        return next((found for one in value if (found := fault(shape[0], one, f"an entry of {place}"))), None)
    if isinstance(shape, re.Pattern):
        right = isinstance(value, str) and shape.fullmatch(value) is not None
        return None if right else _wrong(place, value, MEANINGS[shape])
    if isinstance(shape, range):
        right = isinstance(value, int) and not isinstance(value, bool) and value in shape
        return None if right else _wrong(place, value, "a size")
    return None if isinstance(value, shape) else _wrong(place, value, shape.__name__)


def _wrong(place: str, value: Any, allowed: str) -> str:
    return f"{place} is {ascii(value)[:80]}; allowed: {allowed}"
