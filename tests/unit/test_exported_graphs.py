"""Graphs are correct for any number of rows and tokens, or refused: in small modules, and in the families that need help."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from nlp_transfer.export.measurement import judge
from nlp_transfer.export.quantization import write_graph
from nlp_transfer.inference.exported_model import ExportedModel
from nlp_transfer.models.compatibility import add_padding_hooks
from nlp_transfer.models.layers import logit_difference
from nlp_transfer.models.onnx_graph import write_onnx
from tests.builders import refused
from tests.helpers.families import family_config
from tests.helpers.models import VOCABULARY

LENGTHS = ([7, 7], [7], [1], [12, 3, 1, 9])


class Small(nn.Module):
    """A classifier that computes what keeps larger ones from being exported."""

    config = SimpleNamespace(model_type="small", num_labels=2)

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(VOCABULARY), 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        last = input_ids.gather(1, attention_mask.sum(1, keepdim=True) - 1).squeeze()
        padding = 1.0 - attention_mask
        states = self.embedding(input_ids) * (1 - padding)[..., None]
        return {"logits": states.sum(1) + self.embedding(last)}


class Fixed(Small):
    """A classifier with a list in Python for each number of tokens."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        weights = torch.tensor([1.0 / (1 + i) for i in range(input_ids.shape[1])])
        return {"logits": (self.embedding(input_ids) * weights[:, None]).sum(1)}


def batch(lengths: list[int]) -> dict[str, torch.Tensor]:
    """Random tokens that end with the end token, and padding."""
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(6, len(VOCABULARY), mask.shape, generator=torch.Generator().manual_seed(len(lengths)))
    ids[torch.arange(len(lengths)), torch.tensor(lengths) - 1] = VOCABULARY["[SEP]"]
    return {"input_ids": ids * mask, "attention_mask": mask}


def family(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(family_config(name, **changes)).eval()
    add_padding_hooks(model)
    return model


@pytest.mark.parametrize("name", ["small", "mbart", "xlnet"])
def test_graph_is_equal_for_any_number_of_rows_and_tokens(name: str, tmp_path: Path) -> None:
    sizes = {"mbart": {"encoder_layers": 1, "decoder_layers": 1}, "xlnet": {"n_layer": 1}}
    model = family(name, **sizes[name]) if name in sizes else Small().eval()
    write_onnx(model, batch(LENGTHS[0]), tmp_path / "model.onnx")
    exported = ExportedModel(model.config, "onnx", tmp_path / "model.onnx", "fp32")
    for lengths in LENGTHS:
        with torch.inference_mode():
            expected, found = model(**batch(lengths))["logits"], exported(**batch(lengths)).logits
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-4)


def test_table_with_one_row_is_loaded_in_int8(tmp_path: Path) -> None:
    model = family("roberta", num_hidden_layers=1)
    assert len(model.roberta.embeddings.token_type_embeddings.weight) == 1
    write_onnx(model, batch(LENGTHS[0]), tmp_path / "model.onnx")
    samples = [{name: ids.numpy() for name, ids in batch([length]).items()} for length in (5, 9, 12)]
    write_graph(tmp_path / "model.onnx", tmp_path / "model.xml", "int8", samples)
    assert b'element_type="i8"' in (tmp_path / "model.xml").read_bytes()
    exported = ExportedModel(model.config, "openvino", tmp_path / "model.xml", "fp32")
    with torch.inference_mode():
        expected, found = model(**batch(LENGTHS[3])).logits, exported(**batch(LENGTHS[3])).logits
    np.testing.assert_allclose(found, expected, atol=0.1)


def test_graph_for_one_number_of_tokens_is_refused(tmp_path: Path) -> None:
    with refused("small", "'rows', 7", "any number of rows and tokens"):
        write_onnx(Fixed(), batch(LENGTHS[0]), tmp_path / "model.onnx")


def test_error_of_an_engine_names_the_batch(tmp_path: Path) -> None:
    write_onnx(Small().eval(), batch(LENGTHS[0]), tmp_path / "model.onnx")
    exported = ExportedModel(Small.config, "onnx", tmp_path / "model.onnx", "fp32")
    wrong = {name: ids[0] for name, ids in batch([3]).items()}
    with refused("onnx", "(3,)", "small", "another engine"):
        exported(**wrong)


def test_difference_of_logits_ignores_the_size_of_masks() -> None:
    expected = np.array([2.0, -1.0, -1e6])
    assert logit_difference(expected, expected) == 0
    assert logit_difference(expected, expected + np.array([0.02, 0, 0])) == pytest.approx(0.01)
    assert logit_difference(expected, expected + np.array([0, 0, 1])) == pytest.approx(1e-6)
    assert logit_difference(np.array([-np.inf, 1.0]), np.array([-np.inf, 1.0])) == 0
    assert logit_difference(expected, expected[:2]) == np.inf


def test_export_with_undefined_logits_is_refused() -> None:
    report = {
        "to": "onnx", "precision": "fp32", "rows": 2, "metric": "accuracy", "trained": 1.0, "exported": 1.0, "metric_loss": 0.0,
        "allowed_loss": 0.0, "same_predictions": 1.0, "rows_per_second": {"trained": 1.0, "exported": 1.0},
    }  # fmt: skip
    judge(report | {"logit_difference": 1e-6})
    difference = logit_difference(np.array([1.0, 2.0]), np.array([1.0, np.nan]))
    with refused("onnx", "nan", "nothing was written"):
        judge(report | {"logit_difference": difference})
