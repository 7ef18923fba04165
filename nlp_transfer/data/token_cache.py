"""Tokens kept on disk: rows that were encoded before are mapped into memory, and take none that others could not have.

An entry is a folder that is named by a fingerprint of all that decides what is in it: the rows, cell by cell, the tokenizer,
the task's settings, the versions. So it can be old but never stale. It is written beside its place and renamed, its files are
checked against their sums when it is read, and where anything is wrong the rows are encoded again.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import tokenizers
import transformers
from filelock import FileLock, Timeout
from transformers import TokenizersBackend
from transformers.tokenization_utils_base import PaddingStrategy, TruncationStrategy

from nlp_transfer.data.growing_columns import GrowingRagged
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.sources.wheels import default_cache
from nlp_transfer.data.tokens import Encode, Ragged, TokenTable, blocks_of, encode_rows
from nlp_transfer.utils.console import say

Keep = Literal["auto", "disk", "none"]
FEWEST = 2000  # rows: these are encoded in a tenth of a second, and found in a hundredth
LARGEST, MOST = 8 * 2**30, 1000  # bytes of all entries, and how many there are; the least recently used go first
PATIENCE = 3600.0  # seconds that a process waits for another one that encodes the same rows
BLOCK = 2**20
DAY = 86400
META = "meta.json"


def cache_folder() -> Path:
    """Where tokens are kept: `tokens` in the toolkit's cache folder."""
    return default_cache() / "tokens"


def may_keep(rows: Rows, keep: Keep) -> bool:
    """Whether it is worth looking for these rows' tokens."""
    return keep == "disk" or (keep == "auto" and len(rows) >= FEWEST)


def kept_table(
    rows: Rows, encode: Encode, fill: dict[str, int], decides: Mapping[str, Any] | None, keep: Keep = "auto", name: str = "rows"
) -> TokenTable:
    """The table that `encode_rows` makes; where that was done before it is read, and its ragged values are a file's.

    Processes that need the same table at the same time wait for the one that encodes. A cache that cannot be written or read
    costs a warning and nothing else.

    Args:
        encode: see `blocks_of`.
        decides: all that `encode` depends on, as JSON; None: that is not known, and nothing is kept.
        keep: `auto`: tables of `FEWEST` rows or more; `disk`: all of them; `none`.
        name: of the split, for messages.
    """
    key = fingerprint(rows, decides) if decides is not None and may_keep(rows, keep) else None
    if key is None:
        if keep == "disk":
            say(f"no effect: data.token_cache ({name}: its tokenizer has no fingerprint, so its tokens are not cached)")
        return encode_rows(rows, encode, fill)
    folder = cache_folder() / key
    table = None
    try:
        if table := _read(folder, fill):
            say(f"{name}: tokens found in {folder}")
            return table
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # what is kept can be read back as text
        with _alone(folder, name):
            table = _read(folder, fill)  # perhaps another process was quicker
            if table is None:
                _write(folder, rows, encode)
                table = _read(folder, fill, check=False)
                prune(folder.parent, folder)
    except OSError as error:
        say(f"warning: {name}: tokens cannot be kept in {folder.parent} ({error.strerror or error}); data.token_cache: none")
    return encode_rows(rows, encode, fill) if table is None else table


def fingerprint(rows: Rows, decides: Mapping[str, Any]) -> str | None:
    """A name for the table of some rows: other cells, settings or versions give another one. None: the cells are objects of a
    kind whose content cannot be told."""
    versions = (_own_code(), transformers.__version__, tokenizers.__version__)
    digest = hashlib.sha256(json.dumps([versions, decides], sort_keys=True).encode())
    try:
        for block in rows.batches(10_000):
            digest.update(json.dumps(list(block.items())).encode())
    except (TypeError, ValueError, RecursionError):
        return None
    return digest.hexdigest()[:40]


@functools.cache
def _own_code() -> str:
    """Return a hash of this package's sources: the version alone does not change while the code that makes tokens is edited."""
    digest, package = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def of_tokenizer(tokenizer: Any) -> Any:
    """All that decides what a tokenizer makes of a text, as JSON; None where that cannot be told, as with one in Python."""
    if not isinstance(tokenizer, TokenizersBackend) or not type(tokenizer).__module__.startswith("transformers."):
        return None
    # What the last call left behind is no part of it: each call sets its own.
    tokenizer.set_truncation_and_padding(PaddingStrategy.DO_NOT_PAD, TruncationStrategy.DO_NOT_TRUNCATE, 0, 0, None, None)
    names = ("truncation_side", "split_special_tokens", "model_input_names", "src_lang", "tgt_lang")
    own = [type(tokenizer).__qualname__, *(getattr(tokenizer, name, None) for name in names)]
    return [hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(), *own]


class _Checked:
    """A file that is being written, with its size and its sum."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.sum = file, 0, 0

    def write(self, data: Any) -> None:
        self.sum = zlib.crc32(data, self.sum)
        self.size += memoryview(data).nbytes
        self.file.write(data)


def _write(folder: Path, rows: Rows, encode: Encode) -> None:
    """Encodes the rows into a folder that is renamed when it is whole. What is ragged or text goes to its file block by
    block."""
    part = folder.with_name(f".part-{uuid.uuid4().hex}")
    part.mkdir(mode=0o700)
    files: dict[str, _Checked] = {}
    columns: dict[str, GrowingRagged] = {}
    dense: dict[str, list[np.ndarray]] = {}
    texts: dict[str, _Checked] = {}
    truncated = 0
    try:
        with contextlib.ExitStack() as stack:

            def file_called(name: str) -> Any:
                files[name] = _Checked(stack.enter_context((part / name).open("wb")))
                return files[name]

            for ragged, arrays, cut in blocks_of(rows, encode):
                truncated += cut
                for name, column in ragged.items():
                    if name not in columns:
                        columns[name] = GrowingRagged(file_called(f"{name}.values"))
                    columns[name].add(column.values, column.offsets)
                for name, values in arrays.items():
                    if values.dtype != object:
                        dense.setdefault(name, []).append(values)
                        continue
                    if name not in texts:
                        texts[name] = file_called(f"{name}.texts")
                    texts[name].write(json.dumps(values.tolist()).encode() + b"\n")
            known: dict[bytes, str] = {}  # columns whose rows are as long as another's share its offsets
            of_column = {}
            for name, growing in columns.items():
                offsets = growing.offsets().data
                of_column[name] = known.setdefault(hashlib.sha256(offsets).digest(), name)
                if of_column[name] == name:
                    file_called(f"{name}.offsets").write(offsets)
            for name, parts in dense.items():
                np.save(file_called(f"{name}.npy"), np.concatenate(parts), allow_pickle=False)
        content = json.dumps({
            "rows": len(rows), "truncated": truncated, "dense": list(dense), "texts": list(texts),
            "ragged": {name: [column.count, column.constant, of_column[name]] for name, column in columns.items()},
            "files": {name: [file.size, file.sum] for name, file in files.items()},
        })  # fmt: skip
        (part / META).write_text(f"{content}\n{zlib.crc32(content.encode())}", encoding="utf-8")
        try:
            os.rename(part, folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # else another process was quicker, with the same
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _read(folder: Path, fill: dict[str, int], check: bool = True) -> TokenTable | None:
    """The table in a folder, or None where there is none. One that is damaged is removed."""
    try:
        content, _, total = (folder / META).read_text(encoding="utf-8").rpartition("\n")
    except (OSError, UnicodeError):
        if not folder.is_dir():
            return None
        content, total = "", ""
    try:
        if str(zlib.crc32(content.encode())) != total:
            raise ValueError(f"{META} is damaged")
        meta = json.loads(content)
        for name, expected in meta["files"].items() if check else ():
            if _sum_of(folder / name) != expected:
                raise ValueError(f"{name} is damaged")
        ragged = {name: Ragged(_values(folder, name, count, constant), _mapped(folder / f"{of}.offsets", np.int64, rows + 1))
                  for rows in [meta["rows"]] for name, (count, constant, of) in meta["ragged"].items()}  # fmt: skip
        dense = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in meta["dense"]}
        texts = {name: _texts(folder / f"{name}.texts", meta["rows"]) for name in meta["texts"]}
        os.utime(folder)  # used last now
    except (OSError, ValueError, KeyError, TypeError) as error:
        say(f"warning: {folder}: cannot be used ({error}); the rows are encoded again")
        _remove(folder)
        return None
    return TokenTable(ragged, dense, fill, meta["truncated"], texts)


def _values(folder: Path, name: str, count: int, constant: int | None) -> np.ndarray:
    if constant is not None:
        return np.broadcast_to(np.int32(constant), (count,))
    return _mapped(folder / f"{name}.values", np.int32, count)


def _mapped(path: Path, kind: Any, count: int) -> np.ndarray:
    if count == 0:  # a file without content cannot be mapped
        return np.zeros(0, kind)
    return np.asarray(np.memmap(path, kind, "r", shape=(count,)))


def _texts(path: Path, rows: int) -> np.ndarray:
    found = np.empty(rows, object)
    first = 0
    with path.open("rb") as file:
        for line in file:
            block = json.loads(line)
            found[first : first + len(block)] = block
            first += len(block)
    return found


def _sum_of(path: Path) -> list[int]:
    """Size and sum of a file, through a small buffer: mapped pages would count as this process's memory."""
    size = total = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            size, total = size + len(block), zlib.crc32(block, total)
    return [size, total]


@contextlib.contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Keeps others from encoding the same meanwhile. It is not needed for what is right, only for what is quick: where there
    are no locks, or another process takes too long, both encode."""
    place = folder.with_name(f"{folder.name}.lock")
    lock = FileLock(place)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"{name}: another process is encoding the same rows; waiting for it")
            lock.acquire(timeout=PATIENCE)
    except (Timeout, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            place.unlink()  # while it is held: who waits for it then finds the entry
        lock.release()


def prune(root: Path, newest: Path) -> None:
    """Removes the entries used least recently until there are no more than `MOST`, of `LARGEST` bytes together, never the
    `newest`; and what processes left behind that ended while they wrote."""
    entries = []
    for path in root.iterdir():
        with contextlib.suppress(OSError):  # another process may be removing it
            used = path.stat().st_mtime
            if path.name.startswith(".") or path.suffix == ".lock":
                if used < time.time() - DAY:
                    _remove(path)
            elif path.is_dir():
                entries.append((used, sum(file.stat().st_size for file in path.iterdir()), path))
    total, number = sum(size for _, size, _ in entries), len(entries)
    for _, size, path in sorted(entries):
        if (total > LARGEST or number > MOST) and path != newest:
            _remove(path)
            total, number = total - size, number - 1


def _remove(path: Path) -> None:
    """Out of its place first, so that nobody finds a part of it. Who has it open keeps it until they are done."""
    gone = path.with_name(f".gone-{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):
        os.rename(path, gone)
        if gone.is_dir():
            shutil.rmtree(gone, ignore_errors=True)
        else:
            gone.unlink()
