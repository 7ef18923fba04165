"""Expand glob patterns. Existing paths are taken literally, and symbolic links cannot cause endless loops."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from glob import has_magic
from itertools import dropwhile, islice
from pathlib import Path

from nlp_transfer.utils.errors import UserError

MAX_ENTRIES = 1_000_000  # files and folders visited for one pattern
MAX_LENGTH = 4096  # characters of a pattern
MAX_MAGIC = 20  # parts of a pattern with *, ? or [
SHOWN = 5  # names in a note
COMPARED = 10_000  # entries of a folder that are compared with an ambiguous name


def expand_glob(pattern: str, root: str = "", notes: list[str] | None = None) -> list[str]:
    """Return the sorted files and folders below `root` that match a pattern.

    Existing names are literal: `data[2024]/*.csv` refers to the folder `data[2024]` if it exists, and otherwise to folders such
    as `data2`. In the first name that does not exist and in all later names, `*`, `?` and `[...]` match within a name, and `**`
    matches any depth without following links to folders. Hidden names match only patterns that begin with a dot. Later names
    with `[...]`, as in `*/data[2024]/*.csv`, are patterns only if no path contains them literally.

    The standard function `glob` is unsuitable: it never takes names literally, follows cyclic links with `**`, and visits an
    unlimited number of entries.

    Args:
        pattern: The pattern.
        root: Base folder; always literal.
        notes: Receives a sentence for each ambiguous name.

    Raises:
        UserError: The pattern is too long or has too many parts, or more than a million entries would be visited.
    """
    if len(pattern) > MAX_LENGTH:
        raise UserError(f"found a glob of {len(pattern)} characters; allowed: at most {MAX_LENGTH}")
    parts = [part for part in Path(pattern).parts if part != "/"]
    walk = _Walk(pattern)
    folder, rest = walk.literal("/" if pattern.startswith("/") else root, parts, has_magic)
    if sum(map(has_magic, rest)) > MAX_MAGIC:
        raise UserError(f"found a glob with *, ? or [ in more than {MAX_MAGIC} parts; allowed: at most {MAX_MAGIC}")
    classes = [part for part in rest if "[" in part]
    walk.strict = bool(classes)
    paths = sorted(set(walk.below(folder, rest)))
    if walk.strict and not paths:
        walk.strict, walk.left = False, MAX_ENTRIES
        paths = sorted(set(walk.below(folder, rest)))
    if notes is not None:
        notes += walk.notes.values()
        if classes and not walk.strict:
            matches = f"it matches {_list(paths)}" if paths else "nothing matches"
            notes.append(f"{classes[0]!r} is read as a pattern, since no file or folder has exactly that name: {matches}")
    return paths


def _list(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


class _Walk:
    """Searches for the paths that match one pattern."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.left = MAX_ENTRIES
        self.strict = False  # whether names with [...] must match literally
        self.notes: dict[str, str] = {}  # by path

    def literal(self, folder: str, parts: list[str], is_literal: Callable[[str], bool]) -> tuple[str, list[str]]:
        """Follow literal names: names without magic characters, and existing names for which `is_literal` is true.

        Returns:
            The folder, and the remaining parts of the pattern.
        """
        for i, part in enumerate(parts):
            path = os.path.join(folder, part)
            if has_magic(part):
                if not is_literal(part) or not (os.path.isdir(path) if parts[i + 1 :] else os.path.lexists(path)):
                    return folder, parts[i:]
                self._note(folder, part, path)
            folder = path
        return folder, []

    def _note(self, folder: str, part: str, path: str) -> None:
        if len(self.notes) >= SHOWN or path in self.notes:
            return
        self.notes[path] = f"{path} exists and is read literally"
        with suppress(OSError), os.scandir(folder or ".") as entries:
            others = [entry.name for entry in islice(entries, COMPARED) if entry.name != part and _matches(entry.name, part)]
            if others:
                self.notes[path] += f"; as a pattern, {part!r} would also match {_list(sorted(others))}"

    def below(self, folder: str, parts: list[str]) -> Iterator[str]:
        """Yield the paths below a folder that match the remaining parts of the pattern."""
        folder, parts = self.literal(folder, parts, lambda part: "[" in part)
        if not parts:
            if os.path.lexists(folder):
                yield folder
            return
        first, rest = parts[0], parts[1:]
        if self.strict and "[" in first:
            return
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
            with os.scandir(folder or ".") as iterator:
                entries = list(islice(iterator, self.left + 1))
        except (OSError, ValueError):  # missing, not readable, or not a valid name
            return []
        self.left -= len(entries)
        if self.left < 0:
            raise UserError(
                f"the glob {self.pattern!r} visits more than {MAX_ENTRIES:,} files and folders; allowed: a glob that begins "
                "with the folder of the data"
            )
        return entries


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) and (pattern.startswith(".") or not name.startswith("."))
