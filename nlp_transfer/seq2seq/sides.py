"""The two sides of a translation: their tokenizers, and what begins and ends a target."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import PreTrainedTokenizerBase

from nlp_transfer.models import Checkpoint
from nlp_transfer.seq2seq.tokenizers import end_token, language_prefix, set_languages, start_token, target_token

PLAIN: dict[str, Any] = {"padding": False, "return_attention_mask": False, "verbose": False}
IGNORED = -100  # a label that stands for padding


@dataclass(frozen=True)
class Sides:
    """Texts to ids and back. `own_format`: the checkpoint's one tokenizer serves both sides and knows their special tokens.

    `start` is what a decoder is given first; `forced` the token that every target then begins with, where languages have one.
    """

    source: PreTrainedTokenizerBase
    target: PreTrainedTokenizerBase
    own_format: bool
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
        if self.own_format:
            ids = self.target(text_target=texts, **PLAIN)["input_ids"]
        else:
            ids = [[*tokens, self.end] for tokens in self.target(texts, add_special_tokens=False, **PLAIN)["input_ids"]]
        return [tokens[:limit] for tokens in ids], {row for row, tokens in enumerate(ids) if len(tokens) > limit}

    def decoder_ids(self, labels: list[list[int]]) -> list[list[int]]:
        """What the decoder sees while it is to say `labels`: the start, and all but the last of them."""
        return [[self.start, *tokens[:-1]] for tokens in labels]

    def decode(self, ids: torch.Tensor) -> list[str]:
        """Ids of shape (rows, tokens), as generated, to texts."""
        found = self.target.batch_decode(ids.cpu().tolist(), skip_special_tokens=True)
        return [text.strip() for text in found]
