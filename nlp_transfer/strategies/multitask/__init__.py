"""Multi-task learning: train several tasks on one encoder, each with separate data and a separate head.

When to use it: for related tasks, especially if some have few rows; or to serve several tasks with one encoder.

Cost: the same as training on the rows of all tasks. Unrelated tasks can degrade each other: when MiniLM was trained on TREC,
    SST-2 and MSRP together, the accuracy on TREC and SST-2 was the same as in separate training, but on MSRP it fell from 0.79
    to 0.71.

Caruana 1997, "Multitask Learning"; Liu et al. 2019, "Multi-Task Deep Neural Networks for Natural Language Understanding",
1901.11504. Sampling with a temperature: Arivazhagan et al. 2019, 1907.05019. Soft sharing, with an encoder for each task and an
L2 penalty on the distance between them: Duong et al. 2015, "Low Resource Dependency Parsing: Cross-lingual Parameter Sharing".
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, PrivateAttr, field_validator
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.data.splits import UNLABELLED, input_keys, read_splits
from nlp_transfer.models.layers import find_layers
from nlp_transfer.models.preparation import describe_head
from nlp_transfer.settings.applicability import UsedWith
from nlp_transfer.settings.base_settings import Document, Positive, Settings
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.strategies import Group, Job, Losses, Phase, State, Strategy, StrategyTraits, View, check_strategy
from nlp_transfer.strategies.common.layer_depth import HEAD_SCALE
from nlp_transfer.strategies.multitask.mixed_batches import MixedObjective, MixedTable
from nlp_transfer.strategies.multitask.multitask_model import MultitaskModel, plain_name
from nlp_transfer.tasks import encode_table, task_from
from nlp_transfer.utils.atomic_files import replacing_folder
from nlp_transfer.utils.console import say
from nlp_transfer.utils.environment import PORTABLE, is_portable
from nlp_transfer.utils.errors import Problems, UserError, prefixed


class AuxiliaryTask(Settings):
    """A task that is trained together with the main task."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    """Name of the task. Its model is written to `tasks/NAME/model/`."""
    data: DataConfig
    """Data of the task, with the same settings as `data` of a run."""
    task: Document
    """The task, with the same settings as `task` of a run."""

    @field_validator("task", mode="before")
    @classmethod
    def _check_task(cls, value: Any) -> Any:
        document = {"name": value} if isinstance(value, str) else value
        try:
            task_from(document if isinstance(document, Mapping) else {})
        except UserError as error:
            raise ValueError(str(error).replace("\n", " ")) from error
        return document


class Multitask(Strategy):
    """Train the main task of the run and auxiliary tasks together. An optimizer step can contain rows of all tasks."""

    traits = StrategyTraits(owns_phases=True, position="alone", needs_task="vector", uses_weights=False)

    OWN: ClassVar[str] = "own"  # name of the main task

    tasks: Annotated[list[AuxiliaryTask], Field(min_length=1)]
    """The auxiliary tasks, each as `{name, data, task}`."""
    temperature: Positive = 1.0
    """Sampling temperature. A task with n rows is sampled in proportion to n ** (1 / temperature). With 1, tasks are sampled in
    proportion to their size; with a large value, almost equally."""
    weights: dict[str, Positive] = {}
    """Weights of the losses, by task name. The default is 1. The main task of the run is called `own`."""
    sharing: Literal["hard", "soft"] = "hard"
    """hard: one encoder for all tasks. soft: a separate encoder for each task; an L2 penalty limits its distance from the
    encoder of the main task."""
    tie: Annotated[Positive, UsedWith(sharing="soft")] = 0.01
    """With `sharing: soft`, the strength of the penalty, which is multiplied by half the squared distance."""

    _auxiliary: dict[str, Job] = PrivateAttr(default_factory=dict)  # by name of the task

    @field_validator("tasks")
    @classmethod
    def _check_names(cls, value: list[AuxiliaryTask]) -> list[AuxiliaryTask]:
        names = [cls.OWN, *(auxiliary.name for auxiliary in value)]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(
                f"different names, none of them {cls.OWN!r}, which is the run's own task; {repeated[0]!r} appears twice"
            )
        folded = [name.casefold() for name in names]
        if same := [name for name in names if folded.count(name.casefold()) > 1]:
            raise ValueError(
                f"names that differ in more than case; {same[0]!r} and {same[1]!r} would share a folder on many systems"
            )
        if reserved := [name for name in names if not is_portable(name)]:
            raise ValueError(f"{PORTABLE}; found {reserved[0]}")
        return value

    def param_groups(self, model: nn.Module, groups: list[Group]) -> list[Group]:
        """Give all heads a higher learning rate than the encoder, as in full fine-tuning."""
        assert isinstance(model, MultitaskModel)
        layers = find_layers(model.main)

        def is_head(name: str) -> bool:
            return layers.depth_of(plain_name(name)) > layers.depth

        split = [(replace(group, names=[n for n in group.names if not is_head(n)]),
                  replace(group, names=[n for n in group.names if is_head(n)], learning_rate_scale=HEAD_SCALE))
                 for group in groups]  # fmt: skip
        return [group for pair in split for group in pair]

    def prepare_data(self, job: Job, model: PreTrainedModel) -> Job:
        """Read the data of the auxiliary tasks, and build the model of all tasks.

        Raises:
            UserError: If data or settings are invalid, or a setting does not work with several tasks.
        """
        for name in ("augment", "oversample"):
            if getattr(job.training, name, None) is not None:
                raise UserError(f"training.{name}: cannot be combined with strategy multitask; allowed: null")
        names = [self.OWN, *(auxiliary.name for auxiliary in self.tasks)]
        if unknown := [name for name in self.weights if name not in names]:
            raise UserError(f"strategy.weights: there is no task {unknown[0]!r}; known: {', '.join(names)}")
        jobs = {self.OWN: job} | {auxiliary.name: self._read(auxiliary, job) for auxiliary in self.tasks}
        say(*_shared_inputs(jobs))
        self._auxiliary.clear()
        self._auxiliary.update({name: other for name, other in jobs.items() if name != self.OWN})
        models: dict[str, PreTrainedModel] = {}
        for name, other in self._auxiliary.items():
            models[name] = other.task.build_model(job.checkpoint, job.training)
            say(*(f"{name}: {note}" for note in describe_head(models[name])))
            if self.sharing == "hard" and models[name].base_model_prefix != model.base_model_prefix:
                raise UserError(
                    f"strategy.tasks: {name} has another kind of head than the run's own task, so they cannot share an "
                    "encoder; allowed: task.head: null for all tasks, or settings for all"
                )
        tables = {name: other.tables["train"] for name, other in jobs.items()}
        objective = MixedObjective(
            {name: other.task.objective(job.training, tables[name]) for name, other in jobs.items()}, self.weights
        )
        mixed = MixedTable.of(tables, self.temperature)
        if mixed.repeats is not None:
            rows = zip(tables.items(), mixed.repeats.totals().tolist(), strict=True)
            shares = ", ".join(f"{name} {total:,} of its {len(table):,}" for (name, table), total in rows)
            say(f"temperature {self.temperature:g}, rows per epoch: {shares}; the repeated rows are drawn anew in each epoch")
        skipped = [item for other in jobs.values() for item in other.skipped]
        objectives = job.objectives | {"mixed": objective}
        trained = MultitaskModel(model, self.OWN, models, shares_encoder=self.sharing == "hard")
        return replace(job, tables=job.tables | {"train": mixed}, objectives=objectives, skipped=skipped, model=trained)

    def _read(self, auxiliary: AuxiliaryTask, job: Job) -> Job:
        """Read, check and tokenize the rows of an auxiliary task."""
        with prefixed(f"strategy.tasks, {auxiliary.name}"):
            task = task_from(auxiliary.task)
            check_strategy(self, auxiliary.data, task, problems := Problems())
            problems.raise_if_any()
            splits, task = read_splits(auxiliary.data, task, job.training, job.training.seed)
            task = task.prepare(job.checkpoint, splits.rows["train"])
        say(*(f"{auxiliary.name}: {line}" for line in (*task.describe(splits.rows["train"]).lines, *splits.notes)))
        tokenizer, tables = job.checkpoint.tokenizer, {}
        for name, rows in splits.rows.items():
            if name != UNLABELLED:
                label = f"{auxiliary.name}: {name}"
                tables[name] = encode_table(task, rows, tokenizer, auxiliary.data.token_cache, name=label)
                say(f"{auxiliary.name}: {name}: {len(rows):,} rows")
        skipped = [(f"{auxiliary.name}: {split}", bad) for split, bad in splits.skipped]
        return replace(job, task=task, tables=tables, rows=splits.rows, objectives={}, skipped=skipped)

    def next_phase(self, state: State, view: View) -> Phase | None:
        if state.finished:
            return None
        table = view.tables["train"]
        # With a temperature, an epoch repeats some rows and is longer. The number of steps is the same as without repetition.
        share = 1.0 if table.repeats is None else len(table) / len(table.repeats)
        return Phase(objective="mixed", epochs=None if view.max_steps else view.epochs * share)

    def loss(self, losses: Losses, outputs: Any, batch: Mapping[str, torch.Tensor], model: nn.Module) -> Losses:
        if self.sharing == "hard":
            return losses
        assert isinstance(model, MultitaskModel)
        prefix = model.main.base_model_prefix
        own_encoder = dict(getattr(model.main, prefix).named_parameters())
        distance = torch.zeros((), device=next(iter(own_encoder.values())).device)
        for other in model.auxiliary.values():
            for name, parameter in getattr(other, prefix).named_parameters():
                distance = distance + (parameter.float() - own_encoder[name].float()).square().sum()
        rows = sum(len(value) for path, value in batch.items() if path.endswith("/labels"))
        return losses | {"tie": self.tie / 2 * distance * rows}  # the loop divides by the number of rows in the step

    def export_model(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        """Return the model of the main task. With hard sharing, save the encoder and each head separately in `shared/`."""
        models = model.models if isinstance(model, MultitaskModel) else {self.OWN: model}
        if self.sharing == "hard":
            self._save_shared(models, folder / "shared")
        return models[self.OWN]

    def auxiliary_jobs(self, model: nn.Module) -> dict[str, tuple[Job, PreTrainedModel]]:
        models = model.models if isinstance(model, MultitaskModel) else {}
        return {name: (job, models[name]) for name, job in self._auxiliary.items() if name in models}

    def _save_shared(self, models: dict[str, Any], folder: Path) -> None:
        first = next(iter(models.values()))
        prefix = first.base_model_prefix
        with replacing_folder(folder) as target:
            getattr(first, prefix).save_pretrained(target / "encoder")
            for name, model in models.items():
                head = {key: value.contiguous() for key, value in model.state_dict().items() if not key.startswith(f"{prefix}.")}
                save_file(head, target / f"{name}.safetensors")


def _shared_inputs(jobs: Mapping[str, Job]) -> list[str]:
    """Return warnings about inputs that are held out for one task, but train the shared encoder for another task."""
    keys = {
        (name, split): input_keys(job.task, rows)
        for name, job in jobs.items()
        for split, rows in job.rows.items()
        if split != UNLABELLED
    }
    return [
        f"warning: {shared:,} of {len(held):,} rows of {name}'s {split} have an input that is also in train of {other}; "
        "its metrics may be too high"
        for (name, split), held in keys.items()
        for other in jobs
        if split != "train" and other != name and (shared := int(np.isin(held, keys[other, "train"]).sum()))
    ]
