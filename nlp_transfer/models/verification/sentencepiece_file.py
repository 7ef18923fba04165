"""SentencePiece models: check them before a library that trusts their offsets reads them."""

from collections.abc import Iterator

import numpy as np

from nlp_transfer.models.verification.tokenizer_fields import LONGEST_TOKEN, MAX_TOKENS

PIECE, NORMALIZERS, TABLE = 1, (3, 5), 2  # fields of a ModelProto, and of a NormalizerSpec
MAX_PIECE = 4 * LONGEST_TOKEN + 32  # bytes
MAX_WRITTEN = 64  # characters for one; Unicode's forms write up to 18
LEAF, VALUE = np.uint32(1 << 8), np.uint32(0x7FFFFFFF)


def replacements(table: bytes) -> set[str]:
    """Return what a table of a SentencePiece normalizer writes in place of characters.

    The table is the size of a double-array trie (Yata's darts-clone), the trie, and texts that end with a zero byte. The
    libraries follow its offsets without a look at the size, so each must lead to a unit of the trie or to a text.

    Raises:
        ValueError: it is damaged.
    """
    if not table:
        return set()
    size = int.from_bytes(table[:4], "little")
    if len(table) < 4 or size % 1024 or not size or size > len(table) - 4:
        raise ValueError("its trie has an impossible size")
    units, texts = np.frombuffer(table, np.uint32, size // 4, 4), table[4 + size :]
    bases = np.arange(len(units), dtype=np.uint32) ^ ((units >> 10) << ((units & (1 << 9)) >> 6))
    inner = units <= VALUE  # others are values
    if (bases[inner] | 255 >= len(units)).any():
        raise ValueError("its trie leads out of itself")
    starts = units[bases[inner & (units & LEAF > 0)]] & VALUE
    starting = np.frombuffer(texts, np.uint8)
    if starts.size and (starts.max() >= len(texts) or (starting[starts] & 0xC0 == 0x80).any()):
        raise ValueError("its trie leads to no text")
    return set(texts.decode("utf-8").split("\0"))


def check_sentencepiece(content: bytes) -> None:
    """Check a SentencePiece model: its pieces, and the tables of its normalizers.

    Raises:
        ValueError: it is damaged, or one of them is larger than in any published model.
    """
    pieces = 0
    for number, value in fields(content):
        if number == PIECE:
            pieces += 1
            if not isinstance(value, bytes) or len(value) > MAX_PIECE or pieces > MAX_TOKENS:
                raise ValueError(f"piece {pieces:,} of up to {MAX_TOKENS:,}, each of up to {MAX_PIECE:,} bytes")
        elif number in NORMALIZERS and isinstance(value, bytes):
            for inner, table in fields(value):
                if inner == TABLE:
                    written = replacements(table if isinstance(table, bytes) else b"?")
                    if (longest := max(map(len, written), default=0)) > MAX_WRITTEN:
                        raise ValueError(f"its normalizer writes {longest:,} characters for one; up to {MAX_WRITTEN} can be read")
    if not pieces:
        raise ValueError("it has no pieces")


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol-buffer message: numbers, and bytes of what has a length.

    Raises:
        ValueError: it is damaged.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind, value = key & 7, b""
        if kind == 0:
            number, at = _varint(message, at)
            yield key >> 3, number
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError("a field of an unknown kind")
        value = message[at : at + size]
        if len(value) < size:
            raise ValueError("it ends within a field")
        at += size
        yield key >> 3, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("it ends within a number")
