"""Read a folder of class folders: each file is a row, and the name of its folder is the label."""

import hashlib
import os
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np

from nlp_transfer.data.sources.file_reading import (
    MAX_ROW,
    TOO_LONG,
    UNDECODED,
    WrongEncodingError,
    check_regular,
    choose_encoding,
    new_skipped,
    read_start,
    undecoded,
)
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.utils.errors import BadRow, Problems, UserError


def read_class_folders(folder: Path, data: DataConfig) -> Rows:
    """Read `folder/<class>/<file>.txt` as columns `text` and `label`, one row per file.

    Raises:
        UserError: There are no such files, or a file cannot be read.
    """
    files = sorted(path for path in folder.glob("*/*") if path.suffix.lower() == ".txt")
    if not files:
        raise UserError(f"{folder}: found no class folders with .txt files; allowed: FOLDER/<class>/<file>.txt")
    problems = Problems(str(folder))
    texts = []
    digest = hashlib.sha256()
    skipped = new_skipped(data)
    for number, path in enumerate(files):
        text = ""
        faults = Problems(skipped=skipped)
        try:
            check_regular(path)
            content = read_start(path, 4 * MAX_ROW + 1)  # a character takes at most four bytes
            digest.update(os.fsencode(path.relative_to(folder)) + b"\0" + content + b"\0")
            text = _decode(content, choose_encoding(path, data)) if content else ""
            if fault := undecoded(text, str(data.encoding)):
                hint = "; set data.encoding, for instance [utf-8, cp1252]"
                faults.add_row(number, BadRow(str(path), 0, None, f"{fault}{hint}", UNDECODED))
            if fault := undecoded(path.parent.name, "utf-8"):
                faults.add(f"{path}: the name of the folder: {fault}; allowed: a name that can be a label")
            if len(text) > MAX_ROW:
                reason = f"is longer than {MAX_ROW:,} characters; allowed: at most that many in a text"
                faults.add_row(number, BadRow(str(path), 0, None, reason, TOO_LONG))
        except WrongEncodingError as error:
            faults.add_row(number, BadRow(str(path), 0, None, error.reason, UNDECODED))
        except UserError as error:
            faults.absorb(error)
        except UnicodeError as error:
            reason = f"cannot be read ({error}); set data.encoding if it is in another encoding"
            faults.add_row(number, BadRow(str(path), 0, None, reason, UNDECODED))
        except OSError as error:
            faults.add(f"{path}: cannot be read ({error})")
        problems.merge(faults)
        texts.append(text)
    problems.raise_if_any()
    names = [str(path) for path in files]
    columns: dict[str, list[Any]] = {"text": texts, "label": [path.parent.name for path in files]}
    file_of, position = np.arange(len(files), dtype=np.int32), np.zeros(len(files), np.int64)
    return Rows(columns, names, file_of, position, {str(folder.resolve()): digest.hexdigest()}).without(skipped or {})


def _decode(content: bytes, encoding: str) -> str:
    r"""Decode the content of a file; all line endings become `\n`."""
    return TextIOWrapper(BytesIO(content), encoding, errors="surrogateescape").read()
