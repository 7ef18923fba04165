"""The HTTP interface of a served model: predictions, health, metrics, the schema and an interactive page."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from nlp_transfer.report.rendering import render_html
from nlp_transfer.serving.batching import Batcher, QueueFullError
from nlp_transfer.serving.request_guard import RequestGuard
from nlp_transfer.serving.served_model import ServedModel
from nlp_transfer.utils.atomic_files import to_json
from nlp_transfer.utils.errors import UserError, did_you_mean, shorten

BYTES_PER_CHARACTER = 12  # of a character outside the Basic Multilingual Plane that JSON escapes as two surrogates
FIELDS_BYTES = 1 << 16  # room for the syntax of JSON and the names of columns
JSON = "application/json"
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

TEXT: dict[str, Any] = {"type": "string"}
SEVERAL = {"type": "array", "items": TEXT, "description": "the texts of a row with several columns, or a list of words"}
Texts = Annotated[
    Any, WithJsonSchema({"anyOf": [TEXT, {"type": "array", "items": {"anyOf": [TEXT, SEVERAL]}}]}, mode="validation")
]
TableRows = Annotated[Any, WithJsonSchema({"type": "array", "items": {"type": "object"}}, mode="validation")]


class PredictRequest(BaseModel):
    """The rows to predict: either `texts` or `rows`."""

    model_config = ConfigDict(extra="forbid")

    texts: Texts = Field(None, description="Texts; for models that read several texts in each row, lists of texts; or one text.")
    rows: TableRows = Field(None, description="Rows as objects with the columns that the model was trained on.")
    probabilities: bool = Field(False, description="Whether to add `probability:LABEL` for every label.")


class PredictResponse(BaseModel):
    """The predictions in the order of the rows."""

    predictions: list[dict[str, Any]]


class Failure(BaseModel):
    """Why a request was refused."""

    detail: str


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        texts: Rows in one request.
        characters: Characters of all texts in one request.
        queue: Rows that wait for a prediction.
        seconds: Time for receiving a request, and for its prediction.
    """

    texts: int = 256
    characters: int = 200_000
    queue: int = 2048
    seconds: float = 30.0


FAILURES = {
    400: "malformed JSON", 401: "the token is missing or wrong", 408: "the request was not received in time",
    413: "too many rows or characters", 422: "rows that the model cannot predict", 429: "the queue is full", 500: "a failure",
    504: "no prediction in time",
}  # fmt: skip


def create_app(model: ServedModel, limits: Limits, token: str | None = None) -> FastAPI:
    """Build the application of a model.

    Args:
        token: Required as `Authorization: Bearer TOKEN` for predictions and metrics. None: not required.
    """
    registry = CollectorRegistry()
    requests = Counter("nlp_transfer_requests", "Requests by path and status.", ["path", "status"], registry=registry)
    latency = Histogram("nlp_transfer_request_seconds", "Time from request to response.", ["path"], registry=registry)
    batches = Histogram("nlp_transfer_batch_rows", "Rows predicted together.", registry=registry, buckets=ROW_BUCKETS)
    batcher = Batcher(model.predict, limits.queue, limits.seconds, batches.observe)
    Gauge("nlp_transfer_queue_rows", "Rows that wait.", registry=registry).set_function(lambda: batcher.waiting_rows)

    def observe(path: str, status: int, seconds: float) -> None:
        path = path if path in known else "other"
        requests.labels(path, status).inc()
        latency.labels(path).observe(seconds)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(batcher.run)
            yield
            tasks.cancel_scope.cancel()

    app = FastAPI(
        title=model.name, description=f"Predictions of a {model.task_name} model.", lifespan=lifespan, docs_url=None,
        redoc_url=None,
    )  # fmt: skip
    size = BYTES_PER_CHARACTER * limits.characters + FIELDS_BYTES
    app.add_middleware(RequestGuard, size=size, seconds=limits.seconds, observe=observe)
    app.state.draining = False  # whether responses ask clients to close their connections
    answered = {"path": "/predict", "status": "200"}
    app.state.answered = lambda: int(registry.get_sample_value("nlp_transfer_requests_total", answered) or 0)
    bearer = HTTPBearer(auto_error=False)

    def authorize(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        if token is not None and (given is None or not secrets.compare_digest(given.credentials.encode(), token.encode())):
            raise HTTPException(401, "the token is missing or wrong; send the header Authorization: Bearer TOKEN", BEARER)

    failures: dict[int | str, dict[str, Any]] = {
        status: {"model": Failure, "description": text} for status, text in FAILURES.items()
    }

    @app.post("/predict", response_model=PredictResponse, responses=failures, dependencies=[Depends(authorize)])
    async def predict(body: PredictRequest) -> Response:
        """Predict texts or rows."""
        try:
            columns = model.read(_rows_of(body, model, limits))
            rows = len(next(iter(columns.values())))
            records = await batcher.submit(columns, body.probabilities) if rows else []
        except UserError as error:
            raise HTTPException(422, str(error)) from None
        except RecursionError:
            raise HTTPException(422, "the lists of the request are nested too deeply") from None
        except QueueFullError as error:
            detail = f"{batcher.waiting_rows} rows are waiting; allowed: {limits.queue}; try again in {error.seconds} s"
            raise HTTPException(429, detail, {"Retry-After": str(error.seconds)}) from None
        except TimeoutError:
            raise HTTPException(504, f"there was no prediction within {limits.seconds:g} s; try fewer or shorter texts") from None
        return Response(to_json({"predictions": records}, ensure_ascii=False), media_type=JSON)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Return that the model is loaded, and what it reads."""
        return {"status": "ok", "model": model.name, "task": model.task_name, "inputs": model.inputs}

    @app.get("/metrics", dependencies=[Depends(authorize)])
    async def metrics() -> Response:
        """Return metrics for Prometheus."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(
            render_html("serving.html", model=model, nonce=secrets.token_urlsafe(), needs_token=token is not None)
        )

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(render_html("serving_schema.html", schema=app.openapi(), model=model, dump=_indented))

    @app.exception_handler(RequestValidationError)
    async def refuse(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": _message(error)}, 400 if _is_malformed(error) else 422)

    known = {"/predict", "/health", "/metrics", "/", "/docs", "/openapi.json"}
    return app


BEARER = {"WWW-Authenticate": "Bearer"}


def _rows_of(body: PredictRequest, model: ServedModel, limits: Limits) -> Any:
    """Return the rows of a request.

    Raises:
        UserError: The request has neither `texts` nor `rows`, or both, or they are not lists.
        HTTPException: It has too many rows or characters.
    """
    if (body.texts is None) == (body.rows is None):
        found = "neither" if body.texts is None else "both"
        raise UserError(f'found {found} of texts and rows; allowed: {{"texts": [...]}}, or {{"rows": [{{column: text}}]}}')
    inputs = body.rows if body.texts is None else body.texts
    if isinstance(inputs, str) and body.rows is None:
        inputs = [inputs]
    if not isinstance(inputs, list):
        name = "texts" if body.rows is None else "rows"
        raise UserError(f"{name}: found {shorten(inputs)} ({type(inputs).__name__}); allowed: a list")
    if body.rows is not None and (wrong := [i for i, row in enumerate(inputs, 1) if not isinstance(row, dict)]):
        raise UserError(f"rows, row {wrong[0]}: found {shorten(inputs[wrong[0] - 1])}; allowed: an object with {model.inputs}")
    if body.probabilities and not model.has_probabilities:
        raise UserError(f"probabilities: {model.name} is a {model.task_name} model, which has none by label; leave it out")
    if len(inputs) > limits.texts:
        raise HTTPException(413, f"found {len(inputs):,} rows; allowed in one request: {limits.texts:,}")
    if (characters := _characters(inputs)) > limits.characters:
        raise HTTPException(413, f"found {characters:,} characters; allowed in one request: {limits.characters:,}")
    return inputs


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(_characters, inner))


def _is_malformed(error: RequestValidationError) -> bool:
    return any(each["type"] == "json_invalid" for each in error.errors())


def _message(error: RequestValidationError) -> str:
    """Return what is wrong with the form of a request."""
    messages = []
    for each in error.errors():
        place = ".".join(map(str, each["loc"][1:]))
        if each["type"] == "json_invalid":
            messages.append(f"the request is not JSON: {each['ctx']['error']} at character {place}")
        elif each["type"] == "extra_forbidden":
            known = list(PredictRequest.model_fields)
            messages.append(f"{place}: unknown{did_you_mean(place, known)}; allowed: {', '.join(known)}")
        elif not place:
            messages.append('the request is not an object of type application/json; allowed: {"texts": [...]}')
        else:
            messages.append(f"{place}: found {shorten(each['input'])}; {each['msg']}")
    return "; ".join(messages)


def _indented(value: Any) -> str:
    return to_json(value, ensure_ascii=False, indent=2)
