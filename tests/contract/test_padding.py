"""An answer does not depend on what else is in the batch, nor on padding."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nlp_transfer.data.sources.rows import from_columns
from nlp_transfer.data.tokens import encode_rows
from nlp_transfer.inference.batched_prediction import predict_table
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks import task_from
from nlp_transfer.utils.errors import Problems
from tests.builders import opened, sentiment_rows
from tests.helpers.models import FAMILIES

pytestmark = pytest.mark.model

HEADS = [None, {"pooling": "cls"}, {"pooling": "mean"}, {"pooling": "max", "hidden": [8]}]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head["pooling"] if head else "family")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_equals_its_rows_one_by_one(family: str, head: dict[str, object] | None, tiny: dict[str, Path]) -> None:
    pairs = sentiment_rows(12)
    rows = from_columns({"text": [text for text, _ in pairs], "label": [label for _, label in pairs]}, "rows")
    task = task_from({"name": "text_classification", "head": head}).fit(rows, Problems())
    checkpoint = opened(tiny[family])
    torch.manual_seed(1)
    model = task.build_model(checkpoint, TrainingConfig()).eval()
    tokenizer = checkpoint.tokenizer
    table = encode_rows(rows, lambda columns: task.encode(columns, tokenizer), task.fill(tokenizer))
    assert len(set(table.lengths)) > 3, "rows of different length, or nothing is padded"
    scores = [predict_table(model, task, table, size)[0]["scores"] for size in (12, 1)]
    assert scores[0].shape == scores[1].shape == (12, 2)
    assert np.abs(scores[0] - scores[1]).max() <= 1e-5
    batches = [np.arange(12), *np.arange(12)[:, None]]
    with torch.inference_mode():
        logits = [model(**{k: v for k, v in table.batch(rows).items() if k != "labels"}).logits for rows in batches]
    assert (logits[0] - torch.cat(logits[1:])).abs().max() <= 1e-5
    assert logits[0].std(0).max() > 1e-6, "answers that differ between rows"
