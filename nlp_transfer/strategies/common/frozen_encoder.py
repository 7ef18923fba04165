"""Feature caching for strategies with frozen layers."""

from dataclasses import replace

from transformers import PreTrainedModel

from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.models.cached_features import CachePoint, Where, cache_tables
from nlp_transfer.models.feature_replay import check_replay, enable_replay
from nlp_transfer.strategies import Job
from nlp_transfer.utils.errors import UserError


def with_cached_features(job: Job, model: PreTrainedModel, point: CachePoint, where: Where) -> Job:
    """Return the job with cached features instead of tokens, and make the forward pass of the model start from these features.

    Args:
        point: The layer whose output is cached.

    Raises:
        UserError: If texts change between epochs, or the model family cannot start from this layer.
    """
    if job.training.augment is not None:
        raise UserError(
            "strategy.cache: features are computed once, but training.augment changes the texts in every epoch; allowed: none, "
            "or training.augment: null"
        )
    if any(type(table) is not TokenTable for table in job.tables.values()):
        raise UserError(
            "strategy.cache: another strategy in the list changes the tables, so their features cannot be cached; allowed: none"
        )
    enable_replay(model, point)
    check_replay(model, job.tables["train"], point, job.device)
    used = {name: table for name, table in job.tables.items() if name != "test"}  # the test split is predicted only once
    return replace(job, tables=job.tables | cache_tables(model, used, point, job.device, job.precision, where))
