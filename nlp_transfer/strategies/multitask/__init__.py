"""Multi-task learning: several data sets and tasks on one encoder, a head for each.

Caruana 1997, "Multitask Learning"; Liu et al. 2019, "Multi-Task Deep Neural Networks for Natural Language Understanding",
1901.11504. Sampling with a temperature as in Arivazhagan et al. 2019, 1907.05019. Soft sharing, an encoder for each task and a
pull between them, as in Duong et al. 2015, "Low Resource Dependency Parsing: Cross-lingual Parameter Sharing".

Tasks that have little to do with each other may cost each other: of TREC, SST-2 and MSRP learned together by MiniLM the first two
were as good as alone, and MSRP (0.71 against 0.79) was not.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.data.splits import UNLABELLED, input_keys, read_splits
from nlp_transfer.models.checkpoint import find_layers, has_decoder, head_notes, new_parameters
from nlp_transfer.settings.applicability import UsedWith
from nlp_transfer.settings.schema import DataConfig, Document, Positive, Settings
from nlp_transfer.strategies import Group, Job, Losses, Phase, State, Strategy, View
from nlp_transfer.strategies.common.layer_depth import HEAD_SCALE
from nlp_transfer.strategies.multitask.mixed_batches import MixedObjective, MixedTable, route
from nlp_transfer.tasks import Task, task_from
from nlp_transfer.utils.atomic_files import replacing_folder
from nlp_transfer.utils.console import say
from nlp_transfer.utils.environment import PORTABLE, is_portable
from nlp_transfer.utils.errors import Problems, UserError

FURTHER = re.compile(r"^further\.[^.]+\.")  # before the names of another task's parameters


class Further(Settings):
    """A task that is learned beside the run's own."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    """What it is called; its model is written to `tasks/NAME/model/`."""
    data: DataConfig
    """Its data, as a run's."""
    task: Document
    """Its task, as a run's."""

    @field_validator("task", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        document = {"name": value} if isinstance(value, str) else value
        try:
            task_from(document if isinstance(document, Mapping) else {})
        except UserError as error:
            raise ValueError(str(error).replace("\n", " ")) from error
        return document


class Multitask(Strategy):
    """The run's own task and others, each with its head, on one encoder. In every window rows of all of them may stand."""

    OWN: ClassVar[str] = "own"

    tasks: Annotated[list[Further], Field(min_length=1)]
    """The other tasks: `{name, data, task}` each."""
    temperature: Positive = 1.0
    """How rows are sampled: a task with n rows by n ** (1 / temperature). 1: by size; large: all tasks alike."""
    weights: dict[str, Positive] = {}
    """Weight of a task's loss by its name, 1 where none is given; the run's own task is called `own`."""
    sharing: Literal["hard", "soft"] = "hard"
    """hard: one encoder for all. soft: an encoder for each task, and an L2 pull between each and that of the run's own task."""
    tie: Annotated[Positive, UsedWith(sharing="soft")] = 0.01
    """Strength of the pull, with `sharing: soft`: factor on half the squared distance."""

    @field_validator("tasks")
    @classmethod
    def _names(cls, value: list[Further]) -> list[Further]:
        names = [cls.OWN, *(further.name for further in value)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"names that differ, also from {cls.OWN!r}, the run's own task; {twice[0]!r} stands twice")
        folded = [name.casefold() for name in names]
        if same := [name for name in names if folded.count(name.casefold()) > 1]:
            raise ValueError(
                f"names that differ in more than upper and lower case; {same[0]!r} and {same[1]!r} would share a folder on many "
                "systems"
            )
        if reserved := [name for name in names if not is_portable(name)]:
            raise ValueError(f"{PORTABLE}; found {reserved[0]}")
        return value

    def nested(self) -> dict[str, tuple[DataConfig, Task]]:
        return {f"tasks.{i}": (further.data, task_from(further.task)) for i, further in enumerate(self.tasks)}

    def place(self) -> Literal["any", "first", "alone"]:
        return "alone"

    def param_groups(self, model: nn.Module, groups: list[Group]) -> list[Group]:
        """As in full fine-tuning the heads learn faster; with soft sharing the other tasks' encoders stand beside the own one."""
        layers = find_layers(model)

        def is_head(name: str) -> bool:
            return layers.depth_of(FURTHER.sub("", name)) > layers.depth

        split = [(replace(group, names=[n for n in group.names if not is_head(n)]),
                  replace(group, names=[n for n in group.names if is_head(n)], learning_rate_scale=HEAD_SCALE))
                 for group in groups]  # fmt: skip
        return [group for pair in split for group in pair]

    def wrap(self, model: PreTrainedModel) -> PreTrainedModel:
        """Raises a UserError where the model writes text: a decoder is no head."""
        if has_decoder(model):
            raise UserError(
                "strategy.name: found multitask, whose tasks share an encoder below a head each; allowed: tasks that classify or "
                "give a number, not translation"
            )
        return model

    def prepare_data(self, job: Job, model: PreTrainedModel) -> Job:
        """Reads the other tasks' data, and attaches a head for each.

        Raises:
            UserError: some of the data or of the settings is wrong, or another setting does not go with several tasks.
        """
        for name in ("augment", "oversample"):
            if getattr(job.training, name, None) is not None:
                raise UserError(f"training.{name}: does not go with strategy multitask; allowed: null")
        if hasattr(model, "peft_config"):
            raise UserError(
                "strategy: multitask beside an adapter, which belongs to one head; allowed beside multitask: strategies that "
                "train the model's own weights"
            )
        names = [self.OWN, *(further.name for further in self.tasks)]
        if unknown := [name for name in self.weights if name not in names]:
            raise UserError(f"strategy.weights: there is no task {unknown[0]!r}; known: {', '.join(names)}")
        jobs = {self.OWN: job} | {further.name: self._read(further, job) for further in self.tasks}
        say(*_shared_inputs(jobs))
        models: dict[str, Any] = {self.OWN: model}
        for name, other in list(jobs.items())[1:]:
            models[name] = other.task.build_model(job.checkpoint, job.training)
            say(*(f"{name}: {note}" for note in head_notes(models[name])))
            if self.sharing == "hard":
                prefix = model.base_model_prefix
                if models[name].base_model_prefix != prefix:
                    raise UserError(
                        f"strategy.tasks: {name} has another kind of head than the run's own task, so they cannot share an "
                        "encoder; allowed: task.head null for all of them, or settings for all"
                    )
                setattr(models[name], prefix, getattr(model, prefix))
        whole: Any = model
        whole.jobs = {name: other for name, other in jobs.items() if name != self.OWN}
        whole.forward = route(models)
        whole.further = nn.ModuleDict({name: part for name, part in models.items() if name != self.OWN})
        more = {f"further.{name}.{new}" for name, part in whole.further.items() for new in new_parameters(part)}
        whole.new_parameters = new_parameters(model) | more
        tables = {name: other.tables["train"] for name, other in jobs.items()}
        objective = MixedObjective({name: other.task for name, other in jobs.items()}, self.weights)
        mixed = MixedTable.of(tables, self.temperature)
        if mixed.repeats is not None:
            rows = zip(tables.items(), mixed.repeats.totals().tolist(), strict=True)
            shares = ", ".join(f"{name} {total:,} of its {len(table):,}" for (name, table), total in rows)
            say(f"temperature {self.temperature:g}, rows in an epoch: {shares}; those that repeat are drawn anew in each epoch")
        skipped = [item for one in jobs.values() for item in one.skipped]
        objectives = job.objectives | {"mixed": objective}
        return replace(job, tables=job.tables | {"train": mixed}, objectives=objectives, skipped=skipped)

    def _read(self, further: Further, job: Job) -> Job:
        """Another task's rows as tokens, prepared as the run's own were."""
        try:
            task = task_from(further.task)
            self.check_data(further.data, task, problems := Problems())
            problems.raise_if_any()
            splits, task = read_splits(further.data, task, job.training, job.training.seed)
            task = task.prepare(job.checkpoint, splits.rows["train"])
            if task.prefer_head(None).auto_class() is not job.task.auto_class():
                raise UserError("task: has no head on an encoder; allowed: classification and regression")
        except UserError as error:
            raise UserError(f"strategy.tasks, {further.name}: {error}") from error
        say(*(f"{further.name}: {line}" for line in (*task.report(splits.rows["train"]), *splits.notes)))
        tokenizer, tables = job.checkpoint.tokenizer, {}
        for name, rows in splits.rows.items():
            if name != UNLABELLED:
                tables[name] = task.table(rows, tokenizer, further.data.token_cache, name=f"{further.name}: {name}")
                say(f"{further.name}: {name}: {len(rows):,} rows")
        skipped = [(f"{further.name}: {split}", bad) for split, bad in splits.skipped]
        return replace(job, task=task, tables=tables, rows=splits.rows, objectives={}, skipped=skipped)

    def next_phase(self, state: State, view: View) -> Phase | None:
        if state.finished:
            return None
        table = view.tables["train"]
        # With a temperature rows stand several times in an epoch; the budget is what one pass over each row would take.
        passes = 1.0 if table.repeats is None else len(table) / len(table.repeats)
        return Phase(objective="mixed", epochs=None if view.max_steps else view.epochs * passes)

    def loss(self, losses: Losses, outputs: Any, batch: Mapping[str, torch.Tensor], model: nn.Module) -> Losses:
        if self.sharing == "hard":
            return losses
        whole: Any = model
        prefix = whole.base_model_prefix
        own = dict(getattr(whole, prefix).named_parameters())
        distance = torch.zeros((), device=next(iter(own.values())).device)
        for part in whole.further.values():
            for name, parameter in getattr(part, prefix).named_parameters():
                distance = distance + (parameter.float() - own[name].float()).square().sum()
        rows = sum(len(value) for path, value in batch.items() if path.endswith("/labels"))
        return losses | {"tie": self.tie / 2 * distance * rows}  # divided by the rows of the window, it counts once

    def unwrap(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        """Detaches the other tasks, where `prepare_data` has attached them. With hard sharing `shared/` gets the encoder once,
        and each task's head beside it."""
        whole: Any = model
        further = dict(whole.further.items()) if hasattr(whole, "further") else {}
        if further:
            del whole.forward, whole.further, whole.jobs
        if self.sharing == "hard":
            self._save_shared({self.OWN: whole, **further}, folder / "shared")
        return model

    def auxiliary_jobs(self, model: nn.Module) -> dict[str, tuple[Job, PreTrainedModel]]:
        whole: Any = model
        return {name: (job, whole.further[name]) for name, job in whole.jobs.items()}

    def _save_shared(self, models: dict[str, Any], folder: Path) -> None:
        first = next(iter(models.values()))
        prefix = first.base_model_prefix
        with replacing_folder(folder) as part:
            getattr(first, prefix).save_pretrained(part / "encoder")
            for name, model in models.items():
                head = {key: value.contiguous() for key, value in model.state_dict().items() if not key.startswith(f"{prefix}.")}
                save_file(head, part / f"{name}.safetensors")


def _shared_inputs(jobs: Mapping[str, Job]) -> list[str]:
    """Return warnings about rows that one task is scored on and another one learns from: the encoder sees them in training."""
    keys = {
        (name, split): input_keys(job.task, rows)
        for name, job in jobs.items()
        for split, rows in job.rows.items()
        if split != UNLABELLED
    }
    return [
        f"warning: {shared:,} of {len(held):,} rows of {name}'s {split} have an input that stands in train of {other} as well; "
        "its metrics may be too good"
        for (name, split), held in keys.items()
        for other in jobs
        if split != "train" and other != name and (shared := int(np.isin(held, keys[other, "train"]).sum()))
    ]
