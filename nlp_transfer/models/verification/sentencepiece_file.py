"""Check SentencePiece models before a library reads them.

The library does not check the offsets in a file, so a hostile file could make it read out of bounds.
"""

from collections.abc import Iterator

import numpy as np

from nlp_transfer.models.verification.tokenizer_fields import LONGEST_TOKEN, MAX_TOKENS

PIECE, NORMALIZERS, TABLE = 1, (3, 5), 2  # field numbers of a ModelProto, and of a NormalizerSpec
MAX_PIECE = 4 * LONGEST_TOKEN + 32  # bytes
MAX_REPLACEMENT = 64  # characters that replace one character; Unicode normalization writes up to 18
LEAF, VALUE = np.uint32(1 << 8), np.uint32(0x7FFFFFFF)


def replacements(table: bytes) -> set[str]:
    """Return the replacement texts of a SentencePiece normalizer's table.

    The table consists of the size of a double-array trie (Yata's darts-clone), the trie, and texts that end with a zero byte.
    Each offset must point to a unit of the trie or to a text.

    Raises:
        ValueError: the table is damaged.
    """
    if not table:
        return set()
    size = int.from_bytes(table[:4], "little")
    if len(table) < 4 or size % 1024 or not size or size > len(table) - 4:
        raise ValueError("its trie has an impossible size")
    units, texts = np.frombuffer(table, np.uint32, size // 4, 4), table[4 + size :]
    bases = np.arange(len(units), dtype=np.uint32) ^ ((units >> 10) << ((units & (1 << 9)) >> 6))
    inner = units <= VALUE  # all other units are values
    if (bases[inner] | 255 >= len(units)).any():
        raise ValueError("an offset points outside its trie")
    starts = units[bases[inner & (units & LEAF > 0)]] & VALUE
    characters = np.frombuffer(texts, np.uint8)
    if starts.size and (starts.max() >= len(texts) or (characters[starts] & 0xC0 == 0x80).any()):  # inside a UTF-8 character
        raise ValueError("an offset points to no text")
    return set(texts.decode("utf-8").split("\0"))


def check_sentencepiece(content: bytes) -> None:
    """Check the pieces of a SentencePiece model and the tables of its normalizers.

    Raises:
        ValueError: the model is damaged, or a piece or table is too large.
    """
    pieces = 0
    for number, value in fields(content):
        if number == PIECE:
            pieces += 1
            if not isinstance(value, bytes) or len(value) > MAX_PIECE or pieces > MAX_TOKENS:
                raise ValueError(f"found piece {pieces:,}; allowed: up to {MAX_TOKENS:,}, each of up to {MAX_PIECE:,} bytes")
        elif number in NORMALIZERS and isinstance(value, bytes):
            for inner, table in fields(value):
                if inner == TABLE:
                    texts = replacements(table if isinstance(table, bytes) else b"?")
                    if (longest := max(map(len, texts), default=0)) > MAX_REPLACEMENT:
                        raise ValueError(
                            f"its normalizer replaces one character with {longest:,}; allowed: up to {MAX_REPLACEMENT}"
                        )
    if not pieces:
        raise ValueError("it has no pieces")


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a protocol-buffer message: field numbers and values.

    Raises:
        ValueError: the message is damaged.
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
    """Return the variable-length integer at a position, and the position after it."""
    value = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("it ends within a number")
