"""The HTTP interface of a served model: equal to `load_predictor`, for every task; refusals, limits, batches, token, metrics."""

import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi.testclient import TestClient

from nlp_transfer import load_predictor, load_translator
from nlp_transfer.inference.file_predictor import open_predictor
from nlp_transfer.serving.app import Limits, create_app
from nlp_transfer.serving.batching import BATCH_ROWS, Batcher, Columns, QueueFullError, Records
from nlp_transfer.serving.served_model import ServedModel
from nlp_transfer.serving.server import TOKEN, Address, read_token, serve
from nlp_transfer.utils.errors import UserError
from tests.builders import columns, refused, run, write
from tests.helpers.predictions import near
from tests.helpers.seq2seq_models import PAIRS, save_tiny_seq2seq

pytestmark = pytest.mark.model
TEXTS = ["a good film", "an awful film", "good " * 60, "🙂", "bright dull"]
TASKS: dict[str, dict[str, Any]] = {
    "single": {"name": "text_classification"},
    "pair": {"name": "text_classification", "text_pair": "other"},
    "multi_label": {"name": "multi_label", "label": "tags", "separator": "|"},
    "regression": {"name": "regression", "label": "score"},
    "entities": {"name": "token_classification", "tokens": "text", "tags": "words"},
    "answers": {
        "name": "question_answering", "question": "other", "context": "text", "answers": "answer", "answer_start": "answer_start",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each task that reads texts, and one of a translation."""
    folder = tmp_path_factory.mktemp("served")
    table = write(folder / "train.csv", columns())
    found = {
        name: run(model=tiny["bert"], data={"train": table}, task=task, output_dir=folder / name).output_dir
        for name, task in TASKS.items()
    }
    pairs = write(folder / "pairs.csv", PAIRS, ("source", "target"))
    found["translation"] = run(
        model=save_tiny_seq2seq("marian", folder / "marian"), data={"train": pairs}, task={"name": "translation", "beams": 1},
        output_dir=folder / "translation",
    ).output_dir  # fmt: skip
    return found


@contextmanager
def client(folder: Path, token: str | None = None, **limits: Any) -> Iterator[TestClient]:
    """A client of a served model."""
    model = ServedModel(open_predictor(str(folder), {}, None, "fp32"), "model")
    with TestClient(create_app(model, Limits(**limits), token)) as opened:
        yield opened


@pytest.fixture(scope="module")
def single(runs: dict[str, Path]) -> Iterator[TestClient]:
    with client(runs["single"], texts=20, characters=1000) as opened:
        yield opened


@pytest.mark.parametrize("name", TASKS)
def test_predictions_are_those_of_load_predictor(runs: dict[str, Path], name: str) -> None:
    predictor = load_predictor(runs[name])
    cells = columns(6, *predictor.task.inputs)
    table = [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
    expected = json.loads(json.dumps(predictor(table)))
    with client(runs[name]) as server:
        assert server.post("/predict", json={"rows": table}).json() == {"predictions": expected}
        texts = [list(row.values()) if len(row) > 1 else next(iter(row.values())) for row in table]
        assert server.post("/predict", json={"texts": texts}).json() == {"predictions": expected}
        if name == "entities":
            assert server.post("/predict", json={"texts": [text.split() for text in texts]}).json()["predictions"] == expected
        if predictor.task.traits.has_probabilities:
            found = server.post("/predict", json={"rows": table, "probabilities": True}).json()["predictions"]
            assert found == json.loads(json.dumps(predictor(table, probabilities=True)))
        else:
            assert server.post("/predict", json={"rows": table, "probabilities": True}).status_code == 422


def test_translations_are_those_of_the_translator(runs: dict[str, Path]) -> None:
    texts = [source for source, _ in PAIRS[:4]] + ["", "  "]
    expected = [{"translation": text} for text in load_translator(runs["translation"])(texts)]
    with client(runs["translation"]) as server:
        assert server.post("/predict", json={"texts": texts}).json()["predictions"] == expected
        assert server.post("/predict", json={"texts": ["a", 5]}).status_code == 422
        assert "source" in server.get("/").text


BAD_REQUESTS: list[tuple[str | bytes, int, list[str]]] = [
    ('{"texts": [', 400, ["JSON", "character 11"]), ("[" * 10_000, 400, []), (b'{"texts": ["\xff"]}', 400, []),
    ("[]", 422, ["object"]), ("", 422, ["object"]), ("{}", 422, ["neither"]),
    ('{"text": ["a"]}', 422, ["text: unknown", "'texts'"]), ('{"texts": [""]}', 422, ["row 1", "'text'", "empty"]),
    ('{"texts": ["a", 5]}', 422, ["row 2", "5 (int)"]), ('{"texts": [null]}', 422, ["row 1"]),
    ('{"texts": [["a", "b"]]}', 422, ["row 1"]), ('{"texts": {"text": "a"}}', 422, ["dict"]),
    ('{"texts": ["\\ud800"]}', 422, ["half of a character"]), ('{"rows": [{"body": "a"}]}', 422, ["'text'", "body"]),
    ('{"rows": ["a"]}', 422, ["row 1"]), ('{"rows": "a"}', 422, ["list"]), ('{"texts": ["a"], "rows": []}', 422, ["both"]),
    ('{"texts": ["a"], "probabilities": "x"}', 422, ["probabilities", "'x'"]),
    ('{"texts": [' + "[" * 900 + "]" * 900 + "]}", 422, []), (json.dumps({"texts": ["a"] * 21}), 413, ["21", "20"]),
    (json.dumps({"texts": ["a" * 1001]}), 413, ["1,001", "1,000"]), (json.dumps({"texts": ["a" * 10**6]}), 413, ["bytes"]),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "facts"), BAD_REQUESTS, ids=range(len(BAD_REQUESTS)))
def test_bad_requests_are_refused(single: TestClient, body: str | bytes, status: int, facts: list[str]) -> None:
    response = single.post("/predict", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    assert [fact for fact in facts if fact not in response.json()["detail"]] == []


def test_refusal_has_the_facts_of_load_predictor(runs: dict[str, Path], single: TestClient) -> None:
    for texts in (["a", ""], ["a", 5]):
        with pytest.raises(UserError) as error:
            load_predictor(runs["single"])(texts)
        assert single.post("/predict", json={"texts": texts}).json()["detail"] == str(error.value)


def test_one_text_and_none(single: TestClient) -> None:
    together = single.post("/predict", json={"texts": TEXTS}).json()["predictions"]
    assert single.post("/predict", json={"texts": TEXTS[0]}).json()["predictions"][0] == pytest.approx(together[0], abs=1e-6)
    assert single.post("/predict", json={"texts": []}).json() == {"predictions": []}


def test_simultaneous_requests_get_their_own_rows(single: TestClient) -> None:
    cells = columns(24, "text")["text"]
    alone = {text: single.post("/predict", json={"texts": [text]}).json()["predictions"][0] for text in cells}
    wrong: list[Any] = []

    def ask(first: int) -> None:
        texts = [cells[(first + i) % 24] for i in range(first % 5 + 1)]
        response = single.post("/predict", json={"texts": texts if first % 7 else [*texts, ""]})
        if first % 7 and not near(response.json()["predictions"], [alone[text] for text in texts]):
            wrong.append(response.text)
        if not first % 7 and response.status_code != 422:
            wrong.append(response.text)

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_health_schema_and_metrics(single: TestClient) -> None:
    assert single.get("/health").json() == {
        "status": "ok", "model": "model", "task": "text_classification", "inputs": ["text"]
    }  # fmt: skip
    single.post("/predict", json={"texts": ["a"]})
    single.get("/secret-path-of-a-user")
    metrics = single.get("/metrics").text
    assert 'nlp_transfer_requests_total{path="/predict",status="200"}' in metrics
    assert "nlp_transfer_queue_rows 0.0" in metrics
    assert "nlp_transfer_batch_rows_count" in metrics
    assert "secret" not in metrics
    schema = single.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/predict", "/health", "/metrics"}
    assert set(schema["components"]["schemas"]["PredictRequest"]["properties"]) == {"texts", "rows", "probabilities"}
    assert "POST /predict" in single.get("/docs").text


def test_pages_request_nothing_from_elsewhere(single: TestClient) -> None:
    for path in ("/", "/docs"):
        text = single.get(path).text
        assert "http://" not in text
        assert "https://" not in text
        assert "default-src 'none'" in text
    page = single.get("/").text
    assert '<label for="input-1">text</label>' in page
    assert 'type="password"' not in page


def test_token_is_required(runs: dict[str, Path]) -> None:
    token = "t" * 20
    with client(runs["single"], token=token) as server:
        for header in ({}, {"Authorization": f"Bearer {token}x"}, {"Authorization": "Bearer ü"}, {"Authorization": token}):
            encoded = {name: value.encode() for name, value in header.items()}
            response = server.post("/predict", json={"texts": ["a"]}, headers=encoded)
            assert response.status_code == 401
            assert response.headers["WWW-Authenticate"] == "Bearer"
        allowed = {"Authorization": f"Bearer {token}"}
        assert server.post("/predict", json={"texts": ["a"]}, headers=allowed).status_code == 200
        assert (server.get("/metrics").status_code, server.get("/metrics", headers=allowed).status_code) == (401, 200)
        assert server.get("/health").status_code == 200
        assert 'type="password"' in server.get("/").text


def test_token_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    assert read_token(None) is None
    monkeypatch.setenv(TOKEN, "e" * 16)
    assert read_token(None) == "e" * 16
    assert read_token(write(tmp_path / "token", "f" * 16 + "\n")) == "f" * 16
    for text in ("short", "", "ü" * 20, "a b" * 20):
        with refused("--token-file", "16"):
            read_token(write(tmp_path / "token", text))
    with refused("--token-file"):
        read_token(tmp_path / "missing")


def test_unusable_address_is_refused(tmp_path: Path) -> None:
    with refused("--host", "--port", "192.0.2.1:80"):
        serve(Address("192.0.2.1", 80), Limits(), str(tmp_path), {})


@pytest.mark.parametrize(("host", "token", "warned"), [("0.0.0.0", False, True), ("0.0.0.0", True, False), ("::1", False, False)])
def test_open_address_without_token_gives_a_warning(
    runs: dict[str, Path], host: str, token: bool, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.delenv(TOKEN, raising=False)
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)
    file = write(tmp_path / "token", "t" * 16) if token else None
    serve(Address(host, 0, file), Limits(), str(runs["single"]), {}, batch_size=None, precision="fp32")
    printed = capsys.readouterr().err
    assert ("warning: 0.0.0.0" in printed) == warned
    assert re.search(r"http://(0\.0\.0\.0|\[::1\]):[1-9]\d+", printed)
    assert "t" * 16 not in printed


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("nlp_transfer.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with refused("uvicorn", 'pip install "nlp_transfer[serve]"'):
        import_module("nlp_transfer.serving")


def test_failures_are_hidden_and_reported(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    model = ServedModel(open_predictor(str(runs["single"]), {}, None, "fp32"), "model")

    def fail(inputs: Columns, _: bool) -> Records:
        raise RuntimeError(f"cannot predict {inputs}")

    model.predict = fail  # type: ignore[method-assign]
    with TestClient(create_app(model, Limits())) as server:
        response = server.post("/predict", json={"texts": ["a private text"]})
    printed = capsys.readouterr()
    assert response.status_code == 500
    assert "private" not in response.text + printed.out + printed.err
    assert "RuntimeError" in printed.err
    assert "test_serving.py" in printed.err


def echo(inputs: Columns, _: bool) -> Records:
    """Return the text of each row; a text `bad` is refused."""
    if "bad" in inputs["text"]:
        raise UserError("bad")
    return [{"prediction": text} for text in inputs["text"]]


async def submit(batcher: Batcher, results: dict[str, Any], *texts: str, probabilities: bool = False) -> None:
    try:
        results[texts[0]] = [row["prediction"] for row in await batcher.submit({"text": list(texts)}, probabilities)]
    except (QueueFullError, TimeoutError, UserError) as error:
        results[texts[0]] = type(error)


def served(predict: Any, requests: list[tuple[str, ...]], limit: int = 10_000, seconds: float = 20) -> tuple[Any, list[int]]:
    """Submit requests at the same time; return their results by first text, and the rows in each batch."""
    results: dict[str, Any] = {}
    batches: list[int] = []

    async def main() -> None:
        batcher = Batcher(predict, limit, seconds, batches.append)
        async with anyio.create_task_group() as tasks:
            async with anyio.create_task_group() as clients:
                for number, texts in enumerate(requests):
                    clients.start_soon(lambda texts=texts, number=number: submit(  # type: ignore[misc]
                        batcher, results, *texts, probabilities=number % 2 == 1
                    ))  # fmt: skip
                tasks.start_soon(batcher.run)
            tasks.cancel_scope.cancel()

    anyio.run(main)
    return results, batches


def test_waiting_requests_are_predicted_together() -> None:
    requests = [(f"{i}", *(f"{i}-{j}" for j in range(i % 4))) for i in range(200)]
    results, batches = served(echo, requests)
    assert results == {texts[0]: list(texts) for texts in requests}
    assert sum(batches) == sum(map(len, requests))
    assert len(batches) == 2
    assert max(batches) <= BATCH_ROWS


def test_large_request_is_predicted_alone() -> None:
    large = tuple(str(i) for i in range(1000))
    results, batches = served(echo, [("a",), large, ("b",)], limit=500)
    assert results == {"a": ["a"], "0": QueueFullError, "b": ["b"]}
    results, batches = served(echo, [large], limit=500)
    assert results == {"0": list(large)}
    assert batches == [1000]


def test_bad_request_does_not_harm_its_batch() -> None:
    results, _ = served(echo, [("a",), ("bad", "b"), ("c",), ("d",)])
    assert results == {"a": ["a"], "bad": UserError, "c": ["c"], "d": ["d"]}


def test_full_queue_refuses_requests() -> None:
    results, _ = served(echo, [(str(i),) for i in range(10)], limit=6)
    assert [results[str(i)] for i in range(10)] == [[str(i)] for i in range(6)] + [QueueFullError] * 4


def test_late_prediction_is_not_waited_for() -> None:
    release = threading.Event()
    predicted: list[str] = []

    def slow(inputs: Columns, _: bool) -> Records:
        predicted.extend(inputs["text"])
        release.wait(0.5)
        return echo(inputs, _)

    results, _ = served(slow, [("a",), *[(str(i),) * BATCH_ROWS for i in range(3)]], seconds=0.2)
    assert set(results.values()) == {TimeoutError}
    assert set(predicted) == {"a"}, "requests that are no longer waited for are not predicted"


def test_limits_become_statuses(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[Exception] = [QueueFullError(7), TimeoutError()]

    async def fail(*_: Any) -> Records:
        raise raised.pop(0)

    monkeypatch.setattr(Batcher, "submit", fail)
    with client(runs["single"]) as server:
        full, late = (server.post("/predict", json={"texts": ["a"]}) for _ in range(2))
    assert (full.status_code, full.headers["Retry-After"], late.status_code) == (429, "7", 504)
