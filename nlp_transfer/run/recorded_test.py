"""The test data that a run recorded, for evaluating the run again."""

from pathlib import Path
from typing import Any, NamedTuple

from nlp_transfer.data.sources.portable_paths import mapping
from nlp_transfer.run.document import read_document
from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import UserError

CONFIG = "config.yaml"
SETTINGS = ("test", "on_bad_rows", "encoding", "columns", "delimiter", "quoting")


class RecordedTest(NamedTuple):
    """Test data of a run.

    Attributes:
        data: The settings in `data` that read it.
        hashes: SHA-256 of its files in order; empty for data on a hub, whose revision is part of its name.
    """

    data: dict[str, Any]
    hashes: list[str]


def recorded_test(model: str) -> RecordedTest:
    """Return the test data of a run.

    Args:
        model: the run folder, or the `model` or `adapter` folder in it.

    Raises:
        UserError: this is no run, or the run has no test data that can be read again.
    """
    required = "--data.test: is required"
    folder = expand(model)
    place = next((path for path in (folder, folder.parent) if _is_run(path, folder)), None)
    if place is None:
        raise UserError(
            f"{required}, since {model} is not the folder of a run, which records its test data in {CONFIG}; allowed: a file, a "
            "folder or another source of data"
        )
    document = read_document(place / CONFIG)
    data = mapping(document.get("data"))
    test = data.get("test")
    if test is None:
        share = (
            f"its test rows were split from train (test_share {data['test_share']})" if data.get("test_share") else "it had none"
        )
        raise UserError(
            f"{required}: {place / CONFIG} names no test data: {share}; metrics are in {place / 'result.json'}; allowed: "
            "a file, a folder or another source of data"
        )
    if str(test).startswith("<"):
        raise UserError(
            f"{required}: the test data of {model} was {test}, which was not saved; allowed: a file or another source"
        )
    content = mapping(mapping(document.get("provenance")).get("content")).get("data.test")
    hashes = [str(digest) for digest in content] if isinstance(content, list) else []
    return RecordedTest({name: data[name] for name in SETTINGS if data.get(name) is not None}, hashes)


def _is_run(path: Path, folder: Path) -> bool:
    return (path / CONFIG).is_file() and (path == folder or folder.name in ("model", "adapter"))
