"""Models and data by hub id, against a hub on the loopback interface, through the real command in one process of its own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.conftest import sentiment_rows, write_csv
from tests.hub import environment, serve

CHILD = """
import sys
from nlp_transfer import load_predictor
from nlp_transfer.cli import cli
from nlp_transfer.errors import UserError

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
    write_csv(data / "train.csv", rows[:40])
    write_csv(data / "test.csv", rows[40:])
    document = {
        "model": "tester/tiny",
        "data": {"train": "tester/reviews", "test": "tester/reviews"},
        "task": "text_classification",
        "training": {"max_steps": 2},
        "output_dir": "run",
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
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
    from nlp_transfer import fine_tune

    run = fine_tune(
        model=str(tiny["bert"]),
        data={"train": str(data / "train.csv"), "validation_share": 0},
        task="text_classification",
        training={"max_steps": 1},
        output_dir=str(folder / "first"),
    )
    return run.output_dir / "model"
