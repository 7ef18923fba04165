"""The folder with valid runs and models that cases of mistakes change."""

import shutil
from pathlib import Path

import pytest

from nlp_transfer import fine_tune
from tests.helpers.mistakes import experiments, translation
from tests.helpers.mistakes.case import CSV
from tests.helpers.models import save_tiny
from tests.helpers.seq2seq_models import save_tiny_seq2seq


@pytest.fixture(scope="session")
def valid_folder(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, by name, and data; what the models predict does not matter."""
    folder = tmp_path_factory.mktemp("valid")
    for name, source in (("base", "bert"), ("distilbert", "distilbert")):
        shutil.copytree(tiny[source], folder / name)
    save_tiny("bert", folder / "short", max_position_embeddings=16)
    for family in ("marian", "nllb"):
        save_tiny_seq2seq(family, folder / family)
    experiments.save(folder / "classifier", ("negative", "positive"), str(tiny["bert"]))
    (folder / "train.csv").write_text(CSV)
    (folder / "train.en").write_text(translation.lines(translation.ENGLISH))
    (folder / "train.de").write_text(translation.lines(translation.GERMAN))
    (folder / "new.txt").write_text("a good film\n")
    run = tmp_path_factory.mktemp("translator")
    data = {"train": {side: str(folder / name) for side, name in translation.SIDES.items()}, "validation_share": 0.25}
    fine_tune(translation.VALID, model=str(folder / "base"), data=data, output_dir=str(run / "run"), with_report=False)
    shutil.copytree(run / "run/model", folder / "translator")
    return folder


@pytest.fixture
def folder(valid_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a copy of the valid one, to change."""
    monkeypatch.chdir(shutil.copytree(valid_folder, tmp_path, dirs_exist_ok=True))
    return tmp_path
