"""The optimiser's side of a step: the norm of the gradient, clipping, and AdamW; plain, or in the fast ways for CPUs."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from nlp_transfer.kernels.first_token import first_token_only, last_layer
from nlp_transfer.kernels.functions import FastFunctions
from nlp_transfer.kernels.sdpa import attention_for_any_shape
from nlp_transfer.kernels.sparse_adamw import SparseAdamWTable
from nlp_transfer.models.memory import keep_freed_memory
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.strategies import Combined, Phase, Strategy

LARGE = 2048  # rows; smaller tables are moved as a whole, which costs little


class PhaseOptimizer:
    """Makes the optimiser's steps of one phase.

    Args:
        optimizer: as Accelerate prepared it.
        fast: whether the ways of `kernels` are taken; each is left out where it would not do.
    """

    def __init__(
        self, model: nn.Module, optimizer: Any, accelerator: Accelerator, training: TrainingConfig, strategy: Strategy,
        phase: Phase, fast: bool,
    ) -> None:  # fmt: skip
        self.model, self.optimizer, self.accelerator, self.training = model, optimizer, accelerator, training
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.scales = accelerator.scaler is None and bool(optimizer.optimizer.defaults.get("fused"))
        self.tables: list[SparseAdamWTable] = []
        self.layer: nn.Module | None = None
        self.functions: FastFunctions | None = None
        self.factor = torch.ones(())  # on the gradient, so that its norm keeps within the limit; found by `norm`
        inner = optimizer.optimizer
        answer_alone = phase.objective is None and not _has_loss(strategy)  # else any token and any weight may be read
        if fast and answer_alone:
            self.layer = last_layer(model)
            if accelerator.num_processes == 1 and not training.ema:
                self.tables = [SparseAdamWTable(table, inner) for table in _tables(model)]
        if fast:
            keep_freed_memory()
            self.functions = FastFunctions({id(table.table): table.lookup for table in self.tables})
        by_rows = {id(table.table) for table in self.tables}
        for parameter in self.trained:  # a run that is gone on with in another way
            if id(parameter) not in by_rows and "seen" in inner.state.get(parameter, {}):
                SparseAdamWTable(parameter, inner).make_dense()

    @contextmanager
    def accelerated(self) -> Iterator[None]:
        """Around a forward pass and its backward pass."""
        with ExitStack() as stack:
            stack.enter_context(attention_for_any_shape())
            if self.functions is not None:
                stack.enter_context(first_token_only(self.layer))
                stack.enter_context(self.functions)
            yield

    def clip(self) -> torch.Tensor:
        """Of the whole gradient; what exceeds `training.max_grad_norm` is scaled down in the step."""
        limit = self.training.max_grad_norm
        if not self.scales:
            return torch.as_tensor(self.accelerator.clip_grad_norm_(self.trained, limit or torch.inf))
        parts = [norm for table in self.tables if (norm := table.gradient_norm()) is not None]
        gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        parts += torch._foreach_norm(gradients) if gradients else []
        norm = torch.linalg.vector_norm(torch.stack(parts)) if parts else torch.zeros(())
        self.factor = torch.clamp(limit / (norm + 1e-6), max=1.0) if limit else torch.ones_like(norm)
        return norm

    def step(self) -> None:
        """One step of AdamW, and no gradient afterwards. With fused AdamW clipping costs no pass of its own."""
        if self.scales:
            for table in self.tables:
                table.step(float(self.factor))
            self.optimizer.optimizer.grad_scale = 1 / self.factor
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.functions is not None:
            self.functions.copies.changed()

    def discard_gradient(self) -> None:
        """Forgets the gradient."""
        self.model.zero_grad(set_to_none=True)
        for table in self.tables:
            table.pending.clear()

    def update_all_rows(self) -> None:
        """Brings every weight up to date: before any of them is read but by training itself."""
        for table in self.tables:
            table.sync_all()


def _has_loss(strategy: Strategy) -> bool:
    """Whether a strategy adds to the loss."""
    parts = strategy.parts if isinstance(strategy, Combined) else [strategy]
    return any(type(part).loss is not Strategy.loss for part in parts)


def _tables(model: nn.Module) -> list[nn.Parameter]:
    """Large trained embedding tables that nothing else in the model shares."""
    uses: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    found: list[Any] = [module.weight for module in model.modules() if type(module) is nn.Embedding]
    return [
        table for table in found
        if table.requires_grad and len(table) >= LARGE and uses[id(table)] == 1 and table.dtype == torch.float32
    ]  # fmt: skip
