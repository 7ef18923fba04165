"""AdamW for embedding tables, whose rows are moved only when they are needed.

In a step almost no row of a vocabulary occurs, yet AdamW moves all of them: by what is left of their momentum, and by decay. Half
of the parameters of a small encoder are such rows. Here a row is brought up to date when it is looked up again (and all of them
before they are evaluated or saved as best): the moves it has missed are geometric series, so one multiplication makes up for any
number of steps. The result is dense AdamW's up to rounding, which `tests/equivalence/test_rows.py` shows.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

SYNC_INTERVAL = 128  # after so many steps every row is brought up to date: what is remembered of past steps then has an end
Pending = list[tuple[torch.Tensor, torch.Tensor]]


class _Lookup(torch.autograd.Function):
    """Rows of a table; their gradients are handed over in place of a gradient as large as the table."""

    @staticmethod
    def forward(
        ctx: Any, table: torch.Tensor, places: torch.Tensor, rows: torch.Tensor, padding: int | None, pending: Pending
    ) -> torch.Tensor:
        ctx.padding, ctx.pending = padding, pending
        ctx.save_for_backward(places, rows)
        return table[rows][places]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        places, rows = ctx.saved_tensors
        width = gradients[0].shape[-1]
        total = torch.zeros(len(rows), width).index_add_(0, places.flatten(), gradients[0].reshape(-1, width).float())
        if ctx.padding is not None:
            total[rows == ctx.padding] = 0
        ctx.pending.append((rows, total))
        return None, None, None, None, None


class SparseAdamWTable:
    """One embedding table (vocabulary, width) in fp32 on the CPU, and its part of an optimiser.

    The moments stand in the optimiser's own state of the table, under AdamW's names; `seen` (int32, vocabulary) is the step at
    which a row was last up to date, `rates` (float32) the learning rates of the latest steps. So a checkpoint holds all of it.
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
        self.state["seen"] = self.state["seen"].int()  # optimisers that load a state give all of it the type of the weights

    @property
    def steps(self) -> int:
        return int(self.state["step"])

    def lookup(self, ids: torch.Tensor, padding: int | None) -> torch.Tensor:
        """The rows with these ids (any shape), up to date: (..., width), fp32. The gradient of row `padding` is dropped."""
        rows, places = torch.unique(ids, return_inverse=True)
        self.sync(rows)
        return _Lookup.apply(self.table, places, rows, padding, self.pending)

    def gradient(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The rows (int64) that occurred since the last step and their gradients; null: there were none."""
        if len(self.pending) > 1:  # several micro-batches, or several look-ups in one pass
            rows, places = torch.unique(torch.cat([rows for rows, _ in self.pending]), return_inverse=True)
            total = torch.zeros(len(rows), self.table.shape[1])
            total.index_add_(0, places, torch.cat([gradient for _, gradient in self.pending]))
            self.pending[:] = [(rows, total)]
        return self.pending[0] if self.pending else None

    def gradient_norm(self) -> torch.Tensor | None:
        """Of the gradient. Where the table got a gradient from elsewhere too, both are in that one, and this is null."""
        found = self.gradient()
        if found is None or self.table.grad is None:
            return None if found is None else torch.linalg.vector_norm(found[1])
        self.table.grad.index_add_(0, *found)
        self.pending.clear()
        return None

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """AdamW's step for the rows that occurred, their gradients multiplied by `factor`. Called before the optimiser's own."""
        now = self.steps + 1
        if now % SYNC_INTERVAL == 0 or self.table.grad is not None:
            self.sync_all()
        self.state["rates"] = torch.cat([self.state["rates"], torch.tensor([self.group["lr"]])])[-2 * SYNC_INTERVAL :]
        if self.table.grad is not None:  # the optimiser itself moves all of them
            self.state["seen"].fill_(now)
            return
        self.state["step"] += 1
        if (found := self.gradient()) is None:
            return
        rows, gradient = found[0], found[1] * factor
        group, (first, second) = self.group, self.group["betas"]
        mean = self.state["exp_avg"][rows].lerp_(gradient, 1 - first)
        square = self.state["exp_avg_sq"][rows].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        weights = self.table[rows].mul_(1 - group["lr"] * group["weight_decay"])
        below = square.sqrt().div_((1 - second**now) ** 0.5).add_(group["eps"])
        weights.addcdiv_(mean, below, value=-group["lr"] / (1 - first**now))
        for whole, part in ((self.table, weights), (self.state["exp_avg"], mean), (self.state["exp_avg_sq"], square)):
            whole.index_copy_(0, rows, part)
        self.state["seen"].index_fill_(0, rows, now)
        self.pending.clear()

    def sync_all(self) -> None:
        """Brings every row up to date."""
        self.sync(torch.arange(len(self.table), device=self.table.device))

    def make_dense(self) -> None:
        """Makes it a table like any other: up to date, and moved by the optimiser from now on."""
        self.sync_all()
        del self.state["seen"], self.state["rates"]

    @torch.no_grad()
    def sync(self, rows: torch.Tensor) -> None:
        """Makes up for the steps that rows have missed: with no gradient, moments shrink and weights move by what is left.

        On any device: a table of a run that began on a CPU may be on a GPU when the run is resumed.
        """
        now, seen = self.steps, self.state["seen"]
        rows = rows[seen[rows] < now]
        if not len(rows):
            return
        since, which = torch.unique(seen[rows], return_inverse=True)
        which = which.cpu()  # factors are float64, which not every device has
        kept, moved, eps, missed = (torch.from_numpy(values)[which, None] for values in self._missed(since.cpu().numpy(), now))
        factors = (kept, moved, eps, *(beta**missed for beta in self.group["betas"]))
        kept, moved, eps, of_mean, of_square = (factor.float().to(rows.device) for factor in factors)
        mean, square = self.state["exp_avg"][rows], self.state["exp_avg_sq"][rows]
        change = mean * moved / square.sqrt().add_(eps)
        self.table.index_copy_(0, rows, self.table[rows].mul_(kept).sub_(change))
        self.state["exp_avg"].index_copy_(0, rows, mean.mul_(of_mean))
        self.state["exp_avg_sq"].index_copy_(0, rows, square.mul_(of_square))
        seen.index_fill_(0, rows, now)

    def _missed(self, since: np.ndarray, now: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """For rows up to date at each step `since`: the share of the weights that decay has left, the factor on mean / root of
        square that sums up all moves, the eps that belongs to it, and the number of missed steps; float64 each.

        In the k-th missed step a weight moves by lr / c1 * b1^k m / (sqrt(b2^k v) / sqrt(c2) + eps), with the bias corrections
        c1 and c2 of that step. Over the one root of v this is a factor times m / (sqrt(v) + e), where e is eps as that step sees
        it from v. Only e differs between steps, and so little that its mean will do.
        """
        (first, second), eps = self.group["betas"], self.group["eps"]
        steps = np.arange(int(since.min()) + 1, now + 1)
        rates = self.state["rates"].cpu().numpy()[-len(steps) :].astype(np.float64)
        left = np.concatenate([[0.0], np.cumsum(np.log1p(-rates * self.group["weight_decay"]))])  # before each step, and after
        k = steps - since[:, None]
        corrected, shrunk = np.sqrt(1 - second**steps), second ** (np.maximum(k, 0) / 2)
        weight = (
            (k > 0) * rates / (1 - first**steps) * first ** np.maximum(k, 0) * corrected / shrunk * np.exp(left[-1] - left[1:])
        )
        total = weight.sum(1)
        mean_eps = (weight * (eps * corrected / shrunk)).sum(1) / np.maximum(total, 1e-300)
        kept = np.exp(left[-1] - left[since - steps[0] + 1])
        return kept, total, np.maximum(mean_eps, eps * 1e-3), (now - since).astype(np.float64)
