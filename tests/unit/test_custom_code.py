"""Tasks and strategies of a user's own: found again by their names, from allowed places alone, and saved so that they load."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModel

from nlp_transfer import fine_tune, load_predictor
from nlp_transfer.cli import cli
from nlp_transfer.inference.model_evaluation import evaluate_model
from nlp_transfer.run.folder import LOCK
from nlp_transfer.run.resolve import resolve
from nlp_transfer.run.trial_save import PREFIX
from nlp_transfer.security.file_locks import LOCKED
from nlp_transfer.settings import extensions, registry
from nlp_transfer.strategies import strategy_from
from nlp_transfer.tasks import task_from, task_name
from nlp_transfer.tasks.text_classification import TextClassification
from tests.builders import refused
from tests.helpers import custom_tasks
from tests.helpers.processes import launch_pair
from tests.helpers.strategies import document, files

pytestmark = pytest.mark.process

FILE = Path(custom_tasks.__file__)
MODULE = custom_tasks.__name__
TEXTS = ["a good film", "an awful dull plot"]


@pytest.mark.parametrize("given", [f"{MODULE}:Metric", custom_tasks.Metric, {"name": custom_tasks.Metric}, custom_tasks.Metric()])
def test_a_task_in_every_form_is_recorded_by_name(given: Any, sentiment: dict[str, Path], tmp_path: Path, train: Any) -> None:
    strategy = [custom_tasks.Slow(factor=0.25) if callable(given) else {"name": custom_tasks.Slow, "factor": 0.25}, "l2_sp"]
    run = train(task=given, strategy=strategy)
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["task"]["name"] == f"{MODULE}:Metric"
    assert (config["strategy"][0]["name"], config["strategy"][0]["factor"]) == (f"{MODULE}:Slow", 0.25)
    assert json.loads((tmp_path / "run" / "model" / "nlp_transfer.json").read_text())["task"] == f"{MODULE}:Metric"
    figures = evaluate_model(str(tmp_path / "run"), {"data": {"test": str(sentiment["test"])}}, None, "fp32")[0]
    assert {name: figures[name] for name in ("errors", "accuracy")} == {
        name: run.metrics["test"][name] for name in ("errors", "accuracy")
    }
    assert figures["errors"] == round((1 - figures["accuracy"]) * 40)
    assert type(load_predictor(tmp_path / "run").task) is custom_tasks.Metric
    assert type(resolve(tmp_path / "run" / "config.yaml").task) is custom_tasks.Metric


def test_a_task_of_another_kind_is_one_class(train: Any, tmp_path: Path) -> None:
    rows = pd.DataFrame({"text": [f"{text} {i}" for i in range(10) for text in TEXTS], "stars": [1 + i % 5 for i in range(20)]})
    task = {"name": custom_tasks.Stars, "label": "stars"}
    data = {"train": rows, "test": rows, "validation_share": 0.2}
    run = train(task=task, data=data)
    assert {"mae", "rmse", "loss"} <= set(run.metrics["validation"])
    scored = pq.read_table(tmp_path / "run" / "predictions" / "test.parquet").to_pydict()
    assert scored["reference"] == rows["stars"].tolist()
    error = np.abs(np.array(scored["prediction"]) - scored["reference"]).mean()
    assert run.metrics["test"]["mae"] == pytest.approx(error)
    assert [row["prediction"] for row in run.predictor()(rows["text"].tolist())] == scored["prediction"]
    assert "predict(" in (tmp_path / "run" / "model" / "README.md").read_text()
    bad = rows.assign(stars=["9", *map(str, rows["stars"][1:])])
    with refused("'9'"):
        train(task=task, data=data | {"train": bad}, output_dir=tmp_path / "bad")


@pytest.mark.parametrize("task", ["DeepHead", "OwnModule", "SameShapes", "Hooked"])
def test_a_head_that_no_auto_class_knows_is_saved_and_opened(
    task: str, sentiment: dict[str, Path], tmp_path: Path, train: Any
) -> None:
    name = f"{MODULE}:{task}"
    run = train(task=name)
    assert run.result["plain"] is False
    predictor = load_predictor(tmp_path / "run")
    texts = [line.split(",")[0] for line in sentiment["test"].read_text().splitlines()[1:]]
    scores = predictor(texts, probabilities=True)
    found = [[row["probability:negative"], row["probability:positive"]] for row in scores]
    np.testing.assert_allclose(found, run.predictions["test"]["scores"], atol=1e-6)
    before = predictor.model.state_dict()
    assert all(torch.equal(before[key], value) for key, value in load_predictor(tmp_path / "run").model.state_dict().items())
    program = f"from transformers import AutoConfig; AutoConfig.from_pretrained({str(tmp_path / 'run' / 'model')!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "nlp_transfer_task_model" in done.stderr
    assert done.returncode == 1
    assert f"`{name}`" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_a_custom_regression_predicts_in_the_columns_units(tiny: dict[str, Path], tmp_path: Path) -> None:
    source = files(tmp_path / "data")
    plan = document("full", "regression", tiny["bert"], source, tmp_path / "run", tmp_path)
    run = fine_tune(plan | {"task": {"name": f"{MODULE}:DeepRegression", "label": "score"}})
    texts = [line.split(",")[0] for line in Path(source["test"]).read_text().splitlines()[1:]]
    predicted = [row["prediction"] for row in load_predictor(tmp_path / "run")(texts)]
    np.testing.assert_allclose(predicted, run.predictions["test"]["prediction"], atol=1e-4)


def test_a_strategy_is_given_as_its_class() -> None:
    plan = {"model": "m", "data": {"train": "t"}, "task": "text_classification", "output_dir": "o"}
    assert resolve(plan, strategy=custom_tasks.Slow).strategy.document()["name"] == f"{MODULE}:Slow"
    assert [part.document()["name"] for part in resolve(plan, strategy=[custom_tasks.Slow, "l2_sp"]).strategy.parts] == [
        f"{MODULE}:Slow", "l2_sp",
    ]  # fmt: skip
    with refused("strategy", "teacher"):
        resolve(plan, strategy=registry.load("strategy", "distill"))


@pytest.mark.parametrize("strategy", ["features", "prototypes", {"name": "distill", "student_layers": 1}])
def test_a_strategy_keeps_the_model_that_a_task_builds(
    strategy: Any, sentiment: dict[str, Path], tmp_path: Path, train: Any
) -> None:
    task = "Hooked" if strategy == "prototypes" else "DeepHead"
    if isinstance(strategy, dict):
        strategy |= {"teacher": str(tmp_path / "teacher")}
        train(output_dir=tmp_path / "teacher")
    run = train(task=f"{MODULE}:{task}", strategy=strategy)
    model = load_predictor(tmp_path / "run").model
    assert type(model).__name__ == "BertForSequenceClassification"
    assert len(model.bert.encoder.layer) == (1 if isinstance(strategy, dict) else 2)
    scores = load_predictor(tmp_path / "run")([line.split(",")[0] for line in sentiment["test"].read_text().splitlines()[1:]])
    assert [row["prediction"] for row in scores] == run.predictor().task.scorer.typed(run.predictions["test"]["prediction"])


@pytest.mark.parametrize(
    ("task", "strategy", "parts"),
    [
        ("BareTensor", "full", [f"{MODULE}:BareTensor", "logits", "SequenceClassifierOutput"]),
        ("NoModel", "full", ["build_model", "3 (int)"]),
        ("OwnModule", "lora", ["Module", "encoder"]),
        ("DeepHead", "few_shot", ["task.head", "few_shot", "built by the task", "allowed: "]),
    ],
)
def test_a_model_of_a_users_own_class_is_named_in_messages(task: str, strategy: str, parts: list[str], train: Any) -> None:
    with refused(*parts):
        train(task=f"{MODULE}:{task}", strategy=strategy)


def test_a_class_that_changed_after_saving_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Any) -> None:
    train(task=custom_tasks.Hooked)
    load_predictor(tmp_path / "run")
    monkeypatch.setattr(custom_tasks.Hooked, "build_model", TextClassification.build_model)
    with refused("custom_tasks:Hooked", "logits"):
        load_predictor(tmp_path / "run")


@pytest.mark.parametrize(("task", "why"), [("Forgetful", "size mismatch"), ("Unfaithful", "differ by 1.0")])
@pytest.mark.parametrize("strategy", ["full", "lora"])
def test_a_head_that_cannot_be_read_again_is_refused(task: str, why: str, strategy: str, tmp_path: Path, train: Any) -> None:
    with refused(f"custom_tasks:{task}", "nothing was trained", why, "build_model"):
        train(task=f"{MODULE}:{task}", strategy=strategy, output_dir=tmp_path / "deep" / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_class_inside_a_function_is_refused_before_training(tmp_path: Path, train: Any) -> None:
    class Inner(TextClassification):
        pass

    with refused("inside a function"):
        train(task=Inner())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("strategy", ["full", "lora", "distill", "multitask", "features", "bitfit", "partial"])
def test_the_trial_changes_nothing(strategy: str, tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = files(tmp_path / "data")
    plan = document(strategy, "single", tiny["bert"], source, tmp_path / "run", tmp_path / "shared")
    fine_tune(plan)
    for name in ("check_saving", "check_saving_further"):
        monkeypatch.setattr(sys.modules["nlp_transfer.run.stages"], name, lambda *_: None)
    fine_tune(plan | {"output_dir": str(tmp_path / "without")})
    names = ["model/model.safetensors", "log.jsonl"]
    one, two = (read(tmp_path / run / names[1]) for run in ("run", "without"))
    assert one == two
    weights = [(tmp_path / run / names[0]).read_bytes() for run in ("run", "without")]
    assert weights[0] == weights[1]


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, without times."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if "second" not in key and key != "time"} for line in lines]


def test_what_a_killed_trial_left_is_removed_at_the_next_start(tmp_path: Path, train: Any) -> None:
    stale = tmp_path / "run" / f"{PREFIX}abc" / "model"
    stale.mkdir(parents=True)
    (stale / "model.safetensors").write_bytes(b"half")
    (stale.parent / LOCK).write_bytes(LOCKED)  # by this a folder of a trial is known
    train()
    assert not [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


@pytest.fixture
def marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module that writes a file when it is imported; it is the current folder, and the first one searched."""
    folder = tmp_path / "download"
    folder.mkdir()
    (folder / "stranger.py").write_text(
        f"open({str(tmp_path / 'was_run')!r}, 'w').close()\n"
        "from nlp_transfer.tasks.text_classification import TextClassification\nclass Task(TextClassification): pass\n"
    )
    package = folder / "stranger_package"
    package.mkdir()
    (package / "tasks.py").write_text((folder / "stranger.py").read_text())
    info = folder / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: stranger\nVersion: 1.0\n")
    (info / "top_level.txt").write_text("stranger\nstranger_package\n")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in [name for name in sys.modules if name.startswith("stranger")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "name",
    ["stranger:Task", "stranger_package.tasks:Task", "this:s", "xml.dom.minidom:Text", "os:system", "torch:Tensor", "a b:C"],
)
def test_a_record_imports_nothing_that_is_not_installed(name: str, marked: Path, tmp_path: Path, train: Any) -> None:
    already = "this" in sys.modules
    run = tmp_path / "run"
    train()
    record = run / "model" / "nlp_transfer.json"
    saved = json.loads(record.read_text())
    record.write_text(json.dumps(saved | {"settings": saved["settings"] | {"name": name}}))
    for opened in (lambda: load_predictor(run), lambda: strategy_from({"name": name})):
        with refused(name):
            opened()
    assert not (tmp_path / "was_run").exists()
    assert ("this" in sys.modules) == already


def test_code_that_was_named_is_imported(marked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extensions, "_CODE", {})
    extensions.load_code([marked / "stranger.py"])
    assert (tmp_path / "was_run").exists()
    task = task_from({"name": "stranger:Task", "text": "t"})
    assert (task_name(task), task.inputs) == ("stranger:Task", ["t"])
    assert extensions.files_for_child({"task": task.document()}) == [str((marked / "stranger.py").resolve())]


def editable(monkeypatch: pytest.MonkeyPatch, project: Path, name: str, packages: str | None = None) -> None:
    """Record a project as installed with `pip install -e`; `packages` are those that its distribution names."""
    info = project.parent / "site-packages" / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")
    (info / "direct_url.json").write_text(json.dumps({"url": project.as_uri(), "dir_info": {"editable": True}}))
    if packages is not None:
        (info / "top_level.txt").write_text(packages)
    monkeypatch.setattr(extensions, "_site_folders", lambda: [str(info.parent)])


OWN = "from nlp_transfer.tasks.text_classification import TextClassification\nclass Own(TextClassification): pass\n"


@pytest.mark.parametrize("layout", ["src", "lib"])
def test_an_editable_install_is_found_but_not_folders_inside(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, name = tmp_path / "project", f"edited_{layout}"
    (project / layout / name).mkdir(parents=True)
    (project / layout / name / "__init__.py").write_text("")
    (project / layout / name / "tasks.py").write_text(OWN)
    (project / "runs").mkdir()
    (project / "runs" / "stranger_inside.py").write_text(OWN)
    editable(monkeypatch, project, name)
    monkeypatch.chdir(project / "runs")
    monkeypatch.syspath_prepend(str(project / layout))
    monkeypatch.syspath_prepend(str(project / "runs"))
    assert registry.load("task", f"{name}.tasks:Own").__module__ == f"{name}.tasks"
    with refused("not installed"):
        registry.load("task", "stranger_inside:Own")


@pytest.mark.parametrize("project", ["ed_project", "ed-project"])
@pytest.mark.parametrize(
    ("file", "packages", "allowed"),
    [
        ("ed_project/sub/evil.py", "ed_project", True),
        ("ed_project/sub/evil.py", None, True),
        ("ed_module.py", "ed_project\ned_module", True),
        ("ed_module.py", "ed_project", False),
        ("ed_models/stranger/evil.py", "ed_project", False),
        ("ed_models/stranger/evil.py", None, False),
        ("ed_models/bare/evil.py", "ed_project\ned_models", False),  # its folders have no __init__.py
        ("ed_project/bare/evil.py", "ed_project", False),
    ],
)
def test_editable_projects_import_only_their_named_packages(
    project: str, file: str, packages: str | None, allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    path = root / file
    path.parent.mkdir(parents=True)
    path.write_text(f"open({str(tmp_path / 'was_run')!r}, 'w').close()\n{OWN}")
    for folder in [
        folder for folder in path.relative_to(root).parents if folder.name and folder.name not in ("bare", "ed_models")
    ]:
        (root / folder / "__init__.py").write_text("")
    editable(monkeypatch, root, project, packages)
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(str(root))
    name = ".".join(Path(file).with_suffix("").parts)
    try:
        if allowed:
            assert registry.load("task", f"{name}:Own").__module__ == name
        else:
            with refused("not installed"):
                registry.load("task", f"{name}:Own")
        assert (tmp_path / "was_run").exists() == allowed
    finally:
        for module in [module for module in sys.modules if module.startswith("ed_")]:
            del sys.modules[module]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (f"{MODULE}:Nothing", ["has no class Nothing", "Metric"]),
        (f"{MODULE}:Slow", ["not a subclass of Task"]),
        ("nlp_transfer.tasks:Task", ["does not define", "encode"]),
        ("__main__:Gone", ["script", "--code", "load_predictor"]),
        ("no_such_module:Task", ["no module no_such_module", "--code no_such_module.py", "pip install"]),
        ("f:g.<locals>.C", ["inside a function"]),
        ("text_clasification", ["did you mean 'text_classification'", "multi_label", "package.module:Class"]),
    ],
)
def test_a_name_that_leads_nowhere_is_explained(name: str, parts: list[str]) -> None:
    with refused("task.name", *parts):
        task_from({"name": name})


@pytest.mark.parametrize(
    ("file", "content", "parts"),
    [
        ("gone.py", None, ["no file"]),
        ("torch.py", "", ["another module"]),
        ("json.py", "", ["another module"]),
        ("my-tasks.py", "", ["my-tasks.py"]),
        ("tasks.txt", "", ["tasks.txt"]),
        ("broken_one.py", "a = 1\nb = (\n", ["SyntaxError", "line 2"]),
        ("broken_three.py", "import sys\nsys.exit(3)\n", ["SystemExit", "line 2"]),
        ("broken_two.py", "a = 1\n\nb = a / 0\n", ["ZeroDivisionError", "line 3"]),
    ],
)
def test_a_file_of_code_that_cannot_be_used_is_explained(
    file: str, content: str | None, parts: list[str], tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / file).write_text(content)
    with refused("--code", *parts):
        extensions.load_code([tmp_path / file])
    assert Path(file).stem not in sys.modules or file in ("torch.py", "json.py")


def test_a_class_of_a_script_needs_code_or_the_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Any) -> None:
    class Local(TextClassification):
        pass

    Local.__module__, Local.__qualname__ = "__main__", "ClassOfAScript"
    monkeypatch.setitem(sys.modules["__main__"].__dict__, "ClassOfAScript", Local)
    train(task=Local())
    expected = load_predictor(tmp_path / "run")(TEXTS)
    with refused("other processes cannot import"):
        extensions.files_for_child([Local().document()])
    monkeypatch.delitem(sys.modules["__main__"].__dict__, "ClassOfAScript")
    with refused("a class of the training script"):
        load_predictor(tmp_path / "run")
    assert load_predictor(tmp_path / "run", task=Local)(TEXTS) == expected
    monkeypatch.setattr(extensions, "_CODE", {})
    script = tmp_path / "the_script.py"
    script.write_text(
        "from nlp_transfer.tasks.text_classification import TextClassification\nclass ClassOfAScript(TextClassification): pass\n"
    )
    extensions.load_code([script])
    assert load_predictor(tmp_path / "run")(TEXTS) == expected


def test_commands_in_new_processes_find_code_that_is_named(sentiment: dict[str, Path], tmp_path: Path, plan: Any) -> None:
    """`predict` is this module's only new process; its worker is a third one."""
    written = plan(task={"name": "custom_tasks:DeepHead", "width": 6})
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(written))
    code = ["--code", str(FILE)]
    cli.main(["train", str(tmp_path / "plan.yaml"), *code], standalone_mode=False)
    command = ["predict", str(tmp_path / "run"), "--input", str(sentiment["test"]), "--output", str(tmp_path / "out.csv"), *code]
    processes = min(2, len(os.sched_getaffinity(0)))
    done = subprocess.run(
        [sys.executable, "-m", "nlp_transfer", *command, "--processes", str(processes)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = [line.split(",")[2] for line in (tmp_path / "out.csv").read_text().splitlines()[1:]]
    texts = [line.split(",")[0] for line in sentiment["test"].read_text().splitlines()[1:]]
    assert written == [row["prediction"] for row in load_predictor(tmp_path / "run")(texts)]


def test_a_saved_configuration_that_is_no_model_is_refused(tmp_path: Path, train: Any) -> None:
    train(task=f"{MODULE}:OwnModule")
    path = tmp_path / "run" / "model" / "built" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"vocab_size": 2**30}))
    with refused("describes a model of"):
        load_predictor(tmp_path / "run")
    path.write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Evil"}, "model_type": "evil"}))
    with refused("auto_map"):
        load_predictor(tmp_path / "run")


def test_the_example_of_the_documentation_runs(
    sentiment: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: Any
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "extensions.md").read_text(encoding="utf-8")
    example = "\n".join(
        block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "my_package/learning.py" in block
    )
    commands = next(block for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if "my_tasks:DeepHead" in block)
    (tmp_path / "my_tasks.py").write_text(example)
    written = plan(output_dir=tmp_path / "runs" / "reviews")
    (tmp_path / "reviews.yaml").write_text(yaml.safe_dump(written))
    (tmp_path / "heldout.csv").write_text(sentiment["test"].read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(extensions, "_CODE", {})
    for line in commands.splitlines():
        cli.main(line.split()[1:], standalone_mode=False)
    assert load_predictor("runs/reviews").model.classifier[0].out_features == 64
    del sys.modules["my_tasks"]


def test_a_comparison_finds_code_that_is_named(tmp_path: Path, plan: Any) -> None:
    written = plan(task="custom_tasks:Metric")
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(written))
    strategies = ["--strategies", "custom_tasks:Slow", "{name: custom_tasks:Slow, factor: 2}", "--seeds", "0"]
    cli.main(["compare", str(tmp_path / "plan.yaml"), *strategies, "--code", str(FILE)], standalone_mode=False)
    rows = json.loads((tmp_path / "run-comparison" / "comparison.json").read_text())
    assert "custom_tasks:Slow" in json.dumps(rows)
    results = sorted((tmp_path / "run-comparison" / "runs").glob("*/result.json"))
    assert [json.loads(path.read_text())["task"]["name"] for path in results] == ["custom_tasks:Metric"] * 2


def test_two_processes_train_custom_tasks_and_agree(tiny: dict[str, Path], tmp_path: Path, plan: Any) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(plan()))
    launch_pair("tests.helpers.children.custom_jobs", tmp_path / "plan.json")
    found = [json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0] == found[1]
    assert found[0]["rank"] == 0.0
    assert "logits of the saved model differ by 1.0" in found[0]["refused"]
    assert not (tmp_path / "other").exists()
    saved = load_predictor(tmp_path / "own").model.encoder.state_dict()
    base = AutoModel.from_pretrained(tiny["bert"]).state_dict()
    changed = {name for name, value in base.items() if not torch.equal(value, saved[name])}
    assert changed == {name for name in base if "pooler" not in name}
