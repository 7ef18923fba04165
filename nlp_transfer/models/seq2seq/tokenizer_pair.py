"""The two tokenizers of a translation: their tokenizers, and what begins and ends a target."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import PreTrainedTokenizerBase

from nlp_transfer.data.sources import ModelSource
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
IGNORED = -100  # a label that stands for padding
TARGET_FOLDER = "target_tokenizer"


@dataclass(frozen=True)
class TokenizerPair:
    """Texts to ids and back. `shared_format`: the checkpoint's one tokenizer serves both tokenizers and knows their special tokens.

    `start` is what a decoder is given first; `forced` the token that every target then begins with, where languages have one.
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
        """Raises a UserError where the target's tokenizer has nothing to begin or to end with."""
        return cls(source, target, False, start_token(target), end_token(target), prefix=prefix)

    @classmethod
    def of_seq2seq(cls, checkpoint: Checkpoint, source_language: str | None, target_language: str | None, prefix: str) -> Self:
        """Raises a UserError where a multilingual checkpoint does not know the languages.

        Families put the target language's token in one of two places: the first mBART at the end of a target, and at the
        decoder's start; later ones at the beginning. What the tokenizer writes tells which.
        """
        tokenizer, config = checkpoint.tokenizer, checkpoint.config
        set_languages(tokenizer, source_language, target_language)
        prefix = language_prefix(tokenizer, target_language) + prefix
        written = tokenizer(text_target="a", **PLAIN)["input_ids"]
        code = target_token(tokenizer, target_language)
        usual = getattr(config, "decoder_start_token_id", None)
        start = code if code is not None and written[-1] == code else usual
        start = start_token(tokenizer) if start is None else int(start)
        forced = code if code is not None and written[0] == code else None
        return cls(tokenizer, tokenizer, True, start, end_token(tokenizer), forced, prefix)

    def check_room(self, limit: int, longest: int | None) -> None:
        """Raises a UserError where the prefix and the special tokens leave no token for a text."""
        taken = len(self.source_ids([""], 1 << 30)[0][0])
        if self.prefix and taken >= limit:
            raise UserError(
                f"task.prefix: found {shorten(self.prefix)}, {taken} tokens with the special ones, of at most {limit}; allowed: "
                "one that leaves room for a text"
            )
        if longest is not None and taken >= longest:
            raise UserError(
                f"task.longest_source: found {longest}, and the prefix and the special tokens alone are {taken}; allowed: "
                f"{taken + 1} or more"
            )

    @property
    def language_settings(self) -> set[str]:
        """Settings of a task by which the model chooses among languages; none where it translates in one direction."""
        if not self.shared_format:
            return set()
        if language_codes(self.source):
            return {"source_language", "target_language"}
        return {"target_language"} if getattr(self.source, "supported_language_codes", None) else set()

    @property
    def pad(self) -> int:
        """The target's padding."""
        return int(self.target.pad_token_id or 0)

    def source_ids(self, texts: list[str], limit: int) -> tuple[list[list[int]], set[int]]:
        """Ids of the sources with their special tokens, at most `limit`, and the rows that were cut."""
        whole = [self.prefix + text for text in texts]
        ids = list(self.source(whole, truncation=False, **PLAIN)["input_ids"])
        cut = {row for row, tokens in enumerate(ids) if len(tokens) > limit}
        for row in cut:
            ids[row] = self.source(whole[row], truncation=True, max_length=limit, **PLAIN)["input_ids"]
        return ids, cut

    def target_ids(self, texts: list[str], limit: int) -> tuple[list[list[int]], set[int]]:
        """Labels, at most `limit`, and the rows that were cut: without an end, so that they do not teach to stop early."""
        if self.shared_format:
            ids = self.target(text_target=texts, **PLAIN)["input_ids"]
        else:
            ids = [[*tokens, self.end] for tokens in self.target(texts, add_special_tokens=False, **PLAIN)["input_ids"]]
        return [tokens[:limit] for tokens in ids], {row for row, tokens in enumerate(ids) if len(tokens) > limit}

    def decoder_ids(self, labels: list[list[int]]) -> list[list[int]]:
        """What the decoder sees while it is to say `labels`: the start, and all but the last of them."""
        return [[self.start, *tokens[:-1]] for tokens in labels]

    def decode(self, ids: torch.Tensor) -> list[str]:
        """Ids of shape (rows, tokens), as generated, to texts.

        The start, the language and what follows the end go here: a tokenizer need not know that they are no text. Spaces stay
        as they were learned, also before French punctuation, which some tokenizers would put right as if it were English.
        """
        rows = [self._written(row) for row in ids.cpu().tolist()]
        with converted(f"model: the tokenizer {self.target.name_or_path} cannot decode what was generated"):
            found = self.target.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [text.strip() for text in found]

    def _written(self, row: list[int]) -> list[int]:
        written = row[2:] if row[1:2] == [self.forced] else row[1:]
        return written[: written.index(self.end)] if self.end in written else written


def load_target_tokenizer(
    checkpoint: Checkpoint, parts: ModelSource | None = None, ours: bool = False
) -> PreTrainedTokenizerBase:
    """The target's tokenizer of a saved encoder-decoder: beside it in `target_tokenizer/`, or the only one it has.

    Args:
        parts: where that folder is, if not beside the checkpoint.
        ours: whether the model is known to be saved by this toolkit, and so to have the folder.

    Raises:
        UserError: the folder is missing or damaged, or its tokenizer is not the one that the decoder was made for.
    """
    words = getattr(getattr(checkpoint.config, "decoder", None), "vocab_size", None)  # an adapter's base has no decoder
    try:
        target = load_tokenizer(parts or checkpoint.source, TARGET_FOLDER)
    except UserError:
        if ours or words != vocabulary_size(checkpoint.tokenizer):
            raise
        return checkpoint.tokenizer  # made elsewhere: it serves both tokenizers
    if words not in (None, vocabulary_size(target)):
        raise UserError(
            f"model: {checkpoint.source.name} has a decoder of {words} tokens, and in {TARGET_FOLDER}/ a tokenizer of "
            f"{vocabulary_size(target)}; one of the two was changed"
        )
    return target
