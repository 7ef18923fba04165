"""What is different on a GPU, emulated on the CPU: attention that takes no fp32, kernels for CPUs alone, moved optimizer states,
a device whose memory runs out or whose products are rounded, launchers that start too many processes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, modeling_utils
from transformers.integrations.flash_attention import get_target_dtype

from nlp_transfer import load_predictor
from nlp_transfer.inference.batched_prediction import predict_table
from nlp_transfer.kernels import acceleration
from nlp_transfer.kernels.sparse_adamw import SparseAdamWTable
from nlp_transfer.models import accelerator
from nlp_transfer.models.memory import is_out_of_memory
from nlp_transfer.saved_models.save import _compare
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks.text_classification import TextClassification
from nlp_transfer.training.automatic_settings import resolve_kernels
from tests.builders import prepared, refused, run, stopped_at
from tests.contract.test_strategies import TASKS
from tests.helpers.models import tiny_classifier

pytestmark = pytest.mark.model

Train = Callable[..., Any]


@pytest.fixture
def train(tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path) -> Train:
    def train(name: str, **training: Any) -> Any:
        training = {"max_steps": 6, "batch_size": 8, "checkpoint_every": 2, **training}
        data = {"train": sentiment["train"], "validation_share": 0.1}
        return run(model=tiny["bert"], data=data, training=training, output_dir=tmp_path / name)

    return train


@pytest.fixture
def flash_attention(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Makes `flash_attention_2` available: computed by PyTorch's own, with FlashAttention's limits. The dtypes it was given."""
    seen: list[torch.dtype] = []

    def flash(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: Any = None, **_: Any) -> tuple[Any, None]:
        query = query.to(get_target_dtype(query, module) or query.dtype)
        seen.append(query.dtype)
        if query.dtype not in (torch.bfloat16, torch.float16):
            raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
        mask = None if mask is None else mask[:, None, None, :].bool()
        key, value = key.to(query.dtype), value.to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling).transpose(1, 2), None

    name = "flash_attention_2"
    monkeypatch.setitem(modeling_utils.ALL_ATTENTION_FUNCTIONS._global_mapping, name, flash)
    monkeypatch.setattr(modeling_utils.PreTrainedModel, "_flash_attn_can_dispatch", lambda self, **_: True)
    monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", lambda *a, **k: None)
    return seen


# --- attention


@pytest.mark.parametrize("strategy", ["full", "lora"])
def test_flash_attention_is_replaced_for_saving(
    strategy: str, flash_attention: list[torch.dtype], tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path
) -> None:
    training = {"max_steps": 4, "attention": "flash_attention_2", "precision": "bf16", "kernels": "plain"}
    data = {"train": sentiment["train"]}
    trained = run(model=tiny["bert"], data=data, strategy=strategy, training=training, output_dir=tmp_path / "run")
    assert set(flash_attention) == {torch.bfloat16}, "it has trained with it, and nothing else was given to it"
    recorded = yaml.safe_load((trained.output_dir / "config.yaml").read_text())["training"]
    assert recorded["attention"] == "flash_attention_2"
    assert "flash" not in (trained.output_dir / "model/config.json").read_text()
    model = AutoModelForSequenceClassification.from_pretrained(trained.output_dir / "model")
    assert model.config._attn_implementation == "sdpa"
    assert load_predictor(trained.output_dir)(["a good film"])[0]["prediction"] in ("negative", "positive")


def test_flash_attention_in_fp32_is_refused(train: Train, flash_attention: list[torch.dtype], tmp_path: Path) -> None:
    with refused("training.attention: found flash_attention_2", "fp32"):
        train("run", attention="flash_attention_2", precision="fp32")
    assert not (tmp_path / "run").exists()
    assert flash_attention == []


def test_comparison_restores_the_attention(flash_attention: list[torch.dtype], tmp_path: Path) -> None:
    model = tiny_classifier("bert")
    model.config._attn_implementation = "flash_attention_2"
    again = tiny_classifier("bert")
    again.load_state_dict(model.state_dict())
    probe = {"input_ids": torch.tensor([[2, 9, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    _compare(model, again, probe, tmp_path)
    assert model.config._attn_implementation == "flash_attention_2"
    assert flash_attention == []


def test_cudnn_attention_is_not_used(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[bool]] = {"train": set(), "predict": set()}
    original = F.scaled_dot_product_attention
    now = "train"

    def attend(*arguments: Any, **named: Any) -> Any:
        seen[now].add(torch.backends.cuda.cudnn_sdp_enabled())
        return original(*arguments, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        trained = train("run", kernels="plain", precision="fp32", max_steps=2)
        now = "predict"
        monkeypatch.setattr("nlp_transfer.inference.batched_prediction.accelerated", lambda *_: torch.inference_mode())
        load_predictor(trained.output_dir, precision="bf16")(["a good film"])
        assert torch.backends.cuda.cudnn_sdp_enabled(), "elsewhere it stays what it was"
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
    assert False in seen["train"]
    assert seen["predict"] == {False}


# --- kernels and resumed runs


@pytest.mark.parametrize("asked", [{"kernels": "fast"}, {"kernels": "fast", "gradient_checkpointing": True}])
@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_fast_kernels_fall_back_off_the_cpu(kind: str, asked: dict[str, Any]) -> None:
    kernels, reason = resolve_kernels(TrainingConfig(**asked), torch.device(kind))
    assert kernels == "plain"
    assert "fast" in reason
    assert kind in reason
    assert resolve_kernels(TrainingConfig(kernels="fast"), torch.device("cpu")) == ("fast", "as set")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"kernels": "fast"}, {"kernels": "plain", "attention": "eager"}),
        ({"kernels": "plain", "attention": "eager"}, {"kernels": "fast", "attention": "sdpa"}),
    ],
)
def test_resuming_with_other_kernels_and_attention(
    first: dict[str, Any],
    second: dict[str, Any],
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(acceleration, "MIN_SPARSE_ROWS", 8)  # the embeddings of the tiny model are moved by rows too
    fixed = {"precision": "fp32", "dropout": 0, "attention_dropout": 0, "learning_rate": 1e-3}
    straight = train("straight", **fixed, **first)
    with stopped_at(2):
        train("broken", **fixed, **first)
    capsys.readouterr()
    resumed = train("broken", **fixed, **second)
    said = capsys.readouterr().err
    assert f"kernels {first['kernels']} before, {second['kernels']} now" in said
    assert "(step 4)" in said
    weights = [load_file(one.output_dir / "model/model.safetensors") for one in (straight, resumed)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-5)


def test_sparse_rows_are_updated_on_their_device() -> None:
    """`meta` stands for another device than the table's: nothing may be made there."""
    found = []
    for default in ("cpu", "meta"):
        torch.manual_seed(0)
        embedding = torch.nn.Embedding(30, 4)
        optimizer = torch.optim.AdamW([embedding.weight], lr=1e-2, weight_decay=0.1, fused=True)
        table = SparseAdamWTable(embedding.weight, optimizer)
        for step in range(5):
            table.lookup(torch.tensor([step, 7, 9]), None).square().sum().backward()
            table.step(1.0)
        before = embedding.weight.detach().clone()
        with torch.device(default):
            table.make_dense()
        assert not torch.equal(before, embedding.weight), "rows that did not occur have moved"
        assert set(optimizer.state[embedding.weight]) == {"step", "exp_avg", "exp_avg_sq"}
        found.append(embedding.weight.detach().clone())
    assert torch.equal(*found)


# --- the saved model


class Rounding:
    """A model on a GPU whose products are rounded, as TF32's are; on the CPU it is exact."""

    def __init__(self, model: Any) -> None:
        self.model, self.device = model, torch.device("cuda")

    def parameters(self) -> Iterator[Any]:
        yield self

    def modules(self) -> Iterator[Any]:
        return iter(self.model.modules())

    def eval(self) -> "Rounding":
        self.model.eval()
        return self

    def to(self, place: Any) -> "Rounding":
        self.device = torch.device(place)
        return self

    def __call__(self, **inputs: torch.Tensor) -> Any:
        outputs = self.model(**inputs)
        if self.device.type == "cuda":
            outputs.logits = outputs.logits + 0.01
        return outputs


def test_saved_models_are_compared_on_the_cpu(tmp_path: Path) -> None:
    model, again = Rounding(tiny_classifier("bert")), tiny_classifier("bert")
    again.load_state_dict(model.model.state_dict())
    probe = {"input_ids": torch.tensor([[2, 9, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    _compare(model, again, probe, tmp_path)
    assert model.device.type == "cuda", "it is back where it was"
    with torch.no_grad():
        again.classifier.bias += 0.01
    with pytest.raises(RuntimeError, match="not saved faithfully"):
        _compare(model, again, probe, tmp_path)


# --- memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9.07 GB)"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA error: out of memory", 2),
        MemoryError(),
    ],
)
def test_out_of_memory_errors_are_recognized(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("The size of tensor a (4) must match the size of tensor b (5) at non-singleton dimension 1"),
        ValueError("out of memory"),
    ],
)
def test_other_errors_are_not_out_of_memory(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def test_evaluation_remembers_the_batch_size_limit(
    tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, task, table, *_ = prepared(tiny["bert"], TASKS["single"])
    assert len(table) >= 16
    expected, _ = predict_table(model, task, table, batch_size=8)
    original, failed, most = TextClassification.predict, [], []

    def small(self: Any, model: Any, batch: Any, *more: Any) -> Any:
        tokens = batch["input_ids"].numel()
        if tokens > 30:
            failed.append(tokens)
            raise RuntimeError("CUDA error: out of memory")
        most.append(tokens)
        return original(self, model, batch, *more)

    monkeypatch.setattr(TextClassification, "predict", small)
    capsys.readouterr()
    answers, _ = predict_table(model, task, table, batch_size=8)
    assert np.allclose(answers["scores"], expected["scores"], atol=1e-6)
    assert failed == sorted(set(failed), reverse=True), "no size is tried again, nor a larger one"
    assert capsys.readouterr().err.count("out of memory") == len(failed) <= 3
    assert max(most) > 10, "batches are as large as fits"
    count = len(failed)
    predict_table(model, task, table, batch_size=8)
    assert len(failed) == count, "the next evaluation of this model remembers it"


# --- launchers


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with refused("process 2", "1 CUDA GPU", "nproc_per_node 1"):
        accelerator._check_gpu_count()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    accelerator._check_gpu_count()
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setenv("LOCAL_RANK", "0")
    accelerator._check_gpu_count()
