"""Cache of tokens on disk: rows that were encoded before are memory-mapped.

An entry is a folder named by a fingerprint of everything that determines its content: every cell of the rows, the tokenizer, the
settings of the task, and the versions. An entry is therefore never stale. It is written to a temporary folder and renamed. Its
files are verified by checksums when it is read; if anything is wrong, the rows are encoded again.
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
from nlp_transfer.data.tokens import Encode, Ragged, TokenTable, encode_rows, encoded_blocks
from nlp_transfer.utils.console import say

CachePolicy = Literal["auto", "disk", "none"]
FEWEST = 2000  # rows of the smallest table that is cached by default: encoding takes 0.1 seconds, reading 0.01
LARGEST, MOST = 8 * 2**30, 1000  # bytes and number of all entries; the least recently used ones are removed first
PATIENCE = 3600.0  # seconds to wait for another process that encodes the same rows
BLOCK = 2**20
DAY = 86400
META = "meta.json"


def cache_folder() -> Path:
    """Return the folder of the cache: `tokens` in the toolkit's cache folder."""
    return default_cache() / "tokens"


def is_cached(rows: Rows, policy: CachePolicy) -> bool:
    """Return whether the tokens of these rows are cached under a policy."""
    return policy == "disk" or (policy == "auto" and len(rows) >= FEWEST)


def cached_table(
    rows: Rows,
    encode: Encode,
    fill: dict[str, int],
    inputs: Mapping[str, Any] | None,
    policy: CachePolicy = "auto",
    name: str = "rows",
) -> TokenTable:
    """Return the table of `encode_rows`, from the cache if possible; its ragged values are then memory-mapped.

    Processes that need the same table at the same time wait for the one that encodes. A cache that cannot be read or written
    causes only a warning.

    Args:
        encode: See `encoded_blocks`.
        fill: The padding value of each ragged column.
        inputs: Everything except the rows that `encode` depends on, as JSON; None: unknown, so nothing is cached.
        policy: `auto`: cache tables of at least `FEWEST` rows; `disk`: cache all; `none`: cache nothing.
        name: Name of the split, for messages.
    """
    key = fingerprint(rows, inputs) if inputs is not None and is_cached(rows, policy) else None
    if key is None:
        if policy == "disk":
            say(f"no effect: data.token_cache ({name}: its tokenizer has no fingerprint, so its tokens are not cached)")
        return encode_rows(rows, encode, fill)
    folder = cache_folder() / key
    table = None
    try:
        if table := _read(folder, fill):
            say(f"{name}: tokens found in {folder}")
            return table
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # tokens can be converted back to text
        with _only_one(folder, name):
            table = _read(folder, fill)  # another process may have written it meanwhile
            if table is None:
                _write(folder, rows, encode)
                table = _read(folder, fill, check=False)
                prune(folder.parent, folder)
    except OSError as error:
        reason = error.strerror or error
        say(f"warning: {name}: tokens cannot be cached in {folder.parent} ({reason}); data.token_cache: none disables the cache")
    return encode_rows(rows, encode, fill) if table is None else table


def fingerprint(rows: Rows, inputs: Mapping[str, Any]) -> str | None:
    """Hash rows, settings and versions into the name of a cache entry; None: the rows hold objects that cannot be hashed."""
    versions = (_code_hash(), transformers.__version__, tokenizers.__version__)
    digest = hashlib.sha256(json.dumps([versions, inputs], sort_keys=True).encode())
    try:
        for block in rows.batches(10_000):
            digest.update(json.dumps(list(block.items())).encode())
    except (TypeError, ValueError, RecursionError):
        return None
    return digest.hexdigest()[:40]


@functools.cache
def _code_hash() -> str:
    """Return a hash of this package's sources: the version alone does not change while the code that makes tokens is edited."""
    digest, package = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> Any:
    """Return everything that determines the output of a tokenizer, as JSON; None if unknown, as for one written in Python."""
    if not isinstance(tokenizer, TokenizersBackend) or not type(tokenizer).__module__.startswith("transformers."):
        return None
    # Every call sets truncation and padding, so the values of the last call are not part of the fingerprint.
    tokenizer.set_truncation_and_padding(PaddingStrategy.DO_NOT_PAD, TruncationStrategy.DO_NOT_TRUNCATE, 0, 0, None, None)
    names = ("truncation_side", "split_special_tokens", "model_input_names", "src_lang", "tgt_lang")
    settings = [type(tokenizer).__qualname__, *(getattr(tokenizer, name, None) for name in names)]
    return [hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(), *settings]


class _ChecksumFile:
    """A file that computes its size and CRC-32 while it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.checksum = file, 0, 0

    def write(self, data: Any) -> None:
        self.checksum = zlib.crc32(data, self.checksum)
        self.size += memoryview(data).nbytes
        self.file.write(data)


def _write(folder: Path, rows: Rows, encode: Encode) -> None:
    """Encode the rows into a temporary folder and rename it; ragged columns and texts are written block by block."""
    part = folder.with_name(f".part-{uuid.uuid4().hex}")
    part.mkdir(mode=0o700)
    files: dict[str, _ChecksumFile] = {}
    columns: dict[str, GrowingRagged] = {}
    dense: dict[str, list[np.ndarray]] = {}
    texts: dict[str, _ChecksumFile] = {}
    truncated = 0
    try:
        with contextlib.ExitStack() as stack:

            def file_called(name: str) -> Any:
                files[name] = _ChecksumFile(stack.enter_context((part / name).open("wb")))
                return files[name]

            for ragged, arrays, count in encoded_blocks(rows, encode):
                truncated += count
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
            by_hash: dict[bytes, str] = {}  # columns with the same row lengths share one file of offsets
            offsets_of = {}
            for name, growing in columns.items():
                offsets = growing.offsets().data
                offsets_of[name] = by_hash.setdefault(hashlib.sha256(offsets).digest(), name)
                if offsets_of[name] == name:
                    file_called(f"{name}.offsets").write(offsets)
            for name, parts in dense.items():
                np.save(file_called(f"{name}.npy"), np.concatenate(parts), allow_pickle=False)
        content = json.dumps({
            "rows": len(rows), "truncated": truncated, "dense": list(dense), "texts": list(texts),
            "ragged": {name: [column.count, column.constant, offsets_of[name]] for name, column in columns.items()},
            "files": {name: [file.size, file.checksum] for name, file in files.items()},
        })  # fmt: skip
        (part / META).write_text(f"{content}\n{zlib.crc32(content.encode())}", encoding="utf-8")
        try:
            os.rename(part, folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # else another process has written the same entry
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _read(folder: Path, fill: dict[str, int], check: bool = True) -> TokenTable | None:
    """Read the table in a folder; None if there is none. A damaged one is removed."""
    try:
        content, _, checksum = (folder / META).read_text(encoding="utf-8").rpartition("\n")
    except (OSError, UnicodeError):
        if not folder.is_dir():
            return None
        content, checksum = "", ""
    try:
        if str(zlib.crc32(content.encode())) != checksum:
            raise ValueError(f"{META} is damaged")
        meta = json.loads(content)
        for name, expected in meta["files"].items() if check else ():
            if _checksum(folder / name) != expected:
                raise ValueError(f"{name} is damaged")
        ragged = {name: Ragged(_values(folder, name, count, constant), _mapped(folder / f"{of}.offsets", np.int64, rows + 1))
                  for rows in [meta["rows"]] for name, (count, constant, of) in meta["ragged"].items()}  # fmt: skip
        dense = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in meta["dense"]}
        texts = {name: _texts(folder / f"{name}.texts", meta["rows"]) for name in meta["texts"]}
        os.utime(folder)  # the time of last use
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
    if count == 0:  # an empty file cannot be memory-mapped
        return np.zeros(0, kind)
    return np.asarray(np.memmap(path, kind, "r", shape=(count,)))


def _texts(path: Path, rows: int) -> np.ndarray:
    texts = np.empty(rows, object)
    first = 0
    with path.open("rb") as file:
        for line in file:
            block = json.loads(line)
            texts[first : first + len(block)] = block
            first += len(block)
    return texts


def _checksum(path: Path) -> list[int]:
    """Return size and CRC-32 of a file, read in blocks: mapped pages would count as memory of this process."""
    size = checksum = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
    return [size, checksum]


@contextlib.contextmanager
def _only_one(folder: Path, name: str) -> Iterator[None]:
    """Lock an entry while it is encoded.

    The lock only saves work: without locks on this file system, or if another process takes too long, both encode the entry.
    """
    path = folder.with_name(f"{folder.name}.lock")
    lock = FileLock(path)
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
            path.unlink()  # while it is held: a waiting process then reads the entry
        lock.release()


def prune(root: Path, newest: Path) -> None:
    """Remove the least recently used entries beyond `MOST` entries or `LARGEST` bytes, and unfinished ones older than a day.

    Args:
        root: Folder of the cache.
        newest: An entry that is never removed.
    """
    entries = []
    for path in root.iterdir():
        with contextlib.suppress(OSError):  # another process may be removing it
            last_use = path.stat().st_mtime
            if path.name.startswith(".") or path.suffix == ".lock":
                if last_use < time.time() - DAY:
                    _remove(path)
            elif path.is_dir():
                entries.append((last_use, sum(file.stat().st_size for file in path.iterdir()), path))
    total, number = sum(size for _, size, _ in entries), len(entries)
    for _, size, path in sorted(entries):
        if (total > LARGEST or number > MOST) and path != newest:
            _remove(path)
            total, number = total - size, number - 1


def _remove(path: Path) -> None:
    """Rename an entry before it is removed, so that no process reads half of it. Open memory maps stay valid."""
    gone = path.with_name(f".gone-{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):
        os.rename(path, gone)
        if gone.is_dir():
            shutil.rmtree(gone, ignore_errors=True)
        else:
            gone.unlink()
