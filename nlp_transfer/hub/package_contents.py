"""The files that are sent to a hub: which may be, how they are opened, and the search for secrets in what they hold.

What was checked is what is sent: small files are read once, and weights stay open from the check until they have arrived.
"""

import hashlib
import io
import os
import re
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from huggingface_hub.hf_api import RepoFile

from nlp_transfer.models.verification.allowed import CONFIGURATIONS, RECORD, TOKENIZER_FILES
from nlp_transfer.saved_models.custom_models import FOLDER as BUILT
from nlp_transfer.security.file_locks import open_regular
from nlp_transfer.security.secret_patterns import find_secret, is_in_bytes

TOKENIZER = frozenset((*TOKENIZER_FILES, "chat_template.jinja"))
OF_A_MODEL = TOKENIZER | {*CONFIGURATIONS, "model.safetensors", "model.safetensors.index.json"}
ALLOWED = {
    "": OF_A_MODEL | {"README.md", "LICENSE", "NOTICE", RECORD, "adapter_config.json", "adapter_model.safetensors"},
    "encoder": OF_A_MODEL,
    BUILT: OF_A_MODEL,
    "target_tokenizer": TOKENIZER,
}  # by folder, exact names; what a run writes, and what the tokenizers of its models write
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
IMAGE = re.compile(r"[\w-]+\.(?:png|jpg|jpeg|svg)", re.ASCII)  # allowed where the model card shows them
BLOCK, OVERLAP = 1 << 20, 1 << 13  # bytes that are searched at once, and those that are searched twice
PNG = b"\x89PNG\r\n\x1a\n"
MOST_TEXT = 1 << 24  # bytes of a compressed text in an image


def is_allowed(name: str, card: str) -> bool:
    """Whether a file of this path in the folder belongs to a model; `card` is the text of its README.md."""
    folder, _, base = name.rpartition("/")
    if folder not in ALLOWED:
        return False
    weights = folder != "target_tokenizer" and SHARD.fullmatch(base)
    return base in ALLOWED[folder] or bool(weights) or (not folder and bool(IMAGE.fullmatch(base)) and base in card)


class Content:
    """What a file in the repository is to hold: bytes, or a file that stays open."""

    def __init__(self, source: bytes | BinaryIO) -> None:
        self.source = source

    @classmethod
    def of(cls, folder: Path, name: str) -> "Content":
        """A file in a folder: weights are opened, others are read.

        Raises:
            OSError: it is a link, lies behind one, or is no regular file; or it cannot be read.
        """
        if any((folder / parent).is_symlink() for parent in Path(name).parents if parent.name):
            raise OSError(f"{Path(name).parent} is a link")
        file = open_regular(folder / name)
        if name.endswith(".safetensors"):
            return cls(file)
        with file:
            return cls(file.read())

    @property
    def place(self) -> str | bytes:
        """The content for libraries that take bytes or a path: of an open file, a path that leads to this very file."""
        if isinstance(self.source, bytes):
            return self.source
        own = f"/proc/self/fd/{self.source.fileno()}"
        return own if os.path.exists(own) else str(self.source.name)

    @cached_property
    def size(self) -> int:
        return len(self.source) if isinstance(self.source, bytes) else os.fstat(self.source.fileno()).st_size

    @cached_property
    def sha256(self) -> str:
        return self._digest(hashlib.sha256())

    @cached_property
    def blob(self) -> str:
        """The hash by which git calls it."""
        return self._digest(hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False))

    def _digest(self, digest: Any) -> str:
        for part in self.parts():
            digest.update(part)
        return str(digest.hexdigest())

    def parts(self) -> Iterator[bytes]:
        file = io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source
        file.seek(0)
        while part := file.read(BLOCK):
            yield part

    def bytes(self) -> bytes:
        return b"".join(self.parts())

    def is_at(self, entry: RepoFile | None) -> bool:
        """Whether a hub lists the same content."""
        if entry is None or entry.size != self.size:
            return False
        return entry.lfs.sha256 == self.sha256 if entry.lfs else entry.blob_id == self.blob

    def find_secret(self) -> int | None:
        """The number of bytes before the first secret, roughly; None where there is none.

        What is searched are the bytes, as text in UTF-8, UTF-16 and UTF-32, without escapes, and texts that a PNG holds; of
        weights so their header, and their numbers as they stand.
        """
        if isinstance(self.source, bytes):
            if (start := _find_in_text(self.source)) is None and self.source.startswith(PNG):
                return next((0 for text in _compressed_texts(self.source) if _find_in_text(text) is not None), None)
            return start
        self.source.seek(0)
        size = self.source.read(8)
        header = self.source.read(min(int.from_bytes(size, "little"), self.size))
        if (start := _find_in_text(size + header)) is not None:
            return start
        before = header[-OVERLAP:]
        while part := self.source.read(BLOCK):
            if is_in_bytes(before + part):
                return self.source.tell() - len(part)
            before = part[-OVERLAP:]
        return None


def _find_in_text(data: bytes) -> int | None:
    """As `Content.find_secret`, in blocks, since each is decoded several times."""
    for at in range(0, len(data), BLOCK):
        first = max(0, at - OVERLAP)
        text = data[first : at + BLOCK].decode("utf-8", "surrogateescape")
        if (start := find_secret(text)) is not None:
            return first + len(text[:start].encode("utf-8", "surrogateescape"))
    return None


def _compressed_texts(image: bytes) -> Iterator[bytes]:
    """The texts in a PNG's chunks that are compressed, whatever kind a chunk says it is of, the pixels aside."""
    at = len(PNG)
    while at + 8 <= len(image):
        size, kind = int.from_bytes(image[at : at + 4], "big"), image[at + 4 : at + 8]
        chunk = image[at + 8 : at + 8 + size]
        for match in re.finditer(rb"\0", chunk[:256]) if kind != b"IDAT" else ():
            for start in (match.end(), match.end() + 1):
                try:
                    yield zlib.decompressobj().decompress(chunk[start:], MOST_TEXT)
                except zlib.error:
                    continue
        at += 12 + size
