"""What a phase costs: its rows, how they become optimiser windows, its epochs, steps and rate."""

import math
from dataclasses import replace

import numpy as np
from torch import nn

from nlp_transfer.config import TrainingConfig
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.data.windows import WindowPlan
from nlp_transfer.strategies import Phase, Strategy, Tables
from nlp_transfer.tasks import Task


class Budget:
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

    def plan(self, phase: Phase | None = None, finished: int = 0) -> WindowPlan:
        """How the rows of a phase become optimiser windows; `finished` counts the phases before it."""
        phase = phase or Phase()
        training, table = self.training, self.table(phase)
        accumulation = training.gradient_accumulation_steps
        repeats = self.task.repeats(training, table) if phase.objective is None else table.repeats
        return WindowPlan(
            table.lengths, training.rows, accumulation, self.processes, training.batch_tokens, training.seed, table.sides,
            repeats, finished,
        )  # fmt: skip

    def epochs(self, phase: Phase | None = None) -> float:
        """Passes over the rows; auto: 3, or as many as make 300 steps, at most 20 (2006.04884 trains small sets longer)."""
        phase = phase or Phase()
        steps_an_epoch = self.plan(phase).windows_in_epoch
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
            return self.plan(phase, finished).steps(self.epochs(phase))
        left = self.training.max_steps - taken
        most = min(left, max(1, left // (1 + phase.following)))
        return most if phase.epochs is None else min(most, self.plan(phase, finished).steps(phase.epochs))

    def learning_rate(self) -> float:
        """The peak rate; auto: the strategy's, which is for 32 rows a step, times the root of the batch's ratio to that."""
        if not isinstance(self.training.learning_rate, str):
            return self.training.learning_rate
        plan = self.plan()
        rows = (
            (plan.batch_tokens / plan.lengths.mean() if plan.batch_tokens else plan.batch_size)
            * plan.accumulation
            * plan.processes
        )
        return float(f"{self.strategy.learning_rate(self.model) * min(2.0, max(0.5, math.sqrt(rows / 32))):.2g}")
