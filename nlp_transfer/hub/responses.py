"""Schemas of a hub's responses: the fields that libraries read, and their types. Other fields are not checked.

Names and commits become file and folder names in the cache, so their characters are restricted to keep paths inside it.
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
# Method, pattern of the path, and shape of the JSON response. Patterns match the entire text. Fields with `?` are optional.
RESPONSES: tuple[tuple[str, str, Any], ...] = (
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
    """Return the shape of the response to a request, or None if there is no schema for it."""
    return next((shape for called, pattern, shape in RESPONSES if called == method and re.fullmatch(pattern, path)), None)


def find_fault(shape: Any, value: Any, place: str = "the document") -> str | None:
    """Describe the first difference between a JSON value and its shape; None if the value has this shape."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return _fault(place, value, "an object")
        for key, inner in shape.items():
            name = key.rstrip("?")
            if value.get(name) is None and key.endswith("?"):
                continue
            if name not in value:
                return f"{place} has no {name}"
            if fault := find_fault(inner, value[name], name):
                return fault
        return None
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _fault(place, value, "a list")
        return next((fault for item in value if (fault := find_fault(shape[0], item, f"an entry of {place}"))), None)
    if isinstance(shape, re.Pattern):
        fits = isinstance(value, str) and shape.fullmatch(value) is not None
        return None if fits else _fault(place, value, MEANINGS[shape])
    if isinstance(shape, range):
        fits = isinstance(value, int) and not isinstance(value, bool) and value in shape
        return None if fits else _fault(place, value, "a size")
    return None if isinstance(value, shape) else _fault(place, value, shape.__name__)


def _fault(place: str, value: Any, allowed: str) -> str:
    return f"{place} is {ascii(value)[:80]}; allowed: {allowed}"
