"""Models and datasets by hub id, from a hub on the loopback interface, with the real command in a child process."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.builders import document, run, sentiment_rows, write
from tests.faults.test_hub_answers import BODIES, with_headers
from tests.helpers.hub import Fault, environment, serve
from tests.helpers.hub.client import TOKEN

pytestmark = pytest.mark.hub

CHILD = """
import sys
from nlp_transfer import load_predictor
from nlp_transfer.cli import cli
from nlp_transfer.utils.errors import UserError

cli(["train", "run.yaml"], standalone_mode=False)
print(load_predictor("tester/tuned")(["a good film"])[0]["prediction"])
for name in ("tester/absent", "tester/reviews:absent"):
    try:
        if ":" in name:
            cli(["train", "run.yaml", "--data.train", name, "--output_dir", "other"], standalone_mode=False)
        else:
            load_predictor(name)
    except UserError as error:
        print("refused:", str(error).replace("\\n", " "))
"""


def test_models_and_data_by_hub_id(tmp_path: Path, tiny: dict[str, Path]) -> None:
    root = tmp_path / "hub"
    shutil.copytree(tiny["bert"], root / "models/tester/tiny")
    data = root / "datasets/tester/reviews"
    data.mkdir(parents=True)
    rows = sentiment_rows(60)
    write(data / "train.csv", rows[:40])
    write(data / "test.csv", rows[40:])
    data_id = "tester/reviews"
    plan = document(model="tester/tiny", data={"train": data_id, "test": data_id, "validation_share": 0.1}, output_dir="run")
    write(tmp_path / "run.yaml", plan)
    tuned = root / "models/tester/tuned"
    shutil.copytree(_fine_tuned(tmp_path, tiny, data), tuned)
    with serve(root) as (address, hub):
        around = environment(address, tmp_path / "cache")
        done = subprocess.run(
            [sys.executable, "-c", CHILD], cwd=tmp_path, env=around, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        revision = hub.commit("models", "tester/tiny")
        data_revision = hub.commit("datasets", "tester/reviews")
    lines = done.stdout.splitlines()
    assert lines[0] in ("negative", "positive")
    assert lines[1].startswith("refused: model: tester/absent cannot be opened")
    assert lines[2].startswith("refused: ")
    assert "tester/reviews:absent" in lines[2]
    resolved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert resolved["model"] == f"tester/tiny@{revision}"
    assert resolved["data"]["train"] == f"tester/reviews@{data_revision}"
    assert resolved["provenance"]["model_revision"] == revision
    assert resolved["provenance"]["files"]["hub:tester/reviews"] == data_revision
    assert json.loads((tmp_path / "run/result.json").read_text())["model"] == "tester/tiny"
    assert any("tester/tuned/resolve" in line and "nlp_transfer.json" in line for line in hub.asked)
    assert not (tmp_path / "other").exists()


def _fine_tuned(folder: Path, tiny: dict[str, Path], data: Path) -> Path:
    done = run(model=tiny["bert"], data={"train": data / "train.csv"}, training={"max_steps": 1}, output_dir=folder / "first")
    return Path(done.output_dir / "model")


BAD = """
import os, sys
from pathlib import Path
from nlp_transfer import load_predictor, push
from nlp_transfer.cli import cli
from nlp_transfer.utils.errors import UserError

def train(model, data):
    arguments = ["--model", model, "--data.train", data, "--task", "text_classification", "--training.max_steps", "1"]
    cli(["train", *arguments, "--output_dir", "out"], standalone_mode=False)

for name in sys.argv[1].split(","):
    for action in (
        lambda: train(f"bad/{name}", "train.csv"),
        lambda: load_predictor(f"bad/{name}"),
        lambda: train("tester/tiny", f"bad/{name}"),
        lambda: push("tuned", f"bad/{name}"),
    ):
        try:
            action()
            print("done")
        except UserError as error:
            print("refused:", str(error).replace("\\n", " "))
for name in ("other/card", "other/format"):
    try:
        train("tester/tiny", name)
        print("done")
    except UserError as error:
        print("refused:", str(error).replace("\\n", " "))
"""


def test_every_command_names_a_bad_answer_of_the_hub(tmp_path: Path, tiny: dict[str, Path]) -> None:
    """Login pages, empty answers, errors with status 200, compressed answers, hostile headers, datasets with hostile cards."""
    root = tmp_path / "hub"
    kinds = ("HTML", "nothing", "an error", "packed", "escape")
    answers = BODIES | {"escape": with_headers(X_Repo_Commit="../../../escaped")}
    data = tmp_path / "data"
    data.mkdir(parents=True)
    write(data / "train.csv", sentiment_rows(40))
    shutil.copytree(tiny["bert"], root / "models/tester/tiny")
    shutil.copytree(_fine_tuned(tmp_path, tiny, data), tmp_path / "tuned")
    shutil.copy(data / "train.csv", tmp_path / "train.csv")
    names = [kind.replace(" ", "-") for kind in kinds]
    for name in names:
        shutil.copytree(data, root / "datasets/bad" / name)
        shutil.copytree(tmp_path / "tuned", root / "models/bad" / name)
    for name, file in (("card", "train.csv"), ("format", "train.tar")):
        (root / "datasets/other" / name).mkdir(parents=True)
        shutil.copy(data / "train.csv", root / "datasets/other" / name / file)
    card = f"---\nconfigs:\n- config_name: default\n  data_files: file://{data}/train.csv\n---\n"
    (root / "datasets/other/card/README.md").write_text(card)
    with serve(root) as (address, hub):
        hub.user(TOKEN, "bad")
        hub.faults = [Fault("changed", f"bad/{name}($|/)", change=answers[kind]) for name, kind in zip(names, kinds, strict=True)]
        around = environment(address, tmp_path / "cache") | {"HF_TOKEN": TOKEN}
        done = subprocess.run(
            [sys.executable, "-c", BAD, ",".join(names)], cwd=tmp_path, env=around, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(("done", "refused:"))]
    assert len(lines) == 4 * len(names) + 2
    assert "data.train: cannot load 'other/card'" in lines[-2]
    assert f"file://{data}/train.csv" in lines[-2]
    assert "data.train: cannot load 'other/format'" in lines[-1]
    assert "webdataset" in lines[-1]
    for number, line in enumerate(lines[:-2]):
        assert line.startswith("refused: "), line
        assert f"bad/{names[number // 4]}" in line
        assert "\x1b" not in line
    assert TOKEN not in done.stdout + done.stderr
    assert not list(tmp_path.rglob("*escaped*"))
    assert not (tmp_path / "out").exists()
