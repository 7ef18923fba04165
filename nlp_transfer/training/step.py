"""The optimizer step: gradient norm, clipping and AdamW, with fast CPU kernels where possible."""

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
from nlp_transfer.strategies import Phase, Strategy, parts_of

MIN_SPARSE_ROWS = 2048  # dense updates of smaller tables are cheap


class PhaseOptimizer:
    """Clips the gradient and takes the optimizer steps of one phase.

    Args:
        model: the unwrapped model; its trainable parameters are those of the phase.
        optimizer: as prepared by Accelerate.
        fast: whether to use `nlp_transfer.kernels` where the result is the same.
    """

    def __init__(
        self, model: nn.Module, optimizer: Any, accelerator: Accelerator, training: TrainingConfig, strategy: Strategy,
        phase: Phase, fast: bool,
    ) -> None:  # fmt: skip
        self.model, self.optimizer, self.accelerator = model, optimizer, accelerator
        self.training, self.strategy = training, strategy
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.scales = accelerator.scaler is None and bool(optimizer.optimizer.defaults.get("fused"))
        """Whether fused AdamW does the clipping: it can scale gradients as it reads them."""
        self.tables: list[SparseAdamWTable] = []
        self.layer: nn.Module | None = None
        self.functions: FastFunctions | None = None
        self.factor = torch.ones(())
        """Factor on the gradient that limits its norm; set by `clip`."""
        inner = optimizer.optimizer
        # A loss added by a strategy, or another objective, may read any token and any weight.
        if fast and phase.objective is None and not _has_loss(strategy):
            self.layer = last_layer(model)
            if accelerator.num_processes == 1 and not training.ema:
                self.tables = [SparseAdamWTable(table, inner) for table in _sparse_tables(model)]
        if fast:
            keep_freed_memory()
            self.functions = FastFunctions({id(table.table): table.lookup for table in self.tables})
        sparse = {id(table.table) for table in self.tables}
        for parameter in self.trained:  # sparse before the run was resumed with other kernels
            if id(parameter) not in sparse and "seen" in inner.state.get(parameter, {}):
                SparseAdamWTable(parameter, inner).make_dense()

    @contextmanager
    def accelerated(self) -> Iterator[None]:
        """Use the fast kernels in forward and backward passes."""
        with ExitStack() as stack:
            stack.enter_context(attention_for_any_shape())
            if self.functions is not None:
                stack.enter_context(first_token_only(self.layer))
                stack.enter_context(self.functions)
            yield

    def clip(self) -> torch.Tensor:
        """Clip the gradient norm to `training.max_grad_norm`, here or in `step`; return the norm before clipping."""
        limit = self.training.max_grad_norm
        if not self.scales:
            return torch.as_tensor(self.accelerator.clip_grad_norm_(self.trained, limit or torch.inf))
        norms = [norm for table in self.tables if (norm := table.gradient_norm()) is not None]
        gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        norms += torch._foreach_norm(gradients) if gradients else []
        norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
        self.factor = torch.clamp(limit / (norm + 1e-6), max=1.0) if limit else torch.ones_like(norm)
        return norm

    def step(self) -> None:
        """Take one step of AdamW and clear the gradient."""
        if self.scales:
            for table in self.tables:
                table.step(float(self.factor))
            self.optimizer.optimizer.grad_scale = 1 / self.factor
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.functions is not None:
            self.functions.copies.invalidate()

    def discard_gradient(self) -> None:
        """Clear the gradient without taking a step."""
        self.model.zero_grad(set_to_none=True)
        for table in self.tables:
            table.pending.clear()

    def update_all_rows(self) -> None:
        """Apply the pending updates of sparse tables. Call it before reading weights outside of training."""
        for table in self.tables:
            table.sync_all()


def _has_loss(strategy: Strategy) -> bool:
    """Return whether a strategy changes the loss."""
    return any(type(part).loss is not Strategy.loss for part in parts_of(strategy).values())


def _sparse_tables(model: nn.Module) -> list[nn.Parameter]:
    """Return the large trainable embedding tables in fp32 that no other module shares."""
    uses: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    tables: list[Any] = [module.weight for module in model.modules() if type(module) is nn.Embedding]
    return [
        table for table in tables
        if table.requires_grad and len(table) >= MIN_SPARSE_ROWS and uses[id(table)] == 1 and table.dtype == torch.float32
    ]  # fmt: skip
