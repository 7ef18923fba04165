"""Check weight files of torch.save by reading the opcodes of their pickles, before torch loads them.

With `weights_only`, torch runs no arbitrary code, but it calls functions such as `bytearray` with any size: a file of 291 bytes
can allocate 3 GB. Here a pickle may contain only what torch.save writes for a state dict, and the sizes in it are limited by
the size of the file.
"""

import math
import pickletools
import zipfile
from itertools import islice
from pathlib import Path
from typing import IO, Any

import torch

from nlp_transfer.utils.errors import UserError, converted

MAX_BYTES = 16 * 2**20  # maximum for an archive's directory, and for its pickle; a model with 1,000 layers needs 1 to 2 MB
MAX_OPERATIONS = 2_000_000  # maximum opcodes of a pickle; a tensor needs about 30
MAX_DIMENSIONS = 64
ZIP_START, ZIP_END, ZIP_END_SIZE = b"PK\x03\x04", b"PK\x05\x06", 22  # the size of the end record without a comment
STREAMS = 5  # pickles in a file without an archive: magic number, version, system, tensors, names of storages

ITEM_SIZES = {
    f"torch {name}Storage": size
    for size, names in {1: "Bool Byte Char", 2: "BFloat16 Half Short", 4: "Float Int", 8: "Double Long"}.items()
    for name in names.split()
}
DICT, TENSOR, PARAMETER = "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
NAMES = {DICT, TENSOR, PARAMETER, *ITEM_SIZES}
VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "NONE", "NEWTRUE", "NEWFALSE"}


class _Name(str):
    """The name of a class or function. The subclass of str distinguishes it from text in the pickle."""


_MARK, _CONTAINER, _TENSOR, _STORAGE = (_Name(text) for text in ("mark", "container", "tensor", "storage"))


def refusal(name: str) -> str:
    """Return the message for a refused pickle."""
    return (
        f"{name} is a pickle that contains more than tensors, or is damaged, and was not opened, since a pickle can run code; "
        "allowed: model.safetensors, or a pickle that contains only tensors"
    )


def check_pickle(path: Path) -> None:
    """Check a file of torch.save.

    Raises:
        UserError: the file contains anything other than tensors by name, or would need more memory than its size.
    """
    size = path.stat().st_size
    with converted(f"{refusal(str(path))}; found"):
        with path.open("rb") as file:
            if file.read(4) != ZIP_START:  # the older format, without an archive
                file.seek(0)
                for _ in range(STREAMS):
                    _read_storages(file, size)
                return
        _check_archive(path, size)
        reader = torch._C.PyTorchFileReader(str(path))  # also used by torch.load, so both read the same entries
        # Entries are not compressed, so none of them is larger than the file.
        if (length := len(pickled := reader.get_record("data.pkl"))) > MAX_BYTES:
            raise ValueError(f"its pickle has {length:,} bytes")
        for key, stored in _read_storages(pickled, size).items():
            if len(reader.get_record(f"data/{key}")) != stored:
                raise ValueError(f"storage {key} does not have {stored:,} bytes")


def _check_archive(path: Path, size: int) -> None:
    """Raise a UserError if an archive has too many entries, or has compressed entries, which could expand without limit."""
    with path.open("rb") as file:
        file.seek(max(0, size - ZIP_END_SIZE))
        end = file.read()
    entries, directory = int.from_bytes(end[10:12], "little"), int.from_bytes(end[12:16], "little")
    if not end.startswith(ZIP_END):
        raise UserError(f"{path}: is not a readable archive of tensors: its end is missing; copy it again")
    if entries == 0xFFFF or directory > MAX_BYTES:
        raise UserError(
            f"{path}: found a directory of {directory:,} bytes with {entries:,} entries; allowed: {MAX_BYTES:,} bytes"
        )
    with converted(f"{path}: is not a readable archive of tensors, so copy it again"), zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > size:
        raise UserError(f"{path}: its entries expand to {unpacked:,} bytes; allowed: uncompressed entries")


def _read_storages(stream: bytes | IO[bytes], limit: int) -> dict[str, int]:
    """Return the size in bytes of each storage in a pickle.

    No objects are created. On the stack, names represent them. The arguments of calls have a fixed size, so a few opcodes cannot
    copy a large object many times.

    Args:
        limit: maximum total bytes of all storages, and maximum number of elements in a tensor.

    Raises:
        ValueError, LookupError, TypeError: an opcode, a name or an argument is not one that torch.save writes.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    storages: dict[str, int] = {}
    builds = 0

    def since_mark() -> tuple[Any, ...]:
        begin = len(stack) - 1
        while stack[begin] is not _MARK:  # without a mark this raises an IndexError
            begin -= 1
        items = tuple(stack[begin + 1 :])
        del stack[begin:]
        return items

    for operation, argument, _ in islice(pickletools.genops(stream), MAX_OPERATIONS):
        match operation.name:
            case "PROTO":
                pass
            case "STOP":
                if sum(storages.values()) > limit:
                    raise ValueError(f"storages of {sum(storages.values()):,} bytes in a file of {limit:,}")
                return storages
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "MARK":
                stack.append(_MARK)
            case "GLOBAL" if argument in NAMES:
                stack.append(_Name(argument))
            case "EMPTY_DICT" | "EMPTY_LIST":
                stack.append(_CONTAINER)
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(since_mark())
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                stack[-int(name[-1]) :] = [tuple(stack[-int(name[-1]) :])]
            case name if name in VALUES:
                stack.append({"NEWTRUE": True, "NEWFALSE": False}.get(name, argument))
            case "APPENDS":
                since_mark()
            case "APPEND":
                stack.pop()
            case "SETITEM" | "SETITEMS" as name:
                items = since_mark() if name == "SETITEMS" else (stack.pop(-2), stack.pop())
                if stack[-1] is not _CONTAINER or not all(type(key) is str for key in items[::2]):
                    raise ValueError("a dictionary with keys that are not text")
            case "BUILD" if stack.pop() is _CONTAINER and stack[-1] is _CONTAINER and not builds:
                builds += 1  # the attribute `_metadata` of a state dict
            case "BINPERSID":
                match stack.pop():
                    case ("storage", _Name() as kind, str(key), str(), int(numbers), *_) if numbers >= 0:
                        storages[key] = numbers * ITEM_SIZES[kind]
                    case _:
                        raise ValueError("a storage that torch.save would not write")
                stack.append(_STORAGE)
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_check_call(function, arguments, limit))
            case name:
                raise ValueError(f"{name} {argument or ''}")
    raise ValueError(f"more than {MAX_OPERATIONS:,} operations")


def _check_call(function: Any, arguments: Any, limit: int) -> _Name:
    """Check a call, and return the name that represents its result."""
    match function, arguments:
        case _Name(), () if function == DICT:
            return _CONTAINER
        case _Name(), (_Name() as tensor, bool(), _Name() as hooks) if function == PARAMETER:
            if tensor is _TENSOR and hooks is _CONTAINER:
                return _TENSOR
        case _Name(), (_Name() as storage, int(), (*shape,), (*strides,), bool(), _Name()) if function == TENSOR:
            is_small = len(shape) == len(strides) <= MAX_DIMENSIONS and all(type(n) is int and n >= 0 for n in (*shape, *strides))
            if storage is _STORAGE and is_small and math.prod(shape) <= limit:
                return _TENSOR
    raise ValueError(f"a call of {function}")
