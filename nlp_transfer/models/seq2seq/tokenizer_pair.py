"""The source and target tokenizers of a model that generates text, with the special tokens of its targets."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from transformers import PreTrainedTokenizerBase

from nlp_transfer.data.sources import ModelSource
from nlp_transfer.data.token_cache import tokenizer_fingerprint
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.models.compatibility import vocabulary_size
from nlp_transfer.models.seq2seq.target_tokenizers import (
    end_token,
    language_codes,
    language_prefix,
    set_languages,
    start_token,
    target_token,
)
from nlp_transfer.models.verification.model_files import load_tokenizer
from nlp_transfer.utils.errors import UserError, converted, shorten

PLAIN: dict[str, Any] = {"padding": False, "return_attention_mask": False, "verbose": False}
IGNORED = -100  # label of padding
TARGET_FOLDER = "target_tokenizer"


@dataclass(frozen=True)
class TokenizerPair:
    """The source and target tokenizers of a model that generates text, and its special tokens.

    Attributes:
        shared_format: whether `source` and `target` are the same tokenizer, the checkpoint's, which adds the special tokens of
            sources and of targets.
        start: id of the decoder's first input token.
        end: id of the token that ends a target.
        forced: the id of the target language, if it follows `start` in every target; else None.
        prefix: text added before every source.
    """

    source: PreTrainedTokenizerBase
    target: PreTrainedTokenizerBase
    shared_format: bool
    start: int
    end: int
    forced: int | None = None
    prefix: str = ""

    @classmethod
    def of_encoder_decoder(cls, source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase, prefix: str) -> Self:
        """Combine two tokenizers.

        Raises:
            UserError: the target tokenizer has no token that can start or end a text.
        """
        return cls(source, target, False, start_token(target), end_token(target), prefix=prefix)

    @classmethod
    def of_seq2seq(cls, checkpoint: Checkpoint, source_language: str | None, target_language: str | None, prefix: str) -> Self:
        """Use the tokenizer of a sequence-to-sequence checkpoint.

        The target language's token ends a target and starts the decoder (original mBART), or begins a target (later families).
        A trial text shows which of the two applies.

        Raises:
            UserError: a multilingual checkpoint does not know the languages.
        """
        tokenizer, config = checkpoint.tokenizer, checkpoint.config
        set_languages(tokenizer, source_language, target_language)
        prefix = language_prefix(tokenizer, target_language) + prefix
        ids = tokenizer(text_target="a", **PLAIN)["input_ids"]
        language = target_token(tokenizer, target_language)
        configured = getattr(config, "decoder_start_token_id", None)
        start = language if language is not None and ids[-1] == language else configured
        start = start_token(tokenizer) if start is None else int(start)
        forced = language if language is not None and ids[0] == language else None
        return cls(tokenizer, tokenizer, True, start, end_token(tokenizer), forced, prefix)

    @cached_property
    def fingerprint(self) -> Any:
        """Everything that determines the tokens, except the source tokenizer, as JSON; None if it is unknown."""
        target = tokenizer_fingerprint(self.target)
        return target and [target, self.shared_format, self.start, self.end, self.forced, self.prefix]

    def check_room(self, limit: int, longest: int | None) -> None:
        """Check that the prefix and the special tokens leave room for a text.

        Args:
            limit: maximum source tokens of the model.
            longest: the setting `task.longest_source`.

        Raises:
            UserError: the prefix and the special tokens leave no room.
        """
        used = len(self.source_ids([""], 1 << 30)[0][0])
        if self.prefix and used >= limit:
            raise UserError(
                f"task.prefix: found {shorten(self.prefix)}, {used} tokens including the special tokens; the model reads "
                f"texts of at most {limit}; allowed: a prefix that leaves room for a text"
            )
        if longest is not None and used >= longest:
            raise UserError(
                f"task.longest_source: found {longest}, but the prefix and the special tokens alone are {used}; allowed: "
                f"{used + 1} or more"
            )

    @property
    def language_settings(self) -> set[str]:
        """The language settings that this model uses; empty for a model with one pair of languages."""
        if not self.shared_format:
            return set()
        if language_codes(self.source):
            return {"source_language", "target_language"}
        return {"target_language"} if getattr(self.source, "supported_language_codes", None) else set()

    @property
    def pad(self) -> int:
        """The padding id of targets."""
        return int(self.target.pad_token_id or 0)

    def source_ids(self, texts: list[str], limit: int) -> tuple[list[list[int]], set[int]]:
        """Tokenize sources, with the prefix and the special tokens.

        Returns:
            At most `limit` ids for each text, and the rows that were truncated.
        """
        prefixed = [self.prefix + text for text in texts]
        ids = list(self.source(prefixed, truncation=False, **PLAIN)["input_ids"])
        truncated = {row for row, tokens in enumerate(ids) if len(tokens) > limit}
        for row in truncated:
            ids[row] = self.source(prefixed[row], truncation=True, max_length=limit, **PLAIN)["input_ids"]
        return ids, truncated

    def target_ids(self, texts: list[str], limit: int) -> tuple[list[list[int]], set[int]]:
        """Tokenize targets as labels.

        Returns:
            At most `limit` ids for each text, and the rows that were truncated. Truncated labels have no end token, so the model
            does not learn to stop early.
        """
        if self.shared_format:
            ids = self.target(text_target=texts, **PLAIN)["input_ids"]
        else:
            ids = [[*tokens, self.end] for tokens in self.target(texts, add_special_tokens=False, **PLAIN)["input_ids"]]
        return [tokens[:limit] for tokens in ids], {row for row, tokens in enumerate(ids) if len(tokens) > limit}

    def decoder_ids(self, labels: list[list[int]]) -> list[list[int]]:
        """Return the decoder's inputs for teacher forcing: the start token and all labels but the last."""
        return [[self.start, *tokens[:-1]] for tokens in labels]

    def decode(self, ids: torch.Tensor) -> list[str]:
        """Decode generated ids of shape (rows, tokens).

        The start token, the language token and everything from the end token on are removed explicitly, since the tokenizer may
        not list them as special tokens. Spaces are not cleaned up, since that would apply English rules to French punctuation.
        """
        rows = [self._text_ids(row) for row in ids.cpu().tolist()]
        with converted(f"model: the tokenizer {self.target.name_or_path} cannot decode the generated ids"):
            texts = self.target.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [text.strip() for text in texts]

    def _text_ids(self, row: list[int]) -> list[int]:
        ids = row[2:] if row[1:2] == [self.forced] else row[1:]
        return ids[: ids.index(self.end)] if self.end in ids else ids


def load_target_tokenizer(
    checkpoint: Checkpoint, parts: ModelSource | None = None, ours: bool = False
) -> PreTrainedTokenizerBase:
    """Load the target tokenizer of a saved encoder-decoder: the one in `target_tokenizer/`, or the checkpoint's only one.

    Args:
        parts: the model that contains `target_tokenizer/`. None means the checkpoint.
        ours: whether this toolkit saved the model, so that `target_tokenizer/` must exist.

    Raises:
        UserError: the folder is missing or damaged, or its tokenizer does not fit the decoder.
    """
    vocabulary = getattr(getattr(checkpoint.config, "decoder", None), "vocab_size", None)  # an adapter's base has no decoder
    try:
        target = load_tokenizer(parts or checkpoint.source, TARGET_FOLDER)
    except UserError:
        if ours or vocabulary != vocabulary_size(checkpoint.tokenizer):
            raise
        return checkpoint.tokenizer  # a model from another program, with one tokenizer for both
    if vocabulary not in (None, vocabulary_size(target)):
        raise UserError(
            f"model: {checkpoint.source.name} has a decoder for {vocabulary} tokens, but the tokenizer in {TARGET_FOLDER}/ has "
            f"{vocabulary_size(target)}, so one of them was changed; copy the model again"
        )
    return target
