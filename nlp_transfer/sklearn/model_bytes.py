"""The files of a saved model as bytes, so that estimators can be pickled without pickling modules of PyTorch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from nlp_transfer.saved_models.layout import ENCODER


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the content of the files in the folder of a model, by relative path, without the copy of its encoder."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.relative_to(folder).parts[0] != ENCODER]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Create a folder that is deleted at the end of the context."""
    with TemporaryDirectory(prefix="nlp_transfer-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def written_files(files: Mapping[str, bytes]) -> Iterator[Path]:
    """Write files into a temporary folder, and yield its path."""
    with temporary_folder() as folder:
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield folder
