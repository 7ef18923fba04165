"""A package outside the source tree, with the examples of docs/extensions.md: used by its short names, and opened again."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from nlp_transfer import UserError, fine_tune, load_predictor
from nlp_transfer.experiments.plan import make_plan
from nlp_transfer.run.resolve import resolve
from nlp_transfer.settings import extensions, registry
from nlp_transfer.strategies import strategy_from
from nlp_transfer.tasks import task_from

pytestmark = pytest.mark.process

TEXT = (Path(__file__).parents[2] / "docs" / "extensions.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(# (my_package/\w+\.py)\n.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
GROUPS = tomllib.loads(re.findall(r"^```toml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)[0])["project"]["entry-points"]
TEXTS = ["a good film", "an awful dull plot"]


def install(site: Path, name: str, groups: dict[str, dict[str, str]]) -> None:
    """Write the metadata of an installed package."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [line for group, names in groups.items() for line in (f"[{group}]", *(f"{key} = {names[key]}" for key in names))]
    (info / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The site-packages folder of a user, with the package of the examples."""
    folder = Path(sysconfig.get_path("purelib", f"{os.name}_user", {"userbase": str(tmp_path / "base")}))
    for source, path in EXAMPLES:
        module = folder / path
        module.parent.mkdir(parents=True, exist_ok=True)
        (module.parent / "__init__.py").touch()
        with module.open("a") as file:
            file.write(f"{source}\n\n")
    install(folder, "my-package", GROUPS)
    monkeypatch.setattr(extensions, "_site_folders", lambda: [str(folder)])
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.startswith("my_package")]:
        del sys.modules[name]


def settings(tiny: dict[str, Path], sentiment: dict[str, Path], output: Path, **more: Any) -> dict[str, Any]:
    training = {"max_steps": 2, "logging_steps": 1, "precision": "fp32"}
    return {
        "model": str(tiny["bert"]), "data": {"train": str(sentiment["train"]), "validation": str(sentiment["test"])},
        "output_dir": str(output), **more, "training": training | more.get("training", {}),
    }  # fmt: skip


def test_examples_have_at_most_20_lines() -> None:
    assert sorted(re.findall(r"class (\w+)|def (cost)", " ".join(source for source, _ in EXAMPLES))) == [
        ("", "cost"), ("Brier", ""), ("BrierScore", ""), ("DeepHead", ""), ("FirstWords", ""), ("HeadOnly", ""),
    ]  # fmt: skip
    assert [len(source.splitlines()) for source, _ in EXAMPLES if len(source.splitlines()) > 20] == []


def test_examples_run_and_open_in_a_new_process(
    site: Path, tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path
) -> None:
    metric = {"metrics": ["cost"], "best_metric": "cost"}
    plans = {
        "first": {"task": {"name": "first_words", "words": 3}, "strategy": "head_only", "training": metric},
        "head": {"task": {"name": "deep_head", "width": 6}},
        "loss": {"task": "brier", "strategy": [{"name": "head_only"}, "l2_sp"]},
    }
    runs = {name: fine_tune(**settings(tiny, sentiment, tmp_path / name, **plan)) for name, plan in plans.items()}
    config = yaml.safe_load((tmp_path / "first" / "config.yaml").read_text())
    assert (config["task"]["name"], config["task"]["words"]) == ("my_package.learning:FirstWords", 3)
    assert (config["strategy"]["name"], config["training"]["metrics"]) == ("my_package.adaptation:HeadOnly", ["cost"])
    assert 0 <= runs["first"].metrics["validation"]["cost"] <= 1
    assert resolve(config).strategy == strategy_from({"name": "head_only"})
    pretrained = load_file(tiny["bert"] / "model.safetensors")
    trained = load_file(tmp_path / "first" / "model" / "model.safetensors")
    encoder = [name for name in trained if name.removeprefix("bert.") in pretrained or name in pretrained]
    assert len(encoder) > 20
    assert all(torch.equal(trained[name], pretrained.get(name, pretrained.get(name.removeprefix("bert.")))) for name in encoder)
    predicted = {name: load_predictor(tmp_path / name) for name in runs}
    assert predicted["first"]("one two three good") == predicted["first"]("one two three bad"), "only three words are read"
    assert predicted["head"].model.classifier[0].out_features == 6
    losses = [json.loads(line) for line in (tmp_path / "loss" / "log.jsonl").read_text().splitlines()]
    assert losses[0]["loss"] == pytest.approx(0.5, abs=0.1), "the Brier score of two equal probabilities is 0.5"
    program = (
        "import json, sys; from nlp_transfer import load_predictor\n"
        f"print(json.dumps({{name: load_predictor(f'{tmp_path}/{{name}}')({TEXTS!r}) for name in {list(runs)!r}}}))"
    )
    environment = os.environ | {"PYTHONUSERBASE": str(tmp_path / "base"), "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    for name, rows in json.loads(done.stdout.splitlines()[-1]).items():
        for row, expected in zip(rows, predicted[name](TEXTS), strict=True):
            assert row["prediction"] == expected["prediction"]
            assert row["probability"] == pytest.approx(expected["probability"], abs=1e-5)


def test_missing_package_is_named(
    site: Path, tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine_tune(**settings(tiny, sentiment, tmp_path / "run", task="first_words", training={"metrics": ["cost"]}))
    forget()
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(site)])
    monkeypatch.setattr(extensions, "_site_folders", lambda: [])
    with pytest.raises(UserError) as refused:
        load_predictor(tmp_path / "run")
    assert [part for part in ("my_package.learning:FirstWords", "pip install") if part not in str(refused.value)] == []
    with pytest.raises(UserError) as refused:
        resolve(tmp_path / "run" / "config.yaml")
    assert [part for part in ("task.name", "training.metrics", "'cost'") if part not in str(refused.value)] == []


def test_names_are_listed_without_imports(site: Path) -> None:
    assert registry.names("strategy")[-1] == "head_only"
    assert registry.names("task")[-3:] == ["brier", "deep_head", "first_words"]
    assert "head_only" not in registry.names("task")
    with pytest.raises(UserError, match="did you mean 'head_only'"):
        strategy_from({"name": "head_onli"})
    strategy_from({"name": "full"})
    assert not [name for name in sys.modules if name.startswith("my_package")]


def test_entry_points_are_not_read_for_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extensions, "installed_packages", lambda: pytest.fail("metadata were read"))
    assert type(strategy_from({"name": "lora"})).__module__ == "nlp_transfer.strategies.lora"
    assert type(task_from({"name": "regression"})).__module__ == "nlp_transfer.tasks.regression"


def test_own_names_take_precedence(site: Path) -> None:
    install(site, "other", {"nlp_transfer.strategies": {"lora": "my_package.adaptation:HeadOnly"}})
    assert registry.name_of(type(strategy_from({"name": "lora"}))) == "lora"
    assert registry.names("strategy").count("lora") == 1


def test_name_of_two_packages_is_refused(site: Path) -> None:
    install(site, "other", {"nlp_transfer.strategies": {"head_only": "other_package:HeadOnly"}})
    with pytest.raises(UserError) as refused:
        strategy_from({"name": "head_only"})
    parts = ("head_only", "my-package (my_package.adaptation:HeadOnly)", "other (other_package:HeadOnly)")
    assert [part for part in parts if part not in str(refused.value)] == []
    assert strategy_from({"name": "my_package.adaptation:HeadOnly"}).traits.owns_parameters


def test_entry_point_of_another_kind_is_refused(site: Path) -> None:
    install(site, "other", {"nlp_transfer.strategies": {"odd": "my_package.learning:Brier", "lost": "my_package.gone:Class"}})
    for name, part in (("odd", "not a subclass of Strategy"), ("lost", "no module my_package.gone")):
        with pytest.raises(UserError, match=part):
            strategy_from({"name": name})


def renamed(folder: Path, name: str) -> None:
    """Let the record of a model name another task."""
    record = folder / "model" / "nlp_transfer.json"
    saved = json.loads(record.read_text())
    record.write_text(json.dumps(saved | {"settings": saved["settings"] | {"name": name}}))


def test_record_can_name_an_entry_point(site: Path, tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path) -> None:
    """It chooses among what the user has installed, and can name nothing else by it."""
    fine_tune(**settings(tiny, sentiment, tmp_path / "run", task="text_classification"))
    renamed(tmp_path / "run", "brier")
    assert registry.name_of(type(load_predictor(tmp_path / "run").task)) == "my_package.learning:Brier"
    for name in ("cost", "head_only"):
        renamed(tmp_path / "run", name)
        with pytest.raises(UserError, match=f"no task '{name}'"):
            load_predictor(tmp_path / "run")


def test_metadata_in_a_downloaded_folder_are_ignored(
    tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine_tune(**settings(tiny, sentiment, tmp_path / "run", task="text_classification"))
    (tmp_path / "run" / "my_package_download.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w').close()\n")
    install(tmp_path / "run", "download", {"nlp_transfer.tasks": {"downloaded": "my_package_download:Task"}})
    monkeypatch.chdir(tmp_path / "run")
    monkeypatch.syspath_prepend(str(tmp_path / "run"))
    for name in ("downloaded", "my_package_download:Task"):
        renamed(tmp_path / "run", name)
        with pytest.raises(UserError, match=name):
            load_predictor(tmp_path / "run")
    assert not (tmp_path / "was_run").exists()


PLAN: dict[str, Any] = {"model": "m", "data": {"train": "t.csv"}, "task": "text_classification", "output_dir": "o"}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("costs", ["there is no metric 'costs'", "did you mean 'cost'", "package.module:function"]),
        ("my_package.scoring:gone", ["my_package.scoring has no gone"]),
        ("my_package.gone:cost", ["no module my_package.gone"]),
        ("my_package.learning:torch", ["cannot be called"]),
        ("os:system", ["part of Python"]),
        ("subprocess:run", ["part of Python"]),
        ("nlp_transfer.utils.environment:os.system", ["part of Python"]),
    ],
)
def test_unknown_metric_is_refused(site: Path, name: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        resolve(PLAN, training={"metrics": [name]})
    assert [part for part in ("training.metrics", *parts) if part not in str(refused.value)] == []


def test_compare_uses_metrics_of_the_task(site: Path) -> None:
    training = {"metrics": ["cost"], "best_metric": "cost"}
    assert resolve(PLAN, training=training).user_metrics
    with pytest.raises(UserError, match=r"training\.best_metric: found 'cost'"):
        make_plan(PLAN | {"training": training}, ["full", "lora"], [0], None, None)
    plan, _ = make_plan(PLAN | {"training": {"metrics": ["cost"]}}, ["full", "head_only"], [0], None, None)
    assert plan.base["training"]["metrics"] == ["cost"]


def test_metrics_are_loaded_by_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "scores_in_a_file.py"
    file.write_text("def cost(predictions, references):\n    return {'cost': 0.0}\n")
    monkeypatch.setattr(extensions, "_CODE", {})
    monkeypatch.syspath_prepend(str(tmp_path))
    extensions.load_code([file])
    try:
        run = resolve(PLAN, training={"metrics": ["scores_in_a_file:cost"]})
        assert run.user_metrics
        assert extensions.files_for_child([run.config.training.model_dump()]) == [str(file.resolve())]
    finally:
        del sys.modules["scores_in_a_file"]
