"""The real server process: ended under load, every request that it accepted is answered; and the server of an export."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nlp_transfer import load_predictor
from nlp_transfer.export.exporter import export_model
from tests.builders import columns, command, edit, run, sentiment_rows, write
from tests.helpers.predictions import near

pytestmark = pytest.mark.process
ROOT = Path(__file__).parents[2]
SECRET = "a private text"


@pytest.fixture(scope="module")
def trained(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with a validation split, with numbers as labels."""
    folder = tmp_path_factory.mktemp("served")
    table = write(folder / "train.csv", [(text, int(label == "positive")) for text, label in sentiment_rows(80)])
    data = {"train": table, "validation_share": 0.25}
    output: Path = run(model=tiny["bert"], data=data, output_dir=folder / "run").output_dir
    return output


@contextmanager
def process(*arguments: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A Python process, which is killed if it is still running at the end."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("env", {})
    started = subprocess.Popen(
        [sys.executable, *map(str, arguments)], stderr=subprocess.PIPE, text=True, env=environment, **options
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def post(address: str, body: Any) -> tuple[int, Any]:
    """Send a request to `/predict`; return the status and the response."""
    request = urllib.request.Request(f"{address}/predict", json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_sigterm_under_load_loses_no_request(trained: Path) -> None:
    texts = columns(80, "text")["text"]
    expected = dict(zip(texts, load_predictor(trained)(texts), strict=True))
    answered, problems = [0] * 8, []
    with process("-m", "nlp_transfer", "serve", trained, "--port", 0) as server:
        assert server.stderr is not None
        found = next(found for line in server.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        address = found.group()
        assert post(address, {"texts": [SECRET, ""]})[0] == 422

        def ask(number: int) -> None:
            for i in range(10_000):
                chosen = [texts[(number * 7 + i + j) % 80] for j in range(1 + i % 3)]
                try:
                    status, response = post(address, {"texts": chosen})
                except urllib.error.URLError as error:
                    if not isinstance(error.reason, ConnectionRefusedError):
                        problems.append(repr(error))
                    return
                if status != 200 or not near(response["predictions"], [expected[text] for text in chosen]):
                    problems.append(str(response))
                answered[number] += 1

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        server.send_signal(signal.SIGTERM)
        messages = server.communicate(timeout=60)[1]
        for thread in threads:
            thread.join()
    assert problems == []
    assert server.returncode == 0
    assert sum(answered) > 8
    assert f"{sum(answered):,} requests" in messages
    assert SECRET not in messages
    assert not any(text in messages for text in texts)


def test_export_is_served_without_torch(trained: Path, tmp_path: Path) -> None:
    folder = export_model(trained, "onnx", max_loss=0.5, output=tmp_path / "export").folder
    assert {"Dockerfile", "predict.py", "requirements.txt", "serve.py"} <= {path.name for path in folder.iterdir()}
    assert "torch" not in (folder / "requirements.txt").read_text()
    texts = [*columns(4, "text")["text"], "🙂", "good " * 60]
    median = float(np.median([row["probability"] for row in load_predictor(trained)(texts)]))
    record = json.loads((folder / "nlp_transfer.json").read_text())
    edit(folder / "nlp_transfer.json", settings=record["settings"] | {"abstain": median})
    expected = load_predictor(trained, settings={"abstain": median})(texts, probabilities=True)
    assert {type(row["prediction"]) for row in expected} == {int, type(None)}
    start = (
        "import runpy, sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'nlp_transfer'))); "
        "sys.path.insert(0, '.'); sys.argv[1:] = ['--port', '0']; runpy.run_path('serve.py', run_name='__main__')"
    )
    with process("-c", start, cwd=folder, env={"PYTHONPATH": ""}) as server:
        assert server.stderr is not None
        address = next(found for line in server.stderr if (found := re.search(r"http://[\d.]+:\d+", line))).group()
        status, response = post(address, {"texts": texts, "probabilities": True})
        assert status == 200
        found = response["predictions"]
        for name in ("prediction", "note"):
            assert [row.pop(name) for row in found] == [row.pop(name) for row in expected]
        assert all(after == pytest.approx(before, abs=1e-5) for before, after in zip(expected, found, strict=True))
        for body in ({"texts": [""]}, {"texts": [5]}, {"texts": [["a", "b"]]}, {"text": ["a"]}, {"texts": ["a"] * 257}, []):
            assert post(address, body)[0] == 422
        assert post(address, {"texts": ["a" * 200_001]})[0] == 413
        with urllib.request.urlopen(f"{address}/health") as health:
            assert json.load(health) == {"status": "ok", "task": "text_classification", "inputs": ["text"]}


def test_wrong_use_is_refused(trained: Path, tmp_path: Path) -> None:
    for arguments, facts in (
        (["--token-file", tmp_path / "none"], ["--token-file"]),
        (["--host", "192.0.2.1"], ["192.0.2.1:8000"]),
        (["--data.delimiter", ";"], ["data.delimiter", "serve"]),
        (["--backend", "onnx", "--port", 0], ["--backend onnx"]),
    ):
        status, _, messages = command("serve", trained, *arguments)
        assert status == 2
        assert [fact for fact in facts if fact not in messages] == []
