"""Some hundreds of hostile inputs, the same in every run; a hundred thousand others: scripts/endurance/fuzz_readers.py."""

import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from nlp_transfer.utils.errors import Problems, UserError
from tests.helpers.fuzz import adapter_loads, adapters, files, hub, output, parquet, settings, tokenizers, wheels
from tests.helpers.fuzz.cases import Case, Make, Place, ViolationError, attempt

pytestmark = pytest.mark.process

PARTS: dict[str, tuple[Make, int]] = {
    "files": (files.make, 500), "parquet": (parquet.make, 300), "wheels": (wheels.make, 250), "settings": (settings.make, 300),
    "hub": (hub.make, 300), "adapters": (adapters.make, 400), "adapter_loads": (adapter_loads.make, 60),
    "tokenizers": (tokenizers.make, 150),
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    before = os.getcwd()
    yield Place(tmp_path / "place")
    os.chdir(before)


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")  # Python's own about data in unicode_escape
@pytest.mark.parametrize("part", PARTS)
def test_input_is_read_right_or_refused(part: str, place: Place) -> None:
    make, count = PARTS[part]
    seen: Counter[str] = Counter()
    for i in range(count):
        kind, outcome = place.try_one(make, f"{part}:test:{i}")
        seen.update([kind, outcome])
    assert len(seen) > 6, "inputs of few kinds"
    assert min(seen["returned"], seen["refused"]) > count // 20, "all of them returned, or none"


def test_no_secret_is_printed_and_all_else_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """However it is encoded, and wherever one write ends and the next begins."""
    value = "wört/of a+service-42"
    monkeypatch.setenv("SERVICE_TOKEN", value)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    seen = Counter(output.check(f"test:{i}", value) for i in range(600))
    assert set(seen) == {*output.ENCODINGS, "wrapped", "harmless"}


@pytest.mark.parametrize(
    ("make", "said"), [(files.large, "returned"), (files.too_large, "refused")], ids=["just fits", "does not"]
)
def test_large_cells(make: Make, said: str, place: Place) -> None:
    assert place.try_one(make, "1")[1] == said


def raising(error: BaseException) -> Case:
    def run() -> None:
        raise error

    return Case("raises", run, ("a.csv",))


def test_what_counts_as_a_violation(place: Place) -> None:
    """The net catches what it is there for."""
    assert attempt(raising(UserError("a.csv: is broken"))) == "refused"
    for error in (
        KeyError("a.csv"),
        UserError("is broken"),
        UserError("a.csv" + "x" * 100_000, Problems()),
        ViolationError("wrong"),
    ):
        with pytest.raises(ViolationError):
            attempt(raising(error))

    def endless() -> None:
        while True:
            pass

    def waiting() -> None:
        os.mkfifo("pipe")
        Path("pipe").read_text()

    for hang, limits in ((endless, (0.05, 30.0)), (waiting, (30.0, 0.05))):
        with pytest.raises(ViolationError, match="seconds"):
            attempt(Case("hangs", hang, ()), *limits)
    Path("pipe").unlink()

    def escaping(rng: random.Random, folder: Path) -> Case:
        return Case("escapes", lambda: (folder.parent / "escaped").write_text("x"), ())

    with pytest.raises(ViolationError, match="escapes: written outside"):
        place.try_one(escaping, "")
