"""Builders of what tests need most: tables, runs of a tiny model, prepared tasks, trainers, commands, and expected refusals."""

import csv
import io
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from nlp_transfer import Callback, UserError, fine_tune
from nlp_transfer.cli import cli
from nlp_transfer.commands.exit_status import run_command
from nlp_transfer.data.sources import find_model
from nlp_transfer.data.sources.rows import Rows, from_columns
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.models.layers import new_parameters
from nlp_transfer.saved_models.save import quiet
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.strategies import Strategy, strategy_from
from nlp_transfer.tasks import Task, encode_table, task_from
from nlp_transfer.tasks.common.pretrained_head import prefer_head
from nlp_transfer.training import Trainer, checkpointer
from nlp_transfer.utils.errors import Problems
from tests.helpers.models import WORDS, save_tiny

GOOD, BAD = ("good", "great", "bright"), ("bad", "awful", "dull")
COLUMNS = ("text", "other", "label", "tags", "score", "answer", "answer_start", "words")
DEFAULTS: dict[str, Any] = {
    "data": {"validation_share": 0},
    "task": {"name": "text_classification"},
    "training": {"max_steps": 2, "precision": "fp32"},
}


def sentiment_rows(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return (text, label) pairs; one word of each text determines the label, and all texts differ."""
    generator = random.Random(seed)
    rows: dict[str, str] = {}
    neutral = [word for word in WORDS if word not in GOOD + BAD]
    while len(rows) < count:
        label = ("negative", "positive")[len(rows) % 2]
        words = generator.choices(neutral, k=generator.randint(3, 9))
        words.insert(generator.randrange(len(words) + 1), generator.choice(GOOD if label == "positive" else BAD))
        rows.setdefault(" ".join(words), label)
    return list(rows.items())


def answer_in(text: str) -> tuple[str, int]:
    """Return the word that determines the label of a text, and its position in characters."""
    words = text.split()
    index = next(i for i, word in enumerate(words) if word in GOOD + BAD)
    return words[index], len(" ".join([*words[:index], ""]))


def columns(count: int = 24, *names: str, seed: int = 0) -> dict[str, list[str]]:
    """Return the sentiment rows as columns, with targets for every task: `names`, or all of COLUMNS."""
    texts, labels = map(list, zip(*sentiment_rows(count, seed), strict=True))
    tags = ["|".join(name for name, n in (("even", 2), ("third", 3)) if i % n == 0) for i in range(count)]
    scores = [str(i % 5) for i in range(count)]
    answers, starts = map(list, zip(*map(answer_in, texts), strict=True))
    words = [" ".join("B-good" if word in GOOD else "B-bad" if word in BAD else "O" for word in text.split()) for text in texts]
    found = dict(zip(COLUMNS, (texts, texts[::-1], labels, tags, scores, answers, map(str, starts), words), strict=True))
    return {name: list(found[name]) for name in names or COLUMNS}


def rows(cells: int | Mapping[str, Sequence[Any]] = 24, *names: str, seed: int = 0) -> Rows:
    """Return `columns(...)`, or the given columns, as the package's rows, from a source named "rows"."""
    return from_columns(columns(cells, *names, seed=seed) if isinstance(cells, int) else cells, "rows")


def write(path: Path, content: Any, header: Sequence[str] = ("text", "label")) -> Path:
    """Write a file in the format of its extension and return its path.

    Args:
        content: text or bytes, which are written as they are; columns by name, a list of dictionaries, or a list of tuples
            with the names in `header`; for .yaml and .json any value, for other extensions lines.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, (str, bytes)):
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    elif path.suffix in (".yaml", ".json"):
        path.write_text(yaml.safe_dump(content) if path.suffix == ".yaml" else json.dumps(content), encoding="utf-8")
    elif path.suffix in (".csv", ".tsv", ".jsonl", ".parquet"):
        if isinstance(content, Mapping):
            header, content = list(content), list(zip(*content.values(), strict=True))
        elif content and isinstance(content[0], Mapping):
            header = list(dict.fromkeys(name for row in content for name in row))
            content = content if path.suffix == ".jsonl" else [[row.get(name) for name in header] for row in content]
        _write_table(path, list(header), content)
    else:
        path.write_text("".join(f"{line}\n" for line in content), encoding="utf-8", newline="")
    return path


def _write_table(path: Path, header: list[str], content: Sequence[Sequence[Any]]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.table(dict(zip(header, zip(*content, strict=True), strict=True))), path)
    elif path.suffix == ".jsonl":
        objects = [row if isinstance(row, Mapping) else dict(zip(header, row, strict=True)) for row in content]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in objects), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([header, *content])


def edit(path: Path, **fields: Any) -> Path:
    """Change fields of the object in a JSON file, which need not exist; return the path."""
    return write(path, (json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}) | fields)


def read_table(path: Path | str) -> list[dict[str, Any]]:
    """Read the rows of a table as dictionaries. The cells of CSV and TSV files are text."""
    path = Path(path)
    if path.suffix == ".parquet":
        return list(pq.read_table(path).to_pylist())
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in read_lines(path)]
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def read_lines(path: Path | str) -> list[str]:
    r"""Read the lines of a file that ends with \n, split at \n only."""
    text = Path(path).read_bytes().decode("utf-8")
    assert text.endswith("\n")
    return text.split("\n")[:-1]


def document(**changes: Any) -> dict[str, Any]:
    """Return the document of a run: DEFAULTS with changes; None removes a default, dictionaries merge, paths become text.

    `epochs` replaces the default of `max_steps`, and a validation file that of `validation_share`.
    """
    changed = _merge(DEFAULTS, changes)
    for part, name, replaced in (("training", "epochs", "max_steps"), ("data", "validation", "validation_share")):
        if name in changes.get(part, {}) and replaced not in changes[part]:
            del changed[part][replaced]
    return changed


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = {name: dict(value) if isinstance(value, Mapping) else value for name, value in base.items()}
    for name, value in changes.items():
        if isinstance(value, Mapping):
            below = merged.get(name)
            merged[name] = _merge(below if isinstance(below, Mapping) else {}, value)
        elif value is None and name in merged:
            del merged[name]
        else:
            merged[name] = str(value) if isinstance(value, Path) else value
    return merged


def run(metrics: Sequence[Any] = (), resume: Any = "auto", with_report: bool = False, **changes: Any) -> Any:
    """Fine-tune with the settings of `document(**changes)`; without a report, which takes longer than two steps."""
    return fine_tune(document(**changes), metrics=metrics, resume=resume, with_report=with_report)


def train_tiny(folder: Path) -> Any:
    """Train a tiny model for one step, in `folder/run`."""
    data = {"train": write(folder / "train.csv", sentiment_rows(100)), "validation_share": None}
    training = {"max_steps": 1, "precision": None}
    return run(model=save_tiny("bert", folder / "tiny"), data=data, training=training, output_dir=folder / "run")


class Prepared(NamedTuple):
    """A model with its strategy, and the task and tokens that it is trained with."""

    model: Any
    task: Task
    table: TokenTable
    new: frozenset[str]
    """Names of the parameters that are not in the checkpoint."""
    checkpoint: Checkpoint


def opened(folder: Path | Checkpoint) -> Checkpoint:
    """Open a model folder."""
    return folder if isinstance(folder, Checkpoint) else Checkpoint.open(find_model(str(folder)))


def prepared(
    model: Path | Checkpoint, task: Any = "text_classification", strategy: Any = "full", data: Rows | None = None
) -> Prepared:
    """Fit a task, encode its rows (by default all columns of 24 rows), and build its model, wrapped by a strategy."""
    checkpoint, data, problems = opened(model), rows() if data is None else data, Problems()
    task, strategy = ({"name": given} if isinstance(given, str) else given for given in (task, strategy))
    strategy = strategy if isinstance(strategy, Strategy) else strategy_from(strategy)
    fitted = task_from(task).fit(data, problems)
    problems.raise_if_any()
    fitted = prefer_head(fitted.prepare(checkpoint, data), strategy.traits.head)
    with quiet():
        built = fitted.build_model(checkpoint, TrainingConfig())
    new = new_parameters(built)
    return Prepared(strategy.prepare_model(built), fitted, encoded(fitted, checkpoint, data), new, checkpoint)


def encoded(task: Task, checkpoint: Checkpoint, data: Rows) -> TokenTable:
    """Encode rows with the tokenizer of a checkpoint."""
    return encode_table(task, data, checkpoint.tokenizer)


def trainer(
    model: Path, strategy: Strategy | None = None, output: Path | None = None, callbacks: Sequence[Callback] = (), **training: Any
) -> Trainer:
    """Return a trainer with 40 training and 12 validation rows; a training setting of None has its default."""
    checkpoint, strategy = opened(model), strategy or Strategy()
    train, validation = sentiment_rows(40), sentiment_rows(52)[40:]
    parts = [rows({"text": [text for text, _ in part], "label": [label for _, label in part]}) for part in (train, validation)]
    task = task_from({"name": "text_classification"}).fit(parts[0], Problems())
    tables = {name: encoded(task, checkpoint, part) for name, part in zip(("train", "validation"), parts, strict=True)}
    settings = {"batch_size": 8, "precision": "fp32", "learning_rate": 1e-3, "max_steps": 4, "logging_steps": 1} | training
    config = TrainingConfig(**{name: value for name, value in settings.items() if value is not None})
    torch.manual_seed(config.seed)
    with quiet():
        built = strategy.prepare_model(task.build_model(checkpoint, config))
    if output is not None:
        output.mkdir(exist_ok=True)
    return Trainer(built, task, tables, strategy, config, callbacks, output_dir=output)


def exit_status(*arguments: object) -> int:
    """Run `nlp-transfer` in this process; return its exit status."""
    try:
        run_command(lambda: cli.main([str(argument) for argument in arguments], standalone_mode=False))
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def command(*arguments: object) -> tuple[int, str, str]:
    """Run `nlp-transfer` in this process; return its exit status, its output, and its messages."""
    streams = [io.BytesIO(), io.BytesIO()]
    out, err = (io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True) for stream in streams)
    with redirect_stdout(out), redirect_stderr(err):
        status = exit_status(*arguments)
    output, messages = (stream.getvalue().decode() for stream in streams)
    return status, output, messages


def succeed(*arguments: object) -> tuple[str, str]:
    """Run `nlp-transfer` in this process, which succeeds; return its output and its messages."""
    status, *said = command(*arguments)
    assert status == 0, "".join(said)
    return said[0], said[1]


def printed(*arguments: object) -> Any:
    """Run `nlp-transfer` in this process, which succeeds and prints JSON and nothing else; return what it prints."""
    return json.loads(succeed(*arguments)[0])


@contextmanager
def refused(*facts: object) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """Expect a UserError whose message contains every fact."""
    with pytest.raises(UserError) as error:
        yield error
    missing = [fact for fact in map(str, facts) if fact not in str(error.value)]
    assert not missing, f"not in the message: {missing}\n{error.value}"


class Killed(Exception):  # noqa: N818  not an error, but the end of a process
    """Simulates the end of the process."""


@contextmanager
def stopped_at(checkpoint: int) -> Iterator[list[Path]]:
    """Expect a run that ends, as if killed, when it would write a checkpoint after this many; yield those it has written."""
    written: list[Path] = []
    original = checkpointer.checkpoints.write_checkpoint

    def write_or_die(*arguments: Any) -> Any:
        if len(written) == checkpoint:
            raise Killed
        written.append(original(*arguments))
        return written[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpointer.checkpoints, "write_checkpoint", write_or_die)
        with pytest.raises(Killed):
            yield written
