"""Check the names of files before a push, copy them, compare them with those in a repository, and search them for secrets."""

import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from nlp_transfer.models.verification.allowed import CONFIGURATIONS, RECORD, TOKENIZER_FILES, TRIMMED_VOCABULARY
from nlp_transfer.saved_models.custom_models import FOLDER as BUILT
from nlp_transfer.security.file_locks import open_regular
from nlp_transfer.security.secret_patterns import contains_secret
from nlp_transfer.security.secret_patterns import find_secret as find_secret_in_text
from nlp_transfer.utils.checksums import sha256_of

TOKENIZER = frozenset((*TOKENIZER_FILES, "chat_template.jinja"))
MODEL_FILES = TOKENIZER | {*CONFIGURATIONS, "model.safetensors", "model.safetensors.index.json"}
# Allowed file names by folder: the files that runs and their tokenizers write.
ALLOWED = {
    "": MODEL_FILES
    | {"README.md", "LICENSE", "NOTICE", RECORD, TRIMMED_VOCABULARY, "adapter_config.json", "adapter_model.safetensors"},
    "encoder": MODEL_FILES,
    BUILT: MODEL_FILES,
    "target_tokenizer": TOKENIZER,
}
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
IMAGE = re.compile(r"[\w-]+\.(?:png|jpg|jpeg|svg)", re.ASCII)  # allowed if the model card shows it
BLOCK, OVERLAP = 1 << 20, 1 << 13  # bytes searched at once, and bytes shared by adjacent blocks
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT = 1 << 24  # maximum bytes of a decompressed text in an image


def is_allowed(name: str, card: str) -> bool:
    """Return whether a file of this name may be part of a model.

    Args:
        name: path in the model's folder.
        card: text of the model card. Images are allowed if it shows them.
    """
    folder, _, base = name.rpartition("/")
    if folder not in ALLOWED:
        return False
    is_shard = folder != "target_tokenizer" and SHARD.fullmatch(base)
    return base in ALLOWED[folder] or bool(is_shard) or (not folder and bool(IMAGE.fullmatch(base)) and base in card)


def copy_file(folder: Path, name: str, copy: Path) -> None:
    """Copy a regular file to the same path in another folder.

    Args:
        folder: source folder.
        name: path of the file in both folders.
        copy: destination folder.

    Raises:
        OSError: the file or one of its parent folders is a link, the file is not a regular file, or it cannot be copied.
    """
    if any((folder / parent).is_symlink() for parent in Path(name).parents if parent.name):
        raise OSError(f"{Path(name).parent} is a link")
    place = copy / name
    place.parent.mkdir(parents=True, exist_ok=True)
    with open_regular(folder / name) as source, place.open("wb") as target:
        shutil.copyfileobj(source, target, BLOCK)


def is_stored(path: Path, entry: RepoFile | None) -> bool:
    """Return whether a file of the repository has the size and the hash of a local file."""
    if entry is None or entry.size != path.stat().st_size:
        return False
    return entry.lfs.sha256 == sha256_of(path) if entry.lfs else entry.blob_id == git_hash(path.read_bytes())


def find_secret(path: Path) -> int | None:
    """Search a file for secrets.

    The search covers text in UTF-8, UTF-16 and UTF-32, escaped text, and texts in PNG images. In files of weights, it covers the
    header as text, and the numbers as bytes.

    Returns:
        The approximate offset of the first secret in bytes, or None if there is none.
    """
    if path.suffix == ".safetensors":
        return _find_in_weights(path)
    content = path.read_bytes()
    if (start := _find_in_text(content)) is None and content.startswith(PNG_SIGNATURE):
        return next((0 for text in _compressed_texts(content) if _find_in_text(text) is not None), None)
    return start


def _find_in_weights(path: Path) -> int | None:
    with path.open("rb") as file:
        length = file.read(8)
        header = file.read(min(int.from_bytes(length, "little"), path.stat().st_size))
        if (start := _find_in_text(length + header)) is not None:
            return start
        overlap = header[-OVERLAP:]
        while block := file.read(BLOCK):
            if contains_secret(overlap + block):
                return file.tell() - len(block)
            overlap = block[-OVERLAP:]
    return None


def _find_in_text(data: bytes) -> int | None:
    """Search text as `find_secret` does. The bytes are split into blocks, because each block is decoded several times."""
    for at in range(0, len(data), BLOCK):
        first = max(0, at - OVERLAP)
        text = data[first : at + BLOCK].decode("utf-8", "surrogateescape")
        if (start := find_secret_in_text(text)) is not None:
            return first + len(text[:start].encode("utf-8", "surrogateescape"))
    return None


def _compressed_texts(image: bytes) -> Iterator[bytes]:
    """Decompress and yield the compressed texts in all chunks of a PNG image, except the pixels."""
    at = len(PNG_SIGNATURE)
    while at + 8 <= len(image):
        size, kind = int.from_bytes(image[at : at + 4], "big"), image[at + 4 : at + 8]
        chunk = image[at + 8 : at + 8 + size]
        for match in re.finditer(rb"\0", chunk[:256]) if kind != b"IDAT" else ():
            for start in (match.end(), match.end() + 1):
                try:
                    yield zlib.decompressobj().decompress(chunk[start:], MAX_TEXT)
                except zlib.error:
                    continue
        at += 12 + size
