"""Cache tokens on disk, and memory-map them in later runs.

An entry is a folder. Its name is a hash of everything that determines its content (cells, tokenizer, task settings, and library
versions), so an entry never becomes stale. Entries are written to a temporary folder, which is then renamed. Checksums are
verified on reading; if an entry is damaged, its rows are encoded again.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import tokenizers
import transformers
from transformers import TokenizersBackend
from transformers.tokenization_utils_base import PaddingStrategy, TruncationStrategy

from nlp_transfer.data.growing_columns import GrowingRagged
from nlp_transfer.data.ragged import Ragged
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.tokens import Encode, Features, TokenTable, encode_rows, encoded_blocks
from nlp_transfer.security.file_locks import remove
from nlp_transfer.utils.cache_entries import locked, prune
from nlp_transfer.utils.checksums import crc32_of
from nlp_transfer.utils.console import say
from nlp_transfer.utils.environment import default_cache

CachePolicy = Literal["auto", "disk", "none"]
MIN_ROWS = 2000  # smaller tables are not cached by default: encoding takes 0.1 seconds, reading from the cache 0.01
META = "meta.json"


def cache_folder() -> Path:
    """Return the folder of the token cache."""
    return default_cache() / "tokens"


def is_cached(rows: Rows, policy: CachePolicy) -> bool:
    """Return whether tokens of the rows are cached under the policy."""
    return policy == "disk" or (policy == "auto" and len(rows) >= MIN_ROWS)


def cached_table(
    rows: Rows,
    encode: Encode,
    inputs: Mapping[str, Any] | None,
    policy: CachePolicy = "auto",
    name: str = "rows",
) -> TokenTable:
    """Return the encoded rows, memory-mapped from the cache if possible.

    If several processes need the same table, one encodes it and the others wait. A cache that cannot be read or written only
    causes a warning.

    Args:
        encode: See `encoded_blocks`.
        inputs: Everything else that affects the result of `encode`, as JSON. None: unknown, so nothing is cached.
        policy: `auto`: cache tables of at least `MIN_ROWS` rows; `disk`: cache all; `none`: cache nothing.
        name: Name of the split, for messages.
    """
    key = fingerprint(rows, inputs) if inputs is not None and is_cached(rows, policy) else None
    if key is None:
        if policy == "disk":
            say(f"no effect: data.token_cache ({name}: its tokenizer has no fingerprint, so its tokens are not cached)")
        return encode_rows(rows, encode)
    folder = cache_folder() / key
    table = None
    try:
        if table := _read(folder):
            say(f"{name}: tokens found in {folder}")
            return table
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # tokens can be converted back to text
        with locked(folder, f"{name}: another process is encoding the same rows; waiting for it"):
            table = _read(folder)  # another process may have written the entry in the meantime
            if table is None:
                _write(folder, rows, encode)
                table = _read(folder, check=False)
                prune(folder.parent, folder)
    except OSError as error:
        reason = error.strerror or error
        say(f"warning: {name}: tokens cannot be cached in {folder.parent} ({reason}); data.token_cache: none disables the cache")
    return encode_rows(rows, encode) if table is None else table


def fingerprint(rows: Rows, inputs: Mapping[str, Any]) -> str | None:
    """Return the name of a cache entry: a hash of rows, settings and versions. None if a cell cannot be converted to JSON."""
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
    """Return a hash of this package's source code, since edits during development do not change the version."""
    digest, package = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> Any:
    """Return everything that determines a tokenizer's output, as JSON. None if unknown, as for tokenizers written in Python."""
    if not isinstance(tokenizer, TokenizersBackend) or not type(tokenizer).__module__.startswith("transformers."):
        return None
    # Reset truncation and padding: every call sets them, and they would otherwise be part of the serialized backend.
    tokenizer.set_truncation_and_padding(PaddingStrategy.DO_NOT_PAD, TruncationStrategy.DO_NOT_TRUNCATE, 0, 0, None, None)
    names = ("truncation_side", "split_special_tokens", "model_input_names", "src_lang", "tgt_lang")
    settings = [type(tokenizer).__qualname__, *(getattr(tokenizer, name, None) for name in names)]
    return [hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(), *settings]


def _write(folder: Path, rows: Rows, encode: Encode) -> None:
    """Encode the rows into a temporary folder, and rename it to `folder`."""
    temporary = folder.with_name(f".part-{uuid.uuid4().hex}")
    temporary.mkdir(mode=0o700)
    try:
        _fill(temporary, rows, encode)
        os.rename(temporary, folder)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # with these two, another process has written the same entry
            raise
    finally:
        remove(temporary)


def _fill(folder: Path, rows: Rows, encode: Encode) -> None:
    """Encode the rows block by block into an empty folder."""
    columns: dict[str, GrowingRagged] = {}
    dense: dict[str, list[np.ndarray]] = {}
    texts: dict[str, BinaryIO] = {}
    truncated, features = 0, Features({}, {})
    with contextlib.ExitStack() as stack:
        for ragged, features in encoded_blocks(rows, encode):
            truncated += features.truncated
            for name, column in ragged.items():
                if name not in columns:
                    columns[name] = GrowingRagged(stack.enter_context((folder / f"{name}.values").open("wb")))
                columns[name].add(column.values, column.offsets)
            for name, values in features.dense.items():
                dense.setdefault(name, []).append(values)
            for name, values in features.texts.items():
                if name not in texts:
                    texts[name] = stack.enter_context((folder / f"{name}.texts").open("wb"))
                texts[name].write(json.dumps(values.tolist()).encode() + b"\n")
    by_hash: dict[bytes, str] = {}  # columns with equal offsets share a file
    offsets_of = {}
    for name, growing in columns.items():
        offsets = growing.offsets()
        offsets_of[name] = by_hash.setdefault(hashlib.sha256(offsets.data).digest(), name)
        if offsets_of[name] == name:
            offsets.tofile(folder / f"{name}.offsets")
    for name, blocks in dense.items():
        np.save(folder / f"{name}.npy", np.concatenate(blocks), allow_pickle=False)
    content = json.dumps({
        "rows": len(rows), "truncated": truncated, "padding": dict(features.padding), "sides": features.sides,
        "dense": list(dense), "texts": list(texts),
        "ragged": {name: [column.count, column.constant, offsets_of[name]] for name, column in columns.items()},
        "files": {path.name: _stamp(path) for path in folder.iterdir()},
    })  # fmt: skip
    (folder / META).write_text(f"{content}\n{zlib.crc32(content.encode())}", encoding="utf-8")


def _stamp(path: Path) -> list[int]:
    return [path.stat().st_size, crc32_of(path)]


def _read(folder: Path, check: bool = True) -> TokenTable | None:
    """Return the table in a folder, or None if it does not exist or is damaged. Removes a damaged entry."""
    if not folder.is_dir():
        return None
    try:
        content, _, checksum = (folder / META).read_text(encoding="utf-8").rpartition("\n")
        if str(zlib.crc32(content.encode())) != checksum:
            raise ValueError(f"{META} is damaged")
        meta = json.loads(content)
        for name, expected in meta["files"].items() if check else ():
            if _stamp(folder / name) != expected:
                raise ValueError(f"{name} is damaged")
        ragged = {name: Ragged(_values(folder, name, count, constant), _mapped(folder / f"{of}.offsets", np.int64, rows + 1))
                  for rows in [meta["rows"]] for name, (count, constant, of) in meta["ragged"].items()}  # fmt: skip
        dense = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in meta["dense"]}
        texts = {name: _texts(folder / f"{name}.texts", meta["rows"]) for name in meta["texts"]}
        os.utime(folder)  # the time of last use
    except (OSError, ValueError, KeyError, TypeError) as error:
        say(f"warning: {folder}: cannot be used ({error}); the rows are encoded again")
        remove(folder)
        return None
    return TokenTable(ragged, dense, meta["padding"], meta["truncated"], texts, sides=tuple(meta["sides"]))


def _values(folder: Path, name: str, count: int, constant: int | None) -> np.ndarray:
    if constant is not None:
        return np.broadcast_to(np.int32(constant), (count,))
    return _mapped(folder / f"{name}.values", np.int32, count)


def _mapped(path: Path, dtype: Any, count: int) -> np.ndarray:
    if count == 0:  # an empty file cannot be memory-mapped
        return np.zeros(0, dtype)
    return np.asarray(np.memmap(path, dtype, "r", shape=(count,)))


def _texts(path: Path, rows: int) -> np.ndarray:
    with path.open("rb") as file:
        return np.fromiter((text for line in file for text in json.loads(line)), object, rows)
