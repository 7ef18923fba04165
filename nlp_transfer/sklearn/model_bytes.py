"""The files of a saved model as bytes, so that estimators can be pickled without pickling modules of PyTorch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the content of all files in a folder, by relative path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


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
