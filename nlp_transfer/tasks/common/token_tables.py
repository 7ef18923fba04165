"""Tokenize rows for a task."""

from functools import partial

from transformers import PreTrainedTokenizerBase

from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.token_cache import CachePolicy, cached_table, is_cached, tokenizer_fingerprint
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.settings.registry import is_user_defined
from nlp_transfer.tasks.common.task import Task


def encode_table(
    task: Task,
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    policy: CachePolicy = "none",
    targets: bool = True,
    name: str = "rows",
) -> TokenTable:
    """Tokenize checked rows, or load their tokens from the cache."""
    encode, key = partial(task.encode, tokenizer=tokenizer, targets=targets), None
    # Tokens of user-defined tasks are not cached, since the cache key does not depend on the code of the task.
    if is_cached(rows, policy) and len(rows) and not is_user_defined(task):
        known = tokenizer_fingerprint(tokenizer), encode(next(rows.batches(1))).key
        settings = {setting: value for setting, value in task.document().items() if setting not in task.traits.untokenized}
        key = None if None in known else {"task": settings, "tokens": known, "targets": targets}
    return cached_table(rows, encode, key, policy, name)
