"""What a phase costs: its rows, how they become optimiser windows, its epochs, steps and rate."""

import math
from collections.abc import Collection
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from torch import nn

from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.data.windows import WindowPlan
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.strategies import Phase, State, Strategy, Tables
from nlp_transfer.tasks import Task
from nlp_transfer.training.position import Position, as_json, checker, read_strictly


class PhasePlanner:
    """Answers for any phase; without one, for plain training on train. How many phases were finished before (`finished`)
    gives each phase an order of rows of its own."""

    def __init__(
        self, task: Task, tables: Tables, strategy: Strategy, training: TrainingConfig, processes: int, model: nn.Module
    ) -> None:
        self.task, self.tables, self.strategy = task, tables, strategy
        self.training, self.processes, self.model = training, processes, model
        self._joined: tuple[Phase, TokenTable] | None = None

    def table(self, phase: Phase | None = None) -> TokenTable:
        """The rows of a phase, with those that join in under answers of the strategy's own."""
        phase = phase or Phase()
        table, also = self.tables[phase.split], phase.also
        if also is None:
            return table
        if self._joined is not None and self._joined[0] == phase:
            return self._joined[1]
        labels = table.dense["labels"]
        more = self.tables[also["split"]].select(np.array(also["rows"], np.int64))
        answers = np.array(also["labels"], labels.dtype).reshape(-1, *labels.shape[1:])
        joined = TokenTable.concatenate([table, replace(more, dense=more.dense | {"labels": answers})])
        self._joined = phase, joined
        return joined

    def window_plan(self, phase: Phase | None = None, finished: int = 0) -> WindowPlan:
        """How the rows of a phase become optimiser windows; `finished` counts the phases before it."""
        phase = phase or Phase()
        training, table = self.training, self.table(phase)
        accumulation = training.gradient_accumulation_steps
        repeats = self.task.repeats(training, table) if phase.objective is None else table.repeats
        return WindowPlan(
            table.lengths, training.rows, accumulation, self.processes, training.batch_tokens, training.seed, table.side_lengths,
            repeats, finished,
        )  # fmt: skip

    def epochs(self, phase: Phase | None = None) -> float:
        """Passes over the rows; auto: 3, or as many as make 300 steps, at most 20 (2006.04884 trains small sets longer)."""
        phase = phase or Phase()
        steps_an_epoch = self.window_plan(phase).windows_in_epoch
        if self.training.max_steps and phase.epochs is None:
            return self.training.max_steps / steps_an_epoch
        asked = phase.epochs or self.training.epochs
        return min(20, max(3, math.ceil(300 / steps_an_epoch))) if isinstance(asked, str) else asked

    def steps(self, phase: Phase | None = None, finished: int = 0, taken: int = 0) -> int:
        """Optimizer steps of a phase, 0 where none are left.

        `max_steps` is for the whole run: what is left of it is divided evenly among this phase and those that it says follow. A
        phase that names its own epochs takes no more than these.

        Args:
            taken: steps of the phases before it.
        """
        phase = phase or Phase()
        if self.training.max_steps is None:
            return self.window_plan(phase, finished).steps(self.epochs(phase))
        left = self.training.max_steps - taken
        most = min(left, max(1, left // (1 + phase.following)))
        return most if phase.epochs is None else min(most, self.window_plan(phase, finished).steps(phase.epochs))

    def learning_rate(self) -> float:
        """The peak rate; auto: the strategy's, which is for 32 rows a step, times the root of the batch's ratio to that."""
        if not isinstance(self.training.learning_rate, str):
            return self.training.learning_rate
        plan = self.window_plan()
        rows = (
            (plan.batch_tokens / plan.lengths.mean() if plan.batch_tokens else plan.batch_size)
            * plan.accumulation
            * plan.processes
        )
        return float(f"{self.strategy.learning_rate(self.model) * min(2.0, max(0.5, math.sqrt(rows / 32))):.2g}")

    def check_position(self, at: Position, objectives: Collection[str]) -> None:
        """Check that a run with these settings and rows can be where a checkpoint says that it is.

        Args:
            objectives: what a phase can name.

        Raises:
            ValueError: it cannot; the message names the field.
        """
        phase, state = read_strictly(Phase, as_json(at.phase), "phase."), read_strictly(State, as_json(at.strategy), "strategy.")
        check, check_phase, finished = checker(at), checker(phase), len(state.finished)
        free = {name for name, _ in self.model.named_parameters()}
        check_phase(phase.split in self.tables, "split", ", ".join(self.tables))
        check_phase(phase.objective is None or phase.objective in objectives, "objective", ", ".join(["null", *objectives]))
        check_phase(phase.trainable is not None and {*phase.trainable} <= free, "trainable", "names of the model's parameters")
        check_phase(phase.also is None or self._can_join(phase.also), "also", "rows of a table, with a label for each")
        if not self.strategy.owns_phases():
            check(asdict(replace(phase, trainable=None)) == asdict(Phase()), "phase", "the only one of this strategy")
        check((finished == 0) == (at.phase_step == at.step), "strategy", "no finished phases in the first phase alone")
        plan, total = self.window_plan(phase, finished), self.steps(phase, finished, at.step - at.phase_step)
        check(1 <= at.phase_step <= total, "phase_step", f"1 to {total}, the steps of the phase")
        check(at.epoch < at.phase_step, "epoch", f"less than {at.phase_step}, the steps of the phase")
        before = sum(len(plan.windows(i)) for i in range(at.epoch)) if plan.batch_tokens else at.epoch * plan.windows_in_epoch
        check(before + at.window == at.phase_step, "window", f"{at.phase_step - before}, by the steps of the phase")
        check(1 <= at.window <= len(plan.windows(at.epoch)), "window", "1 to the windows of the epoch")
        every = self.training.evaluate_every or plan.windows_in_epoch
        due = phase.evaluate and "validation" in self.tables and (at.phase_step % every == 0 or at.phase_step == total)
        done = bool(at.history) and at.history[-1]["step"] == at.step
        check((at.unjudged or done) == due, "unjudged", f"an evaluation after step {at.step}: {due}")
        patience = phase.patience or self.training.early_stopping
        check(at.stopped == (patience is not None and at.worse >= patience), "stopped", f"by worse, {at.worse}, and the patience")
        rows = max(plan.rows_in_epoch, *map(len, self.tables.values()))
        check(at.pieces <= 2 * rows, "pieces", f"1 to {2 * rows}")
        check(at.step <= at.examples <= at.step * rows, "examples", f"{at.step} to {at.step * rows}")
        longest = max(int(table.lengths.max(initial=1)) for table in self.tables.values())
        check(at.examples <= at.tokens <= at.examples * longest, "tokens", f"{at.examples} to {at.examples * longest}")

    def _can_join(self, also: dict[str, Any]) -> bool:
        rows, labels, table = also.get("rows"), also.get("labels"), self.tables.get(str(also.get("split")))
        if (
            also.keys() != {"split", "rows", "labels"}
            or table is None
            or not isinstance(rows, list)
            or not isinstance(labels, list)
        ):
            return False
        known = range(len(table))
        shape = self.tables["train"].dense["labels"].shape[1:]
        try:
            same = np.array(labels, np.float64).shape == (len(rows), *shape)
        except (ValueError, TypeError):
            return False
        return same and all(type(row) is int and row in known for row in rows)
