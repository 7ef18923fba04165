"""Globs: the files that a pattern names, existing paths taken literally, without following links in circles."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from glob import has_magic
from itertools import dropwhile, islice
from pathlib import Path

from nlp_transfer.utils.errors import UserError

MOST_ENTRIES = 1_000_000  # that one pattern may look at
LONGEST = 4096  # characters of a pattern, as of a path
MOST_MAGIC = 20  # names of a pattern with *, ? or [
SHOWN = 5  # names in a note
LOOKED_AT = 10_000  # entries of a folder, for what a name would be as a pattern


def expand(pattern: str, root: str = "", notes: list[str] | None = None) -> list[str]:
    """Return the files and folders below `root` (taken as it is) that `pattern` names, sorted, each once.

    A path that exists is taken literally, name by name: `data[2024]/*.csv` lies in the folder `data[2024]` where there is one,
    and only otherwise in `data2`. From the first name on that does not exist, `*`, `?` and `[...]` stay within a name and `**`
    crosses folders, though no links to such. What begins with a dot must be named with it. Names with `[...]` further down, as
    in `*/data[2024]/*.csv`, are patterns only where no path has all of them literally.

    Args:
        notes: gets a sentence for each name that could be read in two ways, which says how it was read.

    Raises:
        UserError: the pattern is too long, or looks at more than a million entries.
    """
    if len(pattern) > LONGEST:
        raise UserError(f"found a glob of {len(pattern)} characters; allowed: at most {LONGEST}")
    parts = [part for part in Path(pattern).parts if part != "/"]
    walk = _Walk(pattern)
    folder, rest = walk.literal("/" if pattern.startswith("/") else root, parts, has_magic)
    if sum(map(has_magic, rest)) > MOST_MAGIC:
        raise UserError(f"found a glob with *, ? or [ in more names; allowed: in at most {MOST_MAGIC} of the names in it")
    classes = [part for part in rest if "[" in part]
    walk.strict = bool(classes)
    paths = sorted(set(walk.below(folder, rest)))
    if walk.strict and not paths:
        walk.strict, walk.left = False, MOST_ENTRIES
        paths = sorted(set(walk.below(folder, rest)))
    if notes is not None:
        notes += walk.notes.values()
        if classes and not walk.strict:
            matches = f"it names {_list(paths)}" if paths else "nothing matches"
            notes.append(f"{classes[0]!r} is a pattern where no file or folder has exactly that name: {matches}")
    return paths


def _list(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


class _Walk:
    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.left = MOST_ENTRIES
        self.strict = False  # whether names with [...] are literal alone
        self.notes: dict[str, str] = {}  # by path that was taken literally

    def literal(self, folder: str, parts: list[str], is_read: Callable[[str], bool]) -> tuple[str, list[str]]:
        """Follow names that mean themselves: plain ones, and existing ones of those that `is_read` literally."""
        for i, part in enumerate(parts):
            path = os.path.join(folder, part)
            if has_magic(part):
                if not is_read(part) or not (os.path.isdir(path) if parts[i + 1 :] else os.path.lexists(path)):
                    return folder, parts[i:]
                self._note(folder, part, path)
            folder = path
        return folder, []

    def _note(self, folder: str, part: str, path: str) -> None:
        if len(self.notes) >= SHOWN or path in self.notes:
            return
        self.notes[path] = f"{path} exists and is taken literally"
        with suppress(OSError), os.scandir(folder or ".") as entries:
            others = [entry.name for entry in islice(entries, LOOKED_AT) if entry.name != part and _matches(entry.name, part)]
            if others:
                self.notes[path] += f"; as a pattern {part!r} would also name {_list(sorted(others))}"

    def below(self, folder: str, parts: list[str]) -> Iterator[str]:
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
