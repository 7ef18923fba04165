"""Thrift's compact protocol, as far as Parquet's footers and page headers need it, so that single fields can be changed."""

import struct
from typing import Any

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
Field = list[Any]  # number, type, value; of a list the value is [type of the elements, elements]


class Reader:
    """Reads structs from bytes; `at` is the position behind the last one."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def number(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def value(self, kind: int) -> Any:
        if kind in (TRUE, FALSE):
            return kind == TRUE
        if kind in (I16, I32, I64):
            return self.number()
        if kind == BYTE:
            self.at += 1
            return self.data[self.at - 1]
        if kind == DOUBLE:
            self.at += 8
            return self.data[self.at - 8 : self.at]
        if kind == BINARY:
            length = self.varint()
            self.at += length
            return self.data[self.at - length : self.at]
        if kind == STRUCT:
            return self.struct()
        head = self.data[self.at]
        self.at += 1
        length = head >> 4 if head >> 4 < 15 else self.varint()
        return [head & 15, [self.value(head & 15) for _ in range(length)]]

    def struct(self) -> list[Field]:
        fields: list[Field] = []
        number = 0
        while head := self.data[self.at]:
            self.at += 1
            number = number + (head >> 4) if head >> 4 else self.number()
            fields.append([number, head & 15, self.value(head & 15)])
        self.at += 1
        return fields


def varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def zigzag(value: int) -> bytes:
    return varint(2 * value if value >= 0 else -2 * value - 1)


def written(kind: int, value: Any) -> bytes:
    """A value in the compact protocol; truth values of fields are in their type."""
    if kind in (I16, I32, I64):
        return zigzag(value)
    if kind == BYTE:
        return struct.pack("B", value & 255)
    if kind == DOUBLE:
        return bytes(value)
    if kind == BINARY:
        return varint(len(value)) + bytes(value)
    if kind == STRUCT:
        return struct_bytes(value)
    inner, elements = value
    head = bytes([len(elements) << 4 | inner]) if len(elements) < 15 else bytes([240 | inner]) + varint(len(elements))
    if inner in (TRUE, FALSE):
        return head + bytes(1 if element else 2 for element in elements)
    return head + b"".join(written(inner, element) for element in elements)


def struct_bytes(fields: list[Field]) -> bytes:
    found, before = b"", 0
    for number, kind, value in fields:
        is_truth = kind in (TRUE, FALSE)
        code, step = (TRUE if value else FALSE) if is_truth else kind, number - before
        found += bytes([step << 4 | code]) if 0 < step < 16 else bytes([code]) + zigzag(number)
        found += b"" if is_truth else written(kind, value)
        before = number
    return found + b"\0"
