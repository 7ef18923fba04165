"""Which parts of Accelerate's configuration count, by the variables that `accelerate launch` exports for them."""

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import BaseConfig, ClusterConfig
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

from nlp_transfer import fine_tune
from nlp_transfer.models import accelerator, device
from nlp_transfer.settings import launch_config
from nlp_transfer.settings.launch_config import check_launch
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.training.automatic_settings import resolve_settings
from tests.builders import refused
from tests.helpers.children.gradient_jobs import gradients

DOCUMENT = Path(__file__).parents[2] / "docs/distributed.md"
DEEPSPEED = ("--use_deepspeed", "--zero_stage", "2", "--num_machines", "1", "--main_process_port", "29555")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "FSDP_", "MASTER_")) or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "PJRT_DEVICE"):
            monkeypatch.delenv(name)


def exported(monkeypatch: pytest.MonkeyPatch, *flags: str, prepare: Callable[..., Any] = prepare_simple_launcher_cmd_env) -> None:
    """Sets what `accelerate launch` with these flags exports, by its own code, for the process that it starts."""
    monkeypatch.setattr("accelerate.commands.launch.default_config_file", "/nonexistent")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    parsed = launch_command_parser().parse_args([*flags, "-m", "nlp_transfer"])
    arguments, *_ = _validate_launch_command(parsed)
    arguments.deepspeed_fields_from_accelerate_config = ""
    found = prepare(arguments)
    for name, value in (found if isinstance(found, dict) else found[1]).items():
        if os.environ.get(name) != value:
            monkeypatch.setenv(name, value)


# --- back ends


@pytest.mark.parametrize(
    ("flags", "prepare", "back_end"),
    [
        (("--use_fsdp",), prepare_multi_gpu_env, "FSDP"),
        (DEEPSPEED, prepare_deepspeed_cmd_env, "DeepSpeed"),
        (("--use_megatron_lm",), prepare_multi_gpu_env, "Megatron-LM"),
    ],
)
def test_other_back_ends_are_refused(
    flags: tuple[str, ...], prepare: Callable[..., Any], back_end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(monkeypatch, "--num_processes", "2", *flags, prepare=prepare)
    with refused(f"{back_end} is not supported; allowed:", "DDP", "gloo", "nccl"):
        fine_tune(model="nowhere", data={"train": "nothing.csv"}, task="text_classification", output_dir="unused")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ACCELERATE_USE_FSDP", "1", "FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "True", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "yes", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "tensor"),
        ("ACCELERATE_USE_SAGEMAKER", "true", "SageMaker"),
        ("PJRT_DEVICE", "TPU", "TPUs and XLA"),
        ("XRT_TPU_CONFIG", "localservice;0;localhost:51011", "TPUs and XLA"),
        ("ACCELERATE_TORCH_DEVICE", "cpu", "ACCELERATE_USE_CPU"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "no, bf16, fp16"),
        ("ACCELERATE_USE_FSDP", "maybe", "allowed: true, false"),
        ("ACCELERATE_USE_CPU", "2", "allowed: true, false"),
    ],
)
def test_variables_of_what_is_not_supported_are_refused(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with refused(f"{name}: found ", value, said):
        check_launch()


@pytest.mark.parametrize("value", ["false", "0", "", "no"])
def test_variables_that_turn_something_off_change_nothing(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (*launch_config.BACK_ENDS, "ACCELERATE_USE_CPU"):
        monkeypatch.setenv(name, value)
    check_launch()
    assert capsys.readouterr().err == ""


def test_an_installed_torch_xla_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_config, "is_torch_xla_available", lambda: True)
    with refused("USE_TORCH_XLA=false"):
        check_launch()


# --- processes


def test_one_of_two_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    exported(monkeypatch, "--cpu", "--num_processes", "2")
    with refused("MASTER_ADDR", "WORLD_SIZE is not", "torchrun --nproc_per_node", "env -u MASTER_ADDR"):
        check_launch()


def test_one_process_is_no_false_alarm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    exported(monkeypatch, "--cpu", "--num_processes", "1")
    check_launch()
    monkeypatch.setenv("MASTER_ADDR", "node-1")
    for several in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"):
        with monkeypatch.context() as patch:
            patch.setenv(several, "1")
            check_launch()
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert capsys.readouterr().err == ""
    monkeypatch.delenv(launch_config.LAUNCHED)  # no launcher: a cluster that sets the address everywhere
    check_launch()
    assert "one process: MASTER_ADDR is set" in capsys.readouterr().err


def test_processes_of_mpi_know_their_rank_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "to be removed at the end")
    monkeypatch.setenv("WORLD_SIZE", "to be removed at the end")
    del os.environ["RANK"], os.environ["WORLD_SIZE"]
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    check_launch()
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("1", "2")


# --- what has no effect, and what counts


def test_steps_of_accelerate_do_not_divide_the_gradient(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def first(name: str) -> torch.Tensor:
        with gradients((0,)) as found:
            train(training={"max_steps": 1}, output_dir=tmp_path / name)
        return found[0]

    expected = first("plain")
    exported(monkeypatch, "--cpu", "--num_processes", "1", "--gradient_accumulation_steps", "4", "--dynamo_backend", "eager")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_DOWNCAST_BF16", "true")
    capsys.readouterr()
    assert torch.equal(first("configured"), expected)
    said = capsys.readouterr().err
    assert "no effect: gradient_accumulation_steps 4" in said
    assert "no effect: dynamo_backend EAGER" in said
    assert "no effect: downcast_bf16" in said
    with refused("found gradient_accumulation_steps 4; allowed: 1"):
        accelerator.check_accelerator(Accelerator(cpu=True))
    accelerator.make_accelerator(TrainingConfig(), "fp32")


@pytest.mark.parametrize(
    ("asked", "configured", "cuda", "expected"),
    [
        ("auto", "bf16", False, "bf16"),
        ("auto", "bf16", True, "bf16"),
        ("auto", "fp16", True, "fp16"),
        ("fp32", "bf16", True, "fp32"),
        ("bf16", "fp16", True, "bf16"),
    ],
)
def test_precision_of_accelerate_fills_open_settings(
    asked: str, configured: str, cuda: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", configured)
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    precision, reason = device.resolve_precision(asked, "bert")
    assert precision == expected
    assert ("Accelerate's mixed_precision" in reason) == (asked == "auto")


def test_an_impossible_precision_of_accelerate_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, _ = device.resolve_precision("auto", "bert")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    precision, reason = device.resolve_precision("auto", "bert")
    assert precision == usual
    assert "mixed_precision fp16 cannot be used" in reason
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # which `accelerate launch` exports where nothing was asked for
    assert device.resolve_precision("auto", "bert")[0] == usual


def test_only_errors_of_trackers_are_reported_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("the processes cannot find each other")

    with refused("training.trackers: found ['wrong']"):
        accelerator.make_accelerator(TrainingConfig.model_construct(trackers=["wrong"], process_timeout=60), "fp32")
    monkeypatch.setattr(accelerator, "Accelerator", fail)
    with refused("accelerate:", ": the processes cannot find each other") as error:
        accelerator.make_accelerator(TrainingConfig(), "fp32")
    assert "trackers" not in str(error.value)


def test_an_accelerator_of_the_callers_own_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = torch.nn.Linear(2, 2)
    model.config = type("Config", (), {"model_type": "bert"})  # type: ignore[assignment]
    with refused("gradient_accumulation_steps 2"):
        resolve_settings(model, None, TrainingConfig(), accelerator=accelerator)


def test_the_table_lists_each_field_of_accelerate() -> None:
    fields = {field.name for kind in (BaseConfig, ClusterConfig) for field in dataclasses.fields(kind)}
    table: dict[str, str] = {}
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"\| ((?:`\w+`(?:, )?)+) \| (used|no effect|refused)\b.* \|", line):
            table |= dict.fromkeys(re.findall(r"`(\w+)`", match[1]), match[2])
    no_effect = ("gradient_accumulation_steps", "dynamo_config", "downcast_bf16", "main_training_function")
    refused = (
        "fsdp_config", "deepspeed_config", "megatron_lm_config", "parallelism_config", "fp8_config", "tpu_name", "tpu_zone",
        "tpu_use_cluster", "tpu_use_sudo", "tpu_vm", "tpu_env", "command_file", "commands",
    )  # fmt: skip
    effects = {"no effect": no_effect, "refused": refused}
    expected = {name: effect for effect, names in effects.items() for name in names}
    assert table == dict.fromkeys(fields, "used") | expected
