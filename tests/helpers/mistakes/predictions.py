"""Mistakes in `predict` and `evaluate`."""

from pathlib import Path

from tests.helpers.mistakes.case import Case, predict


def evaluate(*more: str) -> tuple[str, ...]:
    return ("evaluate", "classifier", *more)


TABLE: list[Case] = [
    Case("input missing", "--input: there is no file nowhere.csv", run=predict(source="nowhere.csv")),
    Case("input of unknown ending", "--input: found the file extension '.xls' … allowed: .csv", run=predict(source="data.xls")),
    Case("input not named", '--input: not given … --input new.csv --output … "a text"',
        run=("predict", "classifier", "--output", "a.csv")),
    Case("output of unknown ending", "--output: found the file extension '.xlsx' … allowed: .csv",
        run=predict(output="a.xlsx")),
    Case("output is the input", "--output: train.csv is the input … allowed: another file", run=predict(output="train.csv")),
    Case("output is there already", "--output: test.csv already exists … --overwrite", files={"test.csv": "precious\n"},
        run=predict(output="test.csv")),
    Case("figures are there already", "--output: figures.json already exists … --overwrite",
        files={"figures.json": "precious\n"}, run=evaluate("--data.test", "train.csv", "--output", "figures.json")),
    Case("output is a folder", "--output: a.csv is a folder", files={"a.csv": Path.mkdir}, run=predict(output="a.csv")),
    Case("output below a file", "--output: train.csv/a.csv cannot be written", run=predict(output="train.csv/a.csv")),
    Case("probabilities as text", "--probabilities: a .txt file … allowed:", run=predict("--probabilities", output="a.txt")),
    Case("input column missing", "train.csv: there is no column 'review' … found: text, label",
        run=predict("--task.text", "review")),
    Case("input column missing, new folder", "there is no column 'review'",
        run=predict("--task.text", "review", output="new/folder/a.csv")),
    Case("answer column is there already", "train.csv … column 'prediction' … rename it",
        files={"train.csv": "text,prediction\na,b\n"}, run=predict()),
    Case("column of two types", "--output: a .parquet column has one type … allowed: .jsonl",
        files={"in.jsonl": '{"text": "a", "id": 1}\n{"text": "a", "id": "x"}\n'},
        run=predict(source="in.jsonl", output="a.parquet")),
    Case("longer than the model", "--task.max_length: found 1000 … allowed: up to 64",
        run=predict("--task.max_length", "1000")),
    Case("another task", "--task.name: found 'regression' … allowed: 'text_classification'",
        run=predict("--task.name", "regression")),
    Case("other labels", "--task.labels: found ['x', 'y'] … allowed: ['negative', 'positive']",
        run=predict("--task.labels", "[x, y]")),
    Case("setting of another command", "--training: not a setting of this command … allowed: --data.NAME",
        run=predict("--training.epochs", "3")),
    Case("predict with a bare encoder", "model: base has no weights for classifier … nlp-transfer train",
        run=("predict", "base", "--input", "train.csv", "--output", "a.csv")),
    Case("batch size 0 for predict", "--batch-size … 0 is not in the range", run=predict("--batch-size", "0")),
    Case("evaluate without data", "--data.test: is required", run=evaluate()),
    Case("evaluate a missing file", "nowhere.csv: there is no such file", run=evaluate("--data.test", "nowhere.csv")),
    Case("evaluate with unknown labels", "2 problems … test.csv, row 3, column 'label': the label 'odd' is not known … row 4",
        files={"test.csv": "text,label\na,positive\nb,odd\nc,odd\n"}, run=evaluate("--data.test", "test.csv")),
    Case("evaluate without labels", "test.csv: there is no column 'label'", files={"test.csv": "text\na\n"},
        run=evaluate("--data.test", "test.csv")),
    Case("figures below a file", "--output: train.csv/figures.json cannot be written",
        run=evaluate("--data.test", "train.csv", "--output", "train.csv/figures.json")),
    Case("figures of unknown ending", "--output: found the file extension '.txt' … allowed: .json",
        run=evaluate("--data.test", "train.csv", "--output", "figures.txt")),
]  # fmt: skip
