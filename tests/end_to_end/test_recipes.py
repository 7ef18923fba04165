"""Every recipe opens with its command, the figure to expect and the time, and runs (here on a tiny model and few rows)."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from nlp_transfer import RunConfig, recipe
from nlp_transfer.run.resolve import resolve
from nlp_transfer.tasks import task_from
from tests.builders import sentiment_rows, write
from tests.helpers.entities import sentences
from tests.helpers.questions import questions, squad

pytestmark = pytest.mark.model

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.py"))


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_recipes() -> None:
    assert {path.stem for path in RECIPES} >= {
        "bbc_news", "movie_reviews", "question_answering", "summarization", "text_classification", "tatoeba_en_es",
        "token_classification", "translation",
    }  # fmt: skip


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_opens_with_command_figure_and_time(path: Path) -> None:
    text = load(path).__doc__ or ""
    assert f"python recipes/{path.name}" in text
    figures = {
        "translation": r"BLEU of about \d\d?", "summarization": r"ROUGE-1 of about \d\d?",
        "question_answering": r"F1 of about \d\d", "token_classification": r"F1 of about 0\.\d\d",
    }  # fmt: skip
    figure = figures.get(load(path).config.task["name"], r"accuracy of about 0\.\d\d")
    assert re.search(rf"Expect .*{figure}", text), "the figure to expect"
    assert re.search(r"about \d+ minutes", text), "the time it takes"
    assert f"recipes/{path.name}" in (ROOT / "README.md").read_text(), "the README lists it"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs(path: Path, tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path) -> None:
    config = load(path).config
    assert isinstance(config, RunConfig)
    strategy = resolve(config).strategy
    overrides: dict[str, object] = {
        "model": tiny["bert"], "data.validation": "null", "data.columns": "null", "task.max_length": 32,
        "training.max_steps": 2, "output_dir": tmp_path / "run",
    }  # fmt: skip
    task = task_from(config.task)
    if task.traits.generates:
        names = (*task.inputs, *task.targets)
        rows = [(text, text[::-1]) for text, _ in sentiment_rows(40)]
        overrides |= {"data.train": write(tmp_path / "pairs.csv", rows, names), "data.quoting": "minimal"}
        overrides |= {"data.validation_share": 0.2, "data.test": "null", "data.test_share": 0.2}
    elif config.task["name"] == "question_answering":
        data = write(tmp_path / "train.json", squad(questions(40)))
        overrides |= {
            "data.train": data,
            "data.test": data,
            "data.validation_share": 0.2,
            "task.stride": 8,
            "data.group": "context",
        }
    elif config.task["name"] == "token_classification":
        rows = [{config.task[name]: row[name] for name in ("tokens", "tags")} for row in sentences(40)]
        overrides |= {"data.train": write(tmp_path / "words.jsonl", rows), "data.test": "null"}
    else:
        overrides |= {"data.train": sentiment["train"], "task.text": "text"}
    run = recipe(config, [part for name, value in overrides.items() for part in (f"--{name}", str(value))])
    assert run.result["strategy"] == strategy.document()
    assert run.result["train"]["steps"] == 2
    assert (run.output_dir / "model/config.json").is_file()
