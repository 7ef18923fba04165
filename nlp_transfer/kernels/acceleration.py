"""Choose the kernels that apply to a model and an optimizer, and switch them on for forward and backward passes."""

from contextlib import ExitStack
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.autograd.graph import increment_version

from nlp_transfer.kernels.allocator import keep_freed_memory
from nlp_transfer.kernels.first_token import first_token_only, last_layer
from nlp_transfer.kernels.functions import FastFunctions
from nlp_transfer.kernels.linear import Bf16Copies
from nlp_transfer.kernels.sparse_adamw import SparseAdamWTable

_COPIES: WeakKeyDictionary[nn.Module, Bf16Copies] = WeakKeyDictionary()  # of frozen models, for all predictions with them
MIN_SPARSE_ROWS = 2048  # smaller tables are not lazy, since dense updates of them are cheap


def accelerated(
    model: nn.Module,
    optimizer: Any = None,
    *,
    enabled: bool = True,
    logits_only: bool = True,
    lazy_updates: bool = False,
) -> "Acceleration":
    """Return a context in which forward and backward passes of a model use the fast CPU kernels.

    Inside the context, dropout uses the kernels of this package; in bf16, attention and linear layers use them too. PyTorch
    handles calls that a kernel does not support, and models on devices other than the CPU. The context can be entered any
    number of times. Do not combine it with gradient checkpointing, which recomputes activations outside of the context.

    Example:
        fast = accelerated(model, optimizer)
        with fast:
            model(**batch).logits.sum().backward()
        norm = fast.clip(1.0)
        fast.step()
        fast.sync()  # before anything else reads the weights

    Args:
        model: the unwrapped model, on the device on which it computes.
        optimizer: the optimizer of the trainable parameters of the model, as prepared by Accelerate or as created by PyTorch.
        None: inference.
        enabled: False: use PyTorch's functions only.
        logits_only: whether only the logits of the model are used. If its classifier reads the first token, the last layer then
        computes only that token, and the hidden states and attention weights of that layer are not available.
        lazy_updates: whether, until the next `sync`, only the embedding lookups of the model read its embedding tables. With
            fused AdamW, each row of a large embedding table is then updated only when it is next looked up.
    """
    return Acceleration(model, optimizer, enabled, logits_only, lazy_updates)


class Acceleration:
    """The kernels of one model; see `accelerated`."""

    def __init__(self, model: nn.Module, optimizer: Any, enabled: bool, logits_only: bool, lazy_updates: bool) -> None:
        self.model, self.optimizer = model, optimizer
        self._inner: Any = getattr(optimizer, "optimizer", optimizer)
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._tables: list[SparseAdamWTable] = []
        self._layer: nn.Module | None = None
        self._functions: FastFunctions | None = None
        self._active: list[ExitStack] = []
        self._factor = 1.0  # by which the next optimizer step multiplies gradients
        if enabled and next(model.parameters()).device.type == "cpu":
            keep_freed_memory()
            self._layer = last_layer(model) if logits_only else None
            if lazy_updates and _is_fused_adamw(self._inner):
                self._tables = [SparseAdamWTable(table, self._inner) for table in _sparse_tables(model)]
            copies = Bf16Copies() if self._trained else _COPIES.setdefault(model, Bf16Copies())
            self._functions = FastFunctions({id(table.table): table.lookup for table in self._tables}, copies)
        if optimizer is not None:
            self._make_others_dense()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if self._functions is not None:
                stack.enter_context(first_token_only(self._layer))
                stack.enter_context(self._functions)
            self._active.append(stack.pop_all())
        return self

    def __exit__(self, *exception: Any) -> None:
        self._active.pop().close()

    @property
    def can_clip(self) -> bool:
        """Whether `clip` is available: PyTorch's fused AdamW can scale gradients as it reads them."""
        return type(self._inner) is torch.optim.AdamW and bool(self._inner.defaults.get("fused"))

    def clip(self, limit: float | None) -> torch.Tensor:
        """Limit the norm of the gradient in the next optimizer step, and return the norm before clipping.

        Args:
            limit: None or 0: do not clip.
        """
        norms = [norm for table in self._tables if (norm := table.gradient_norm()) is not None]
        gradients = [parameter.grad for parameter in self._trained if parameter.grad is not None]
        norms += torch._foreach_norm(gradients) if gradients else []
        norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
        factor = torch.clamp(limit / (norm + 1e-6), max=1.0) if limit else torch.ones_like(norm)
        self._inner.grad_scale = 1 / factor
        self._factor = float(factor) if self._tables else 1.0
        return norm

    @torch.no_grad()
    def gradients(self) -> dict[str, torch.Tensor]:
        """Return copies of the clipped gradients that `step` will apply, by parameter name. Call this after `clip`."""
        scale = float(1 / self._inner.grad_scale) if hasattr(self._inner, "grad_scale") else 1.0
        gradients = {name: p.grad * scale for name, p in self.model.named_parameters() if p.grad is not None}
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for table in self._tables:
            if (sparse := table.gradient()) is not None:
                gradient = torch.zeros_like(table.table).index_add_(0, sparse[0], sparse[1] * scale)
                gradients[names[id(table.table)]] = gradient
        return gradients

    def step(self) -> None:
        """Take one optimizer step and clear the gradient."""
        for table in self._tables:
            table.step(self._factor)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._factor = 1.0
        vars(self._inner).pop("grad_scale", None)
        increment_version(self._trained)  # fused optimizers do not, and copies of weights depend on it

    def discard_gradient(self) -> None:
        """Clear the gradient without taking a step."""
        self.model.zero_grad(set_to_none=True)
        for table in self._tables:
            table.pending.clear()

    def sync(self) -> None:
        """Apply all updates that lazy tables have postponed. Call this before reading the weights."""
        for table in self._tables:
            table.sync_all()

    def _make_others_dense(self) -> None:
        """Apply the missed updates of tables that were lazy in an earlier part of the run but are not lazy now."""
        lazy = {id(table.table) for table in self._tables}
        for parameter in self._trained:
            if id(parameter) not in lazy and "seen" in self._inner.state.get(parameter, {}):
                SparseAdamWTable(parameter, self._inner).make_dense()


def _is_fused_adamw(optimizer: Any) -> bool:
    """Return whether lazy tables can reproduce the steps of an optimizer."""
    options = optimizer.defaults
    return type(optimizer) is torch.optim.AdamW and bool(options["fused"]) and not (options["amsgrad"] or options["maximize"])


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
