"""Files are written by one writer (`disk.py`), which replaces them whole and follows no link that the user did not name."""

import ast
import errno
import os
import resource
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nlp_transfer
from nlp_transfer.data.bad_rows import SKIPPED_ROWS, write_skipped
from nlp_transfer.inference.writers import Writer
from nlp_transfer.security.file_locks import LOCKED, lock_now, lock_target
from nlp_transfer.training import checkpoints
from nlp_transfer.utils import atomic_files
from nlp_transfer.utils.atomic_files import write_json
from nlp_transfer.utils.errors import BadRow, UserError
from tests.builders import refused

ROOT = Path(nlp_transfer.__file__).parent

ALLOWED = {
    "utils/atomic_files.py": "the writer",
    "security/file_locks.py": "lock files and journals: opened without following links, checked, removed by their holder alone",
    "inference/output_journal.py": "appends to its journal, opened by `open_record`; removes it when the output is complete",
    "models/cached_features.py": "maps a file that `replacing` has made",
    "inference/parquet_writer.py": "writes into files that `replacing` has made, and into temporary files without a name",
    "saved_models/save.py": "libraries write into a folder that `replacing_folder` has made",
    "saved_models/custom_models.py": "libraries write into a folder that `replacing_folder` has made",
    "tasks/common/text_generation.py": "libraries write into a folder that `replacing_folder` has made",
    "strategies/multitask/__init__.py": "libraries write into a folder that `replacing_folder` has made",
    "strategies/common/adapter_modules.py": "libraries write into a folder that `replacing_folder` has made",
    "training/checkpoints.py": "libraries write into a folder that `replacing_folder` has made; removes checkpoints of its run",
    "run/folder.py": "removes the checkpoints of its run",
    "report/plots.py": "saves a plot to a buffer in memory",
    "report/run_plots.py": "saves a plot to a buffer in memory",
    "experiments/cross_validation.py": "writes a table to a buffer in memory",
    "inference/embedding_files.py": "writes into a file that `replacing` has made",
    "sklearn/encoder.py": "libraries write into a temporary folder",
    "sklearn/model_bytes.py": "writes into a temporary folder",
    "experiments/runs.py": "removes an unfinished run of its comparison; what a process prints goes to a file without a name",
    "experiments/run_server.py": "removes models of its comparison; writes into a file that `replacing` has made",
    "export/encoder_graph.py": "libraries write into a folder that `replacing_folder` has made",
    "export/export_folder.py": "removes a graph from a folder that `replacing_folder` has made",
    "export/exporter.py": "libraries write into a folder that `replacing_folder` has made",
    "export/standalone.py": "removes a program from a folder that `replacing_folder` has made",
    "export/tokenizer_vocabulary.py": "libraries write into a private temporary folder",
    "export/trimmed_model.py": "libraries write into a folder that `replacing_folder` has made",
    "run/strategy_trials.py": "trials write into a private temporary folder",
    "run/trial_save.py": "a private folder with a random name, removed afterwards",
    "data/token_cache.py": "a private folder with a random name in the user's cache, renamed when complete; files have checksums",
    "data/sources/wheels.py": "a private folder with a random name in the user's cache; files are renamed when complete",
    "data/sources/archive_entries.py": "a private folder with a random name in the user's cache; files are renamed when complete",
    "models/verification/adapter_settings.py": "the private temporary folder that peft reads an adapter from",
    "hub/package.py": "the private temporary folder of what is pushed",
    "hub/package_contents.py": "copies into the private temporary folder of what is pushed",
    "models/verification/model_files.py": "the private temporary folder that libraries read a model from",
    "data/sources/file_reading.py": "opens for reading, without waiting for a pipe",
    "data/sources/text_columns.py": "a temporary file without a name",
    "inference/compiled_model.py": "writes into a folder that `replacing_folder` has made, and removes a file from it",
    "utils/cache_entries.py": "removes its own lock and the oldest entries of the user's cache",
    "inference/standard_streams.py": "standard output, and temporary files that nobody else can name",
    "utils/environment.py": "tries where the user may write; temporary folders; the null device",
    "run/final_model.py": "a temporary folder for what other processes than the first one save",
}
CALLS = {
    "os.open", "os.fdopen", "os.replace", "os.rename", "os.renames", "os.link", "os.symlink", "os.unlink", "os.remove",
    "os.truncate", "os.mkfifo", "os.mknod", "os.removedirs", "np.save", "np.savez", "np.savez_compressed", "np.savetxt",
    "np.memmap", "np.lib.format.open_memmap", "torch.save", "pq.ParquetWriter", "pq.write_table", "pa.OSFile", "shutil.copy",
    "shutil.copy2", "shutil.copyfile", "shutil.copytree", "shutil.move", "shutil.rmtree", "shutil.copyfileobj", "io.open",
    "io.FileIO", "codecs.open", "save_file", "save_weights", "FileIO",
}  # fmt: skip
METHODS = {
    "write_text", "write_bytes", "save_pretrained", "unlink", "rename", "touch", "symlink_to", "hardlink_to", "to_csv",
    "to_parquet", "to_json", "savefig", "save_to_disk",
}  # fmt: skip
READING = {"r", "rb", "rt"}


def raw_writes(source: str) -> list[str]:
    """Calls that write, rename or remove files past `disk.py`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name, method = ast.unparse(node.func), node.func.attr if isinstance(node.func, ast.Attribute) else ""
        texts = [*node.args, *(word.value for word in node.keywords if word.arg == "mode")]
        modes = [text.value for text in texts if isinstance(text, ast.Constant) and isinstance(text.value, str)]
        opens = name == "open" or (method == "open" and name not in CALLS)
        writes = opens and any(set(mode) <= set("rwxabt+") and mode not in READING for mode in modes)
        own = name == "write_bytes" or name.startswith("disk.")
        renames = method == "replace" and len(node.args) == 1 and not node.keywords and not name[0].isupper()
        if writes or name in CALLS or name.startswith("tempfile.") or renames or (method in METHODS and not own):
            found.append(f"line {node.lineno}: {ast.unparse(node)[:80]}")
    return found


def test_files_are_written_by_one_writer() -> None:
    found = {str(path.relative_to(ROOT)): raw_writes(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}
    assert {name: calls for name, calls in found.items() if calls and name not in ALLOWED} == {}
    assert [name for name in ALLOWED if not found.get(name)] == [], "no longer needed"


def test_raw_writes_are_recognized() -> None:
    for call in (
        "open(p, 'w')", "p.open('ab')", "p.open(mode='x')", "p.write_text(t)", "os.replace(a, b)", "a.rename(b)", "a.replace(b)",
        "np.save(p, a)", "tempfile.mkdtemp()", "pq.ParquetWriter(p, s)", "model.save_pretrained(p)", "p.unlink()",
        "os.open(p, f)", "shutil.rmtree(p)", "save_file(t, p)",
    ):  # fmt: skip
        assert raw_writes(call), call
    for call in ("open(p)", "p.open('rb')", "open(p, encoding='utf-8')", "text.replace('a', 'b')", "write_bytes(p, b)"):
        assert not raw_writes(call), call


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_file_is_replaced_whole_with_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    before = os.umask(0o027)
    try:
        atomic_files.write_bytes(path, b"one")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        inode = path.stat().st_ino
        with atomic_files.replacing(path) as file:
            file.write(b"two")
            file.flush()
            [part] = [name for name in names(tmp_path) if name.startswith(".part-")]
            assert path.read_bytes() == b"one"
    finally:
        os.umask(before)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"two", 0o604)
    assert path.stat().st_ino != inode
    assert names(tmp_path) == ["out.txt"]
    with atomic_files.replacing(path) as file:
        assert part not in names(tmp_path), "the name is another one each time"


def test_a_second_writer_is_refused_and_the_first_one_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    with atomic_files.replacing(path) as file:
        file.write(b"first")
        with refused("out.txt: another process"):
            atomic_files.write_bytes(path, b"second")
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["out.txt"]


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    with pytest.raises(FileExistsError), atomic_files.replacing(path, overwrite=False):
        path.write_text("precious")
    assert path.read_text() == "precious"
    assert names(tmp_path) == ["out.txt"]


@pytest.mark.parametrize("name", [".out.txt.lock", ".part-out.txt", "out.txt"])
@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "pipe", "folder", "file"])
def test_what_is_planted_is_never_written_through(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / "in").mkdir()
    victim, place = tmp_path / "victim", tmp_path / "in" / name
    victim.write_text("precious")
    make: dict[str, Callable[[], Any]] = {
        "link": lambda: place.symlink_to(victim), "dangling link": lambda: place.symlink_to(tmp_path / "nowhere"),
        "hard link": lambda: place.hardlink_to(victim), "pipe": lambda: os.mkfifo(place), "folder": place.mkdir,
        "file": lambda: place.write_text("mine"),
    }  # fmt: skip
    make[kind]()
    before = place.lstat().st_ino
    target = tmp_path / "in/out.txt"
    replaces = name == "out.txt" and kind not in ("pipe", "folder")
    if name == ".part-out.txt" or replaces:
        atomic_files.write_bytes(target, b"new")
        assert target.read_bytes() == b"new"
        assert not target.is_symlink()
    else:
        with refused("out.txt"):
            atomic_files.write_bytes(target, b"new")
    if not replaces:
        assert place.lstat().st_ino == before
        assert kind != "file" or place.read_text() == "mine"
    assert victim.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()
    assert set(names(tmp_path / "in")) <= {name, "out.txt"}


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    left, other = tmp_path / f".part-{'0' * 32}", tmp_path / f".part-{'1' * 32}"
    for folder in (left, other):
        folder.mkdir()
        (folder / "file").touch()
    (tmp_path / "mine.csv").touch()
    recorded = f"{left.name}\nmine.csv\n../{other.name}\n"
    (tmp_path / ".out.lock").write_bytes(LOCKED + recorded.encode())
    with atomic_files.replacing_folder(tmp_path / "out") as part:
        (part / "model").touch()
    assert names(tmp_path) == [other.name, "mine.csv", "out"]


def test_a_folder_that_a_killed_writer_moved_away_is_restored(tmp_path: Path) -> None:
    old = tmp_path / f".old-{'0' * 32}"
    old.mkdir()
    (old / "model").touch()
    lock = LOCKED + f"{old.name}\n".encode()
    (tmp_path / ".out.lock").write_bytes(lock)
    lock_target(tmp_path / "out").release()
    assert (names(tmp_path), names(tmp_path / "out")) == (["out"], ["model"])
    old.mkdir()
    (tmp_path / ".out.lock").write_bytes(lock)
    lock_target(tmp_path / "out").release()
    assert (names(tmp_path), names(tmp_path / "out")) == (["out"], ["model"])


def test_a_lock_file_that_was_removed_guards_nothing(tmp_path: Path) -> None:
    """A lock is on the file that has the name, not on one that had it."""
    place = tmp_path / ".lock"
    first = lock_now(place, "busy", "")
    with refused("busy"):
        lock_now(place, "busy", "")
    stale = place.open("rb")
    first.release()
    second = lock_now(place, "busy", "")
    assert os.fstat(stale.fileno()).st_ino != place.stat().st_ino or os.fstat(stale.fileno()).st_nlink == 1
    with refused("busy"):
        lock_now(place, "busy", "")
    second.release()
    stale.close()
    assert names(tmp_path) == []


def write_table(ending: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        with Writer(folder / f"out{ending}", ending) as writer:
            writer.write({"text": [os.urandom(3000).hex() for _ in range(10)]})

    return write


def write_checkpoint(folder: Path) -> None:
    checkpoints.write_checkpoint(folder, 1, {}, {"noise": "x" * 50_000}, best=True)


MUCH = [BadRow("a.csv", i, None, "x" * 100, "bad") for i in range(1000)]
EVERY: dict[str, Callable[[Path], None]] = {
    "bytes": lambda folder: atomic_files.write_bytes(folder / "out", bytes(50_000)),
    "json": lambda folder: write_json(folder / "out.json", ["x" * 50_000]),
    "line": lambda folder: atomic_files.append(folder / "log", bytes(50_000)),
    "skipped rows": lambda folder: write_skipped(folder, [("train", bad) for bad in MUCH]),
    "checkpoint": write_checkpoint,
    **{ending: write_table(ending) for ending in (".csv", ".jsonl", ".parquet")},
}  # fmt: skip


@pytest.mark.parametrize("what", list(EVERY))
def test_a_disk_without_room_leaves_nothing_half_written(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic_files, "LONGEST", 0.0)
    monkeypatch.setattr(atomic_files, "PAUSE", 0.0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises((UserError, OSError)) as caught:
            EVERY[what](tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert atomic_files.is_full(caught.value) or "the disk is full" in str(caught.value)
    assert [path for path in tmp_path.rglob("*") if path.stat().st_size] == []
    assert not any(name.startswith(".") for name in names(tmp_path))
    EVERY[what](tmp_path)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in written) > 10_000
    assert what != "skipped rows" or (tmp_path / SKIPPED_ROWS).read_text().count("\n") == 1001


@pytest.mark.parametrize("of", ["file", "folder"])
def test_a_failing_disk_is_an_error(of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").write_text("before")
    true = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == (of == "folder"):
            raise OSError(errno.EIO, "Input/output error")
        true(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output"):
        atomic_files.write_bytes(tmp_path / "out", b"after")
    assert (tmp_path / "out").read_text() == ("before" if of == "file" else "after")
    assert names(tmp_path) == ["out"]


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in "one", "two":
        with atomic_files.replacing_folder(tmp_path / "out") as part:
            (part / content).touch()
        assert names(tmp_path / "out") == [content]
    true, calls = os.replace, list[Any]()

    def replace(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        true(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="Input/output"), atomic_files.replacing_folder(tmp_path / "out") as part:
        (part / "three").touch()
    assert names(tmp_path / "out") == ["two"]
    assert names(tmp_path) == ["out"]
