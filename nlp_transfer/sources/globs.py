"""Globs: the files that a pattern names, without following links in circles."""

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from glob import has_magic
from itertools import dropwhile, islice, takewhile
from pathlib import Path

from nlp_transfer.errors import UserError

MOST_ENTRIES = 1_000_000  # that one pattern may look at
LONGEST = 4096  # characters of a pattern, as of a path
MOST_MAGIC = 20


def expand(pattern: str, root: str = "") -> list[str]:
    """The files and folders below `root` (taken as it is) that `pattern` names, sorted, each once.

    `*`, `?` and `[...]` stay within a name and `**` crosses folders, though no links to such. What begins with a dot must be
    named with it.

    Raises:
        UserError: the pattern is too long, or looks at more than a million entries.
    """
    parts = [part for part in Path(pattern).parts if part != "/"]
    if len(pattern) > LONGEST or sum(map(has_magic, parts)) > MOST_MAGIC:
        raise UserError(
            f"found a glob of {len(pattern)} characters; allowed: at most {LONGEST}, and *, ? or [ in at most {MOST_MAGIC} of "
            "the names in it"
        )
    start = "/" if pattern.startswith("/") else root
    return sorted(set(_Walk(pattern).below(start, parts)))


class _Walk:
    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.left = MOST_ENTRIES

    def below(self, folder: str, parts: list[str]) -> Iterator[str]:
        plain = list(takewhile(lambda part: not has_magic(part), parts))
        folder, parts = os.path.join(folder, *plain), parts[len(plain) :]
        if not parts:
            if os.path.lexists(folder):
                yield folder
            return
        first, rest = parts[0], parts[1:]
        if first == "**":
            yield from self._at_any_depth(folder, list(dropwhile(lambda part: part == "**", rest)))
            return
        for entry in self._entries(folder):
            path = os.path.join(folder, entry.name)
            if _matches(entry.name, first) and (not rest or os.path.isdir(path)):
                yield from self.below(path, rest)

    def _at_any_depth(self, folder: str, rest: list[str]) -> Iterator[str]:
        folders = [folder]
        while folders:
            here = folders.pop()
            if rest:
                yield from self.below(here, rest)
            for entry in self._entries(here):
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(os.path.join(here, entry.name))
                elif not rest:
                    yield os.path.join(here, entry.name)

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder or ".") as found:
                entries = list(islice(found, self.left + 1))
        except (OSError, ValueError):  # not there, not to be read, or no name at all: nothing in it matches
            return []
        self.left -= len(entries)
        if self.left < 0:
            raise UserError(
                f"the glob {self.pattern!r} looks at more than {MOST_ENTRIES:,} files and folders; allowed: one that begins with "
                "the folder of the data"
            )
        return entries


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) and (pattern.startswith(".") or not name.startswith("."))
