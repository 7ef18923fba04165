"""What strategies share that train on top of a fixed part of the model."""

from dataclasses import replace

from transformers import PreTrainedModel

from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.models.cached_features import CachePoint, Where, cache_tables
from nlp_transfer.models.feature_replay import check_replay, enable_replay
from nlp_transfer.strategies import Job
from nlp_transfer.utils.errors import UserError


def on_cached_features(job: Job, model: PreTrainedModel, point: CachePoint, where: Where) -> Job:
    """The job with what the part below the cache point makes of each row, and the model set to start there.

    Raises:
        UserError: rows change from epoch to epoch, or the family does not run as the cache point supposes.
    """
    if job.training.augment is not None:
        raise UserError(
            "strategy.cache: features are computed once, and training.augment changes the texts in every epoch; allowed: none, "
            "or training.augment: null"
        )
    if any(type(table) is not TokenTable for table in job.tables.values()):
        raise UserError("strategy.cache: another strategy of the list has tables of its own, which are not cached; allowed: none")
    enable_replay(model, point)
    check_replay(model, job.tables["train"], point, job.device)
    used = {name: table for name, table in job.tables.items() if name != "test"}  # test is scored once, on what was saved
    return replace(job, tables=job.tables | cache_tables(model, used, point, job.device, job.precision, where))
