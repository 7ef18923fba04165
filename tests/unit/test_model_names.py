"""Names of models: what is a path, what is requested from the hub, and what is printed if the hub does not respond."""

import logging
from pathlib import Path

import pytest

from nlp_transfer import load_predictor
from nlp_transfer.data.sources import find_model, hub_model
from nlp_transfer.hub.client import asking
from nlp_transfer.utils.console import say_once
from tests.builders import refused

RETRIES = (
    "'[Errno -2] Name or service not known' thrown while requesting HEAD https://huggingface.co/a/b/resolve/main/config.json",
    "Retrying in 1s [Retry 1/5].",
)


@pytest.mark.parametrize("name", ["runs/reviews", "experiments/a", "experiments/reviws"])
def test_missing_runs_are_not_requested(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typing error, or a command in another folder, loads no stranger's model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments/reviews").mkdir(parents=True)
    (tmp_path / "experiments/reviews/config.yaml").touch()
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("the hub was asked"))
    for load in (find_model, load_predictor):
        with refused("no folder", name, str(tmp_path), "@main") as error:
            load(name)
    assert ("'reviews'" in str(error.value)) == (name == "experiments/reviws")


def test_other_names_are_those_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "google-bert").mkdir()
    for name in ("google-bert/bert-base-uncased", "gpt2", "runs/reviews@main"):
        match = hub_model(name)
        assert match is not None
        assert match["id"] == name.partition("@")[0]


def test_retries_are_one_line(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    say_once.cache_clear()
    logger = logging.getLogger("huggingface_hub.utils._http")
    caplog.set_level(logging.WARNING, logger.name)  # the fuzzing helpers silence the hub in the whole process
    with asking("model: a/b"):
        for line in RETRIES * 3:
            logger.warning(line)
        logger.warning("something else")
    assert capfd.readouterr().err.count("trying again") == 1
    logger.warning(RETRIES[1])
    assert [record.getMessage() for record in caplog.records if record.name == logger.name][-1:] == [RETRIES[1]]
