"""Lazy AdamW for embedding tables: rows are updated only when they are needed.

A step looks up few rows of an embedding table, but AdamW updates all rows, because of momentum and weight decay. In a small
encoder, these rows are half of the parameters. This implementation updates a row when it is next looked up, and all rows before
evaluation and saving. The missed updates of a row form a geometric series, so one multiplication replaces any number of missed
steps. The result equals that of dense AdamW up to rounding (`tests/equivalence/test_rows.py`).
"""

from typing import Any

import numpy as np
import torch
from torch import nn

SYNC_INTERVAL = 128  # number of steps between updates of all rows; it limits the number of stored learning rates
Pending = list[tuple[torch.Tensor, torch.Tensor]]
"""For each lookup, the row indices (int64) and the gradients of these rows (fp32, of shape (rows, width))."""


class _Lookup(torch.autograd.Function):
    """Looks up rows of a table. Collects the gradients of these rows instead of computing a gradient of the entire table."""

    @staticmethod
    def forward(
        ctx: Any, table: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor, padding: int | None, pending: Pending
    ) -> torch.Tensor:
        ctx.padding, ctx.pending = padding, pending
        ctx.save_for_backward(positions, rows)
        return table[rows][positions]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        positions, rows = ctx.saved_tensors
        width = gradients[0].shape[-1]
        total = torch.zeros(len(rows), width).index_add_(0, positions.flatten(), gradients[0].reshape(-1, width).float())
        if ctx.padding is not None:
            total[rows == ctx.padding] = 0
        ctx.pending.append((rows, total))
        return None, None, None, None, None


class SparseAdamWTable:
    """Sparse AdamW updates of one embedding table, fp32 of shape (vocabulary, width) on the CPU.

    All state is in the optimizer state of the table, and therefore in checkpoints. It consists of the moments of AdamW; `seen`
    (int32, of shape (vocabulary,)), the step in which each row was last updated; and `rates` (fp32), the most recent learning
    rates.
    """

    def __init__(self, table: nn.Parameter, optimizer: torch.optim.AdamW) -> None:
        self.table, self.optimizer = table, optimizer
        self.group = next(group for group in optimizer.param_groups if any(other is table for other in group["params"]))
        self.pending: Pending = []
        self.state = optimizer.state[table]
        if "exp_avg" not in self.state:
            self.state["step"] = torch.zeros(())
            self.state["exp_avg"], self.state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
        if "seen" not in self.state:
            self.state["seen"] = torch.full((len(table),), self.steps, dtype=torch.int32)
            self.state["rates"] = torch.zeros(0)
        self.state["seen"] = self.state["seen"].int()  # `load_state_dict` converts it to the type of the weights

    @property
    def steps(self) -> int:
        """Number of optimizer steps taken."""
        return int(self.state["step"])

    def lookup(self, ids: torch.Tensor, padding: int | None) -> torch.Tensor:
        """Update the rows of token ids and return them, fp32 of shape (*ids.shape, width). Row `padding` gets no gradient."""
        rows, positions = torch.unique(ids, return_inverse=True)
        self.sync(rows)
        return _Lookup.apply(self.table, positions, rows, padding, self.pending)

    def gradient(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the rows looked up since the last step (int64) and their gradients (fp32, (rows, width)). None: no lookups."""
        if len(self.pending) > 1:  # several micro-batches, or several lookups in one forward pass
            rows, positions = torch.unique(torch.cat([rows for rows, _ in self.pending]), return_inverse=True)
            total = torch.zeros(len(rows), self.table.shape[1])
            total.index_add_(0, positions, torch.cat([gradient for _, gradient in self.pending]))
            self.pending[:] = [(rows, total)]
        return self.pending[0] if self.pending else None

    def gradient_norm(self) -> torch.Tensor | None:
        """Return the norm of the gradient of the rows.

        If the table also has a dense gradient, add the gradient of the rows to it and return None.
        """
        sparse = self.gradient()
        if sparse is None or self.table.grad is None:
            return None if sparse is None else torch.linalg.vector_norm(sparse[1])
        self.table.grad.index_add_(0, *sparse)
        self.pending.clear()
        return None

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Update the rows that were looked up. Call this before the step of the optimizer.

        Args:
            factor: number by which gradients are multiplied, for clipping.
        """
        now = self.steps + 1
        if now % SYNC_INTERVAL == 0 or self.table.grad is not None:
            self.sync_all()
        self.state["rates"] = torch.cat([self.state["rates"], torch.tensor([self.group["lr"]])])[-2 * SYNC_INTERVAL :]
        if self.table.grad is not None:  # then the optimizer updates all rows
            self.gradient_norm()
            self.state["seen"].fill_(now)
            return
        self.state["step"] += 1
        if (sparse := self.gradient()) is None:
            return
        rows, gradient = sparse[0], sparse[1] * factor
        group, (beta1, beta2) = self.group, self.group["betas"]
        mean = self.state["exp_avg"][rows].lerp_(gradient, 1 - beta1)
        square = self.state["exp_avg_sq"][rows].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        weights = self.table[rows].mul_(1 - group["lr"] * group["weight_decay"])
        denominator = square.sqrt().div_((1 - beta2**now) ** 0.5).add_(group["eps"])
        weights.addcdiv_(mean, denominator, value=-group["lr"] / (1 - beta1**now))
        for tensor, updated in ((self.table, weights), (self.state["exp_avg"], mean), (self.state["exp_avg_sq"], square)):
            tensor.index_copy_(0, rows, updated)
        self.state["seen"].index_fill_(0, rows, now)
        self.pending.clear()

    def sync_all(self) -> None:
        """Apply the missed updates of all rows."""
        self.sync(torch.arange(len(self.table), device=self.table.device))

    def make_dense(self) -> None:
        """Apply the missed updates of all rows, and leave later updates to the optimizer."""
        self.sync_all()
        del self.state["seen"], self.state["rates"]

    @torch.no_grad()
    def sync(self, rows: torch.Tensor) -> None:
        """Apply the missed updates of rows. The table can be on any device, since a resumed run may use a GPU.

        In a missed step a row has no gradient: its moments decay, and its weights change by momentum and weight decay.
        """
        now, seen = self.steps, self.state["seen"]
        rows = rows[seen[rows] < now]
        if not len(rows):
            return
        since, inverse = torch.unique(seen[rows], return_inverse=True)
        inverse = inverse.cpu()  # the factors are float64, which some devices do not support
        decayed, moved, eps, missed = (
            torch.from_numpy(values)[inverse, None] for values in self._missed(since.cpu().numpy(), now)
        )
        factors = (decayed, moved, eps, *(beta**missed for beta in self.group["betas"]))
        decayed, moved, eps, of_mean, of_square = (factor.float().to(rows.device) for factor in factors)
        mean, square = self.state["exp_avg"][rows], self.state["exp_avg_sq"][rows]
        change = mean * moved / square.sqrt().add_(eps)
        self.table.index_copy_(0, rows, self.table[rows].mul_(decayed).sub_(change))
        self.state["exp_avg"].index_copy_(0, rows, mean.mul_(of_mean))
        self.state["exp_avg_sq"].index_copy_(0, rows, square.mul_(of_square))
        seen.index_fill_(0, rows, now)

    def _missed(self, since: np.ndarray, now: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Sum up the missed updates of rows that were last updated in the steps `since`.

        In the k-th missed step a weight moves by lr / c1 * b1^k m / (sqrt(b2^k v) / sqrt(c2) + eps), where m and v are the
        moments after the last update, and c1 and c2 are the bias corrections of the step. After factoring sqrt(b2^k / c2) out
        of the denominator, this is a factor times m / (sqrt(v) + e), with e = eps * sqrt(c2 / b2^k). Since e varies little from
        step to step, its weighted mean is used for all missed steps.

        Args:
            since: int of shape (n,), distinct steps.
            now: the current step.

        Returns:
            Four float64 arrays of shape (n,): the factor by which decay multiplies the weights; the sum of the factors on m /
            (sqrt(v) + e); e; and the number of missed steps.
        """
        (beta1, beta2), eps = self.group["betas"], self.group["eps"]
        steps = np.arange(int(since.min()) + 1, now + 1)
        rates = self.state["rates"].cpu().numpy()[-len(steps) :].astype(np.float64)
        # logarithm of the total decay before each step, and after the last step
        log_decay = np.concatenate([[0.0], np.cumsum(np.log1p(-rates * self.group["weight_decay"]))])
        k = steps - since[:, None]
        corrected, shrunk = np.sqrt(1 - beta2**steps), beta2 ** (np.maximum(k, 0) / 2)
        weight = (
            (k > 0)
            * rates
            / (1 - beta1**steps)
            * beta1 ** np.maximum(k, 0)
            * corrected
            / shrunk
            * np.exp(log_decay[-1] - log_decay[1:])
        )
        total = weight.sum(1)
        mean_eps = (weight * (eps * corrected / shrunk)).sum(1) / np.maximum(total, 1e-300)
        decayed = np.exp(log_decay[-1] - log_decay[since - steps[0] + 1])
        return decayed, total, np.maximum(mean_eps, eps * 1e-3), (now - since).astype(np.float64)
