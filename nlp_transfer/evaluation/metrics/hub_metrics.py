"""Load metrics from the Hugging Face Hub. They are third-party code."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from nlp_transfer.utils.errors import UserError, converted

if TYPE_CHECKING:
    import evaluate


def load_hub_metric(name: str, *, allow_hub_metrics: bool) -> evaluate.EvaluationModule:
    """Download a metric from the Hugging Face Hub and run its Python code.

    Args:
        name: Name for `evaluate.load`, such as `"rouge"` or `"user/metric"`.
        allow_hub_metrics: Whether code from the hub may be downloaded and run.

    Raises:
        UserError: `allow_hub_metrics` is False, the metric does not exist or cannot be downloaded, or `evaluate` would run a
            local file of that name instead.
    """
    if not allow_hub_metrics:
        raise UserError(
            f"training.hub_metrics: found {name!r}; a metric from the Hugging Face Hub is Python code written by others, which "
            "is downloaded and run on this machine. Read that code first; if you trust it, allow it with --allow-hub-metrics "
            "(in Python: allow_hub_metrics=True)"
        )
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or os.path.lexists(name):
        raise UserError(
            f"training.hub_metrics: found {name!r}, which is a path; code there would run instead of a metric from the hub. "
            "Allowed: NAME or ORG/NAME, where the current folder contains nothing with that name. To use your own metric, pass "
            "it in Python: fine_tune(..., metrics=[f])"
        )
    import evaluate

    from nlp_transfer.hub.client import guarded

    # The hub client, the network and the metric's code raise different types of errors.
    with converted(f"training.hub_metrics: cannot load {name!r} from the hub"), guarded(f"training.hub_metrics: {name}"):
        return evaluate.load(name)
