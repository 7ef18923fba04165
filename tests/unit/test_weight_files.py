"""Weights from elsewhere: their headers are measured before a library opens them, and weights and predictions must be finite."""

import json
import shutil
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel

from nlp_transfer import load_predictor, load_translator
from nlp_transfer.models.verification.weight_files import MAX_HEADER, MAX_TENSORS, check_finite, count_values, stored_shapes
from nlp_transfer.run.final_model import save_final_model
from tests.builders import command, opened, refused, train_tiny, write
from tests.helpers.models import tiny_classifier
from tests.helpers.seq2seq_models import save_tiny_seq2seq

pytestmark = pytest.mark.model

EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


def written(path: Path, header: Any, content: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)
    return path


def test_stored_shapes_equal_those_of_the_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a.b": torch.ones(2, 3), "c": torch.ones(0, 7), "d": torch.tensor(True)}, path, {"format": "pt"})
    assert stored_shapes(path) == {"a.b": (2, 3), "c": (0, 7), "d": ()}
    assert count_values(path) == 7


@pytest.mark.parametrize(
    ("header", "content", "fact"),
    [
        ({f"t{i}": EMPTY for i in range(MAX_TENSORS + 1)}, b"", f"{MAX_TENSORS:,}"),
        ({"t": EMPTY | {"shape": [2**40]}}, b"", "t"),
        ({"t": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"12", "but it has 2"),
        ({"t": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"12345678", "but it has 8"),
        ({"t": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234", "-1"),
        ({"t": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"", "4 to 0"),
        ({"t": 5}, b"", "5"),
        ([], b"", "tensors by name"),
    ],
    ids=str,
)
def test_header_that_does_not_fit_its_file_is_refused(header: Any, content: bytes, fact: str, tmp_path: Path) -> None:
    path = written(tmp_path / "model.safetensors", header, content)
    with refused(path, fact):
        stored_shapes(path)


def test_oversized_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER + 1))
        file.truncate(MAX_HEADER + 100)  # without content
    with refused(f"{MAX_HEADER + 1:,} bytes"):
        stored_shapes(path)


def test_a_million_empty_tensors_are_refused(tiny: dict[str, Path], tmp_path: Path) -> None:
    model = shutil.copytree(tiny["bert"], tmp_path / "model")
    written(model / "model.safetensors", {f"t{i}": EMPTY for i in range(300_000)})
    with refused("model.safetensors: found a header"):
        opened(model).load(AutoModel)


class Call:
    """Pickled as a call of a function, which whoever reads the pickle makes."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


@pytest.mark.parametrize("archive", [True, False])
def test_allocating_pickle_is_refused(archive: bool, tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.bin"
    hostile: list[Any] = [
        Call(bytearray, 50), Call(torch.UntypedStorage, 50), Call(OrderedDict, [("a", 1)]), torch.zeros(1).expand(10**9),
        torch.zeros([1] * 65), {(1,): 1}, {1}, 1j,
    ]  # fmt: skip
    for value in hostile:
        torch.save({"a": value}, path, _use_new_zipfile_serialization=archive)
        with refused("adapter_model.bin is a pickle that contains more than tensors"):
            count_values(path)


@pytest.mark.parametrize("archive", [True, False])
def test_pickles_of_tensors_are_accepted(archive: bool, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    base = torch.arange(12.0).view(3, 4)
    types = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.half, torch.bfloat16, torch.double)
    harmless: list[Any] = [
        nn.Linear(3, 2).state_dict(), {"a": nn.Parameter(base), "b": base, "c": base[1:].T, "d": torch.zeros(0, 7)}, {},
        {str(dtype): torch.ones(2, 3, dtype=dtype) for dtype in types}, {"one": torch.tensor(1.0)},
    ]  # fmt: skip
    for tensors in harmless:
        torch.save(tensors, path, _use_new_zipfile_serialization=archive)
        assert count_values(path) == path.stat().st_size
        stored = torch.load(path, weights_only=True)
        assert stored.keys() == tensors.keys()
        assert all(torch.equal(stored[name], tensors[name]) for name in tensors)


def test_storage_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(10**5)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    count = b"J" + struct.pack("<i", 10**5)  # of the storage, and the tensor's length
    assert content.count(count) == 2
    path.write_bytes(content.replace(count, b"J" + struct.pack("<i", 2**31 - 1), 1))
    with refused("storages of 8,589,934,588 bytes"):
        count_values(path)
    torch.save({"a": torch.zeros(10**5)}, path)
    path.write_bytes(path.read_bytes().replace(count, b"J" + struct.pack("<i", 10**5 - 1), 1))
    with refused("storage 0 does not have 399,996 bytes"):
        count_values(path)


def test_pickle_with_compressed_entries_is_refused(tiny: dict[str, Path], tmp_path: Path) -> None:
    from zipfile import ZIP_DEFLATED, ZipFile

    model = shutil.copytree(tiny["bert"], tmp_path / "model")
    (model / "model.safetensors").unlink()
    with ZipFile(model / "pytorch_model.bin", "w", ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10**7)
    with refused("pytorch_model.bin: its entries expand to 10,000,000 bytes"):
        opened(model).load(AutoModel)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(broken: float, tiny: dict[str, Path], tmp_path: Path) -> None:
    model = shutil.copytree(tiny["bert"], tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["encoder.layer.1.output.dense.bias"][:3] = broken
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with refused(str(model), "encoder.layer.1.output.dense.bias (3 of 32)"):
        opened(model).load(AutoModel)


def test_buffers_and_new_parameters_may_be_infinite() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.full((2, 2), -torch.inf))
    check_finite(model, "here", "")
    with torch.no_grad():
        model.bias.fill_(torch.nan)
    check_finite(model, "here", "", new={"bias"})
    with refused("here:", "bias (2 of 2)"):
        check_finite(model, "here", "")


def test_trained_model_that_is_not_finite_is_not_saved() -> None:
    model = tiny_classifier("bert")
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    anything: Any = None
    with refused("training:", "embeddings.word_embeddings.weight"):
        save_final_model(anything, anything, model, anything, anything)


def scaled(folder: Path, factor: float, place: Path) -> Path:
    """The model with weights that are finite, and too large to compute with."""
    shutil.copytree(folder, place)
    weights = load_file(place / "model.safetensors")
    save_file({k: v * factor if v.ndim == 2 else v for k, v in weights.items()}, place / "model.safetensors", {"format": "pt"})
    return place


def test_predictions_that_are_not_finite_name_their_row(tmp_path: Path) -> None:
    train_tiny(tmp_path)
    model = scaled(tmp_path / "run" / "model", 1e25, tmp_path / "huge")
    with refused("row 1: the model's scores are NaN or infinite"):
        load_predictor(model)(["a good film"])
    table, output = write(tmp_path / "new.csv", [("a good film",)] * 3, ("text",)), tmp_path / "out.csv"
    status, _, said = command("predict", model, "--input", table, "--output", output)
    assert (status, f"{table}, row 2:" in said, "in 3 of 3 rows" in said, output.exists()) == (2, True, True, False)


@pytest.mark.parametrize("beams", [1, 2])
def test_translation_scores_that_are_not_finite_are_refused(beams: int, tmp_path: Path) -> None:
    model = scaled(save_tiny_seq2seq("marian", tmp_path / "model"), 1e25, tmp_path / "huge")
    translate = load_translator(model, settings={"beams": beams})
    with refused("'The dog is red.'", "NaN or infinite"):
        translate(["The dog is red."])


def test_formats_without_suffix_are_recognized(tmp_path: Path) -> None:
    """As the hub's cache names them."""
    weights = {"a": torch.ones(2, 3)}
    save_file(weights, tmp_path / "one", {"format": "pt"})
    assert count_values(tmp_path / "one") == 6
    for name, settings in (("zip", {}), ("old", {"_use_new_zipfile_serialization": False})):
        torch.save(weights, tmp_path / name, **settings)
        assert count_values(tmp_path / name) == (tmp_path / name).stat().st_size
