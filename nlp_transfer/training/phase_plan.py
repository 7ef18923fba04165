"""Plan a training phase: its rows, windows (the rows of one optimizer step each), epochs, number of steps, and learning rate."""

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from nlp_transfer.data.oversampling import class_repeats
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.data.windows import WindowPlan
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.strategies import Phase, Strategy, Tables
from nlp_transfer.tasks import Task
from nlp_transfer.training.position import Position, checker

ORDINARY = Phase()  # trains on all rows of `train`, with the training settings


def automatic_epochs(steps_per_epoch: int) -> int:
    """Return 3. On small datasets, return more, up to 20, to reach 300 optimizer steps (2006.04884)."""
    return min(20, max(3, math.ceil(300 / steps_per_epoch)))


class PhasePlanner:
    """Plans the phases of a run. Without the argument `phase`, methods plan ordinary training on `train`.

    The argument `finished` is the number of finished phases; it changes the order of the rows.
    """

    def __init__(
        self, task: Task, tables: Tables, strategy: Strategy, training: TrainingConfig, processes: int, model: nn.Module
    ) -> None:
        self.task, self.tables, self.strategy = task, tables, strategy
        self.training, self.processes, self.model = training, processes, model
        self._joined: tuple[Phase, TokenTable] | None = None

    def table(self, phase: Phase = ORDINARY) -> TokenTable:
        """Return the rows of a phase, including pseudo-labeled ones (`Phase.also`)."""
        table, also = self.tables[phase.split], phase.also
        if also is None:
            return table
        if self._joined is not None and self._joined[0] == phase:
            return self._joined[1]
        labels = table.dense["labels"]
        added = self.tables[also["split"]].select(np.array(also["rows"], np.int64))
        added_labels = np.array(also["labels"], labels.dtype).reshape(-1, *labels.shape[1:])
        joined = TokenTable.concatenate([table, replace(added, dense=added.dense | {"labels": added_labels})])
        self._joined = phase, joined
        return joined

    def window_plan(self, phase: Phase = ORDINARY, finished: int = 0) -> WindowPlan:
        """Return the plan that divides the rows of a phase into windows, one for each optimizer step."""
        training, table = self.training, self.table(phase)
        accumulation = training.gradient_accumulation_steps
        repeats = class_repeats(table.dense.get("labels"), training.oversample) if phase.objective is None else table.repeats
        return WindowPlan(
            table.lengths, training.rows, accumulation, self.processes, training.batch_tokens, training.seed, table.side_lengths,
            repeats, finished,
        )  # fmt: skip

    def epochs(self, phase: Phase = ORDINARY) -> float:
        """Return the number of epochs of a phase; with `training.epochs: auto`, that of `automatic_epochs`."""
        steps_per_epoch = self.window_plan(phase).windows_in_epoch
        if self.training.max_steps and phase.epochs is None:
            return self.training.max_steps / steps_per_epoch
        epochs = phase.epochs or self.training.epochs
        return automatic_epochs(steps_per_epoch) if isinstance(epochs, str) else epochs

    def steps(self, phase: Phase = ORDINARY, finished: int = 0, taken: int = 0) -> int:
        """Return the number of optimizer steps of a phase, or 0 if no steps are left.

        `max_steps` limits the entire run. The remaining steps are divided equally among this phase and all later ones. If
        `phase.epochs` is set, it limits the steps of the phase too.

        Args:
            taken: number of optimizer steps that earlier phases took.
        """
        if self.training.max_steps is None:
            return self.window_plan(phase, finished).steps(self.epochs(phase))
        remaining = self.training.max_steps - taken
        share = min(remaining, max(1, remaining // (1 + phase.following)))
        return share if phase.epochs is None else min(share, self.window_plan(phase, finished).steps(phase.epochs))

    def learning_rate(self) -> float:
        """Return the peak learning rate of the run.

        With `training.learning_rate: auto`, it is the rate of the strategy, which is for 32 rows per step, times sqrt(rows per
        step / 32), where this factor is limited to 0.5 to 2.
        """
        if not isinstance(self.training.learning_rate, str):
            return self.training.learning_rate
        plan = self.window_plan()
        batch_size = plan.batch_tokens / plan.lengths.mean() if plan.batch_tokens else plan.batch_size
        rows = batch_size * plan.accumulation * plan.processes
        return float(f"{self.strategy.traits.learning_rate(self.model) * min(2.0, max(0.5, math.sqrt(rows / 32))):.2g}")

    def check_position(self, position: Position, objectives: Collection[str]) -> None:
        """Check that the position of a checkpoint is possible with these settings and rows.

        Args:
            position: the position, as returned by `read_position`.
            objectives: names of the objectives that a phase can use.

        Raises:
            ValueError: the position is impossible. The message names the field.
        """
        check, phase, finished = checker(position), position.phase, len(position.strategy.finished)
        if phase is None:
            raise ValueError("phase: found null; allowed: the current phase")
        check_phase = checker(phase, "phase.")
        parameters = {name for name, _ in self.model.named_parameters()}
        check_phase(phase.split in self.tables, "split", ", ".join(self.tables))
        check_phase(phase.objective is None or phase.objective in objectives, "objective", ", ".join(["null", *objectives]))
        check_phase(
            phase.trainable is not None and {*phase.trainable} <= parameters, "trainable", "names of the model's parameters"
        )
        check_phase(phase.also is None or self._can_join(phase.also), "also", "rows of a table, with a label for each")
        if not self.strategy.traits.owns_phases:
            check(replace(phase, trainable=None) == ORDINARY, "phase", "the only phase of this strategy")
        check(
            (finished == 0) == (position.phase_step == position.step),
            "strategy",
            "no finished phases in the first phase, some in others",
        )
        plan, total = self.window_plan(phase, finished), self.steps(phase, finished, position.step - position.phase_step)
        check(1 <= position.phase_step <= total, "phase_step", f"1 to {total}, the steps of the phase")
        check(position.epoch < position.phase_step, "epoch", f"less than {position.phase_step}, the steps of the phase")
        before = (
            sum(len(plan.windows(i)) for i in range(position.epoch))
            if plan.batch_tokens
            else position.epoch * plan.windows_in_epoch
        )
        check(
            before + position.window == position.phase_step,
            "window",
            f"{position.phase_step - before}, by the steps of the phase",
        )
        check(1 <= position.window <= len(plan.windows(position.epoch)), "window", "1 to the windows of the epoch")
        interval = self.training.evaluate_every or plan.windows_in_epoch
        due = (
            phase.evaluate
            and "validation" in self.tables
            and (position.phase_step % interval == 0 or position.phase_step == total or position.ended)
        )
        done = bool(position.history) and position.history[-1]["step"] == position.step
        check((position.unjudged or done) == due, "unjudged", f"an evaluation after step {position.step}: {due}")
        patience = phase.patience or self.training.early_stopping
        check(
            position.stopped == (patience is not None and position.worse >= patience),
            "stopped",
            f"by worse, {position.worse}, and the patience",
        )
        rows = max(plan.rows_in_epoch, *map(len, self.tables.values()))
        check(position.pieces <= 2 * rows, "pieces", f"1 to {2 * rows}")
        check(
            position.step <= position.examples <= position.step * rows, "examples", f"{position.step} to {position.step * rows}"
        )
        longest = max(int(table.lengths.max(initial=1)) for table in self.tables.values())
        check(
            position.examples <= position.tokens <= position.examples * longest,
            "tokens",
            f"{position.examples} to {position.examples * longest}",
        )

    def _can_join(self, also: dict[str, Any]) -> bool:
        """Return whether `Phase.also` has row indices of an existing table and an array of labels of matching shape."""
        rows, labels, table = also.get("rows"), also.get("labels"), self.tables.get(str(also.get("split")))
        if (
            also.keys() != {"split", "rows", "labels"}
            or table is None
            or not (isinstance(rows, list) and isinstance(labels, list))
        ):
            return False
        shape = self.tables["train"].dense["labels"].shape[1:]
        try:
            same_shape = np.array(labels, np.float64).shape == (len(rows), *shape)
        except (ValueError, TypeError):
            return False
        return same_shape and all(type(row) is int and row in range(len(table)) for row in rows)
