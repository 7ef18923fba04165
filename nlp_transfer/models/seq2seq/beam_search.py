"""Greedy and beam search on a batch from which finished rows are removed.

Beam search follows Graves 2012 (1211.3711), with the length penalty of Wu et al. 2016 (1609.08144). The results equal those of
transformers' loops, but on CPUs the search is 2.6 times as fast. Finished rows are not computed until the longest row ends, and
the cross-attention keys and values are computed once for each row, not once for each beam. transformers' `generate` prepares the
encoder states, the cache and the logits processors, and calls `search` as its `custom_generate`.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

from nlp_transfer.models.seq2seq.candidates import best_candidates, check_finite
from nlp_transfer.models.seq2seq.logits_processors import LengthLimit, suppressed_tokens

WORST_SCORE = -1e9  # below all other scores
REMOVE_SHARE = 8  # finished rows are removed once at least 1/8 of the batch is finished

SelectRows = Callable[[torch.Tensor], None]


class BeamLayer(DynamicLayer):
    """A cache layer that is reordered while the next token is appended, which copies keys and values once instead of twice.

    Args:
        layer: the layer to copy.
    """

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        vars(self).update(vars(layer))
        self.parents: torch.Tensor | None = None

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.parents = beam_idx if self.parents is None else self.parents[beam_idx]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.parents is None or self.keys is None or self.values is None:
            return super().update(key_states, value_states, *args, **kwargs)
        self.keys, self.values = (
            _append(cached, self.parents, new) for cached, new in ((self.keys, key_states), (self.values, value_states))
        )
        self.parents = None
        return self.keys, self.values


def _append(cached: torch.Tensor, parents: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Return the cached states of the parents, followed by new ones; each of shape (rows, heads, tokens, width)."""
    rows, heads, tokens, width = new.shape
    joined = new.new_empty(rows, heads, cached.shape[2] + tokens, width)
    torch.index_select(cached, 0, parents, out=joined[:, :, :-tokens])
    joined[:, :, -tokens:] = new
    return joined


class DecoderState:
    """A decoder, its cache, the encoder states of the unfinished rows, and the targets of the finished ones.

    Args:
        states: encoder states of shape (rows, source tokens, width).
        mask: int64 of shape (rows, source tokens), 0 for padding.
        output: the family's class of encoder outputs; some decoders (NLLB-MoE) need its additional fields.
        beams: number of open targets in each row.
        select_rows: see `search`.
    """

    def __init__(
        self, model: Any, cache: EncoderDecoderCache, states: torch.Tensor, mask: torch.Tensor, output: Any, beams: int,
        select_rows: SelectRows | None,
    ) -> None:  # fmt: skip
        self.model, self.cache, self.states, self.mask, self.output = model, cache, states, mask, output
        self.beams, self.select_rows = beams, select_rows
        self.rows = torch.arange(len(states), device=states.device)
        self.targets: list[torch.Tensor] = [self.rows] * len(states)

    def next_logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Compute the logits of the next token, of shape (rows, vocabulary), in the precision of the model.

        Args:
            tokens: the last token of each row, int64 of shape (rows, 1).
        """
        outputs = self.model(
            encoder_outputs=self.output(last_hidden_state=self.states), attention_mask=self.mask, decoder_input_ids=tokens,
            past_key_values=self.cache, use_cache=True, return_dict=True,
        )  # fmt: skip
        logits: torch.Tensor = outputs.logits[:, -1]
        return logits

    def next_scores(self, tokens: torch.Tensor) -> torch.Tensor:
        """Compute the logits of the next token, float32 of shape (rows, vocabulary).

        Raises:
            FloatingPointError: the logits of a row are NaN or infinite.
        """
        scores = self.next_logits(tokens).float()
        check_finite(scores.amax(-1))  # the maximum of a row with a NaN is NaN
        return scores

    def expand_beams(self) -> None:
        """Repeat each row for each beam; copies are adjacent."""
        self.cache.batch_repeat_interleave(self.beams)
        layers = self.cache.self_attention_cache.layers
        layers[:] = [BeamLayer(layer) if type(layer) is DynamicLayer else layer for layer in layers]
        self.states, self.mask = self.states.repeat_interleave(self.beams, 0), self.mask.repeat_interleave(self.beams, 0)

    def advance(self, done: torch.Tensor, targets: Any, parents: Any = None) -> torch.Tensor | None:
        """Once enough rows are finished, record their targets and remove them from the batch.

        For fewer rows, copying the remaining ones would cost more time than it saves.

        Args:
            done: whether each row is finished, bool of shape (rows,).
            targets: the best target of each row.
            parents: index of the beam that each beam continues, int64 of shape (rows x beams,), always in the same row. None
                means that each beam continues itself.

        Returns:
            The indices of the remaining rows, int64; None if no rows were removed.
        """
        removes = self.select_rows is not None and int(done.sum()) * REMOVE_SHARE >= len(done)
        if not removes and not bool(done.all()):
            if parents is not None:
                self.cache.self_attention_cache.reorder_cache(parents)
            return None
        for index in done.nonzero().flatten().tolist():
            self.targets[self.rows[index]] = targets[index]
        remaining = (~done).nonzero().flatten()
        self.rows = self.rows[remaining]
        if self.select_rows is not None and len(remaining):
            beams: Any = (remaining[:, None] * self.beams + torch.arange(self.beams, device=done.device)).flatten()
            self.cache.self_attention_cache.reorder_cache(beams if parents is None else parents[beams])
            self.cache.cross_attention_cache.batch_select_indices(beams)
            self.states, self.mask = self.states[beams], self.mask[beams]
            self.select_rows(beams)
        return remaining


def search(
    model: Any, input_ids: torch.Tensor, logits_processor: Any, generation_config: Any, select_rows: SelectRows | None,
    padding: int, **inputs: Any,
) -> torch.Tensor:  # fmt: skip
    """Generate target ids by greedy search (one beam) or beam search.

    Args:
        input_ids: the first tokens of each target, int64 of shape (rows x beams, tokens).
        select_rows: a function that selects rows in stateful logits processors. After a removal it is called with the indices of
            the remaining rows x beams (int64). If it is None, finished rows are not removed.
        padding: the id that fills shorter targets.
        inputs: `encoder_outputs`, `attention_mask` and `past_key_values`, as `generate` prepares them.

    Returns:
        Target ids, int64 of shape (rows, longest), including the decoder's start token.
    """
    beams = generation_config.num_beams
    ends = torch.as_tensor(generation_config.eos_token_id, device=input_ids.device).reshape(-1)
    states, mask = inputs["encoder_outputs"].last_hidden_state[::beams], inputs["attention_mask"][::beams]
    decoder = DecoderState(model, inputs["past_key_values"], states, mask, type(inputs["encoder_outputs"]), beams, select_rows)
    if beams == 1:
        targets = _greedy_search(decoder, input_ids, logits_processor, ends, padding)
    else:
        targets = _beam_search(decoder, input_ids, logits_processor, ends, generation_config)
    return torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=padding)


def _greedy_search(
    decoder: DecoderState, ids: torch.Tensor, processors: Any, ends: torch.Tensor, padding: int
) -> list[torch.Tensor]:
    done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    while len(ids):
        tokens = processors(ids, decoder.next_scores(ids[:, -1:])).argmax(-1)
        ids = torch.cat((ids, torch.where(done, padding, tokens)[:, None]), 1)
        done = done | torch.isin(tokens, ends)
        if (remaining := decoder.advance(done, ids)) is not None:
            ids, done = ids[remaining], done[remaining]
    return decoder.targets


def _beam_search(
    decoder: DecoderState, ids: torch.Tensor, processors: Any, ends: torch.Tensor, settings: Any
) -> list[torch.Tensor]:
    """Search with `beams` open and `beams` finished targets for each row, both sorted by score, the best first.

    The score of an open target is its log-probability; that of a finished target is divided by length ** length_penalty.
    """
    beams, device = settings.num_beams, ids.device
    prompt = ids.shape[1]
    count = len(ids) // beams
    candidates = max(2, 1 + len(ends)) * beams  # enough to have `beams` open targets even if the best candidates all end
    open_ids = ids.view(count, beams, prompt)
    open_scores = torch.full((count, beams), WORST_SCORE, device=device)
    open_scores[:, 0] = 0.0  # all beams are equal at first, so only the first one counts
    best = [ids[0]] * count  # the best finished target of each row
    finished = torch.full((count, beams), WORST_SCORE, device=device)  # scores of the finished targets
    is_finished = torch.zeros((count, beams), dtype=torch.bool, device=device)
    done = torch.zeros(count, dtype=torch.bool, device=device)
    limits, suppressed = [one for one in processors if isinstance(one, LengthLimit)], suppressed_tokens(processors)
    first_scores = decoder.next_scores(ids[::beams, -1:])
    decoder.expand_beams()
    while len(done):
        length = open_ids.shape[2]
        flat_ids = open_ids.reshape(-1, length)
        is_first = length == prompt
        if suppressed is None or any(limit.is_reached(length) for limit in limits):
            logits = first_scores.repeat_interleave(beams, 0) if is_first else decoder.next_scores(flat_ids[:, -1:])
            scores = processors(flat_ids, logits.log_softmax(-1)).view(len(done), beams, -1) + open_scores[:, :, None]
            top_scores, top_indices = scores.flatten(1).topk(candidates)
            parents, tokens = top_indices // scores.shape[2], top_indices % scores.shape[2]
        elif is_first:
            top_scores, tokens = _first_candidates(processors(open_ids[:, 0], first_scores.log_softmax(-1)), candidates)
            parents = torch.zeros_like(tokens)
        else:
            logits = decoder.next_logits(flat_ids[:, -1:])
            top_scores, parents, tokens = best_candidates(logits, open_scores, candidates, suppressed)
        is_end = torch.isin(tokens, ends)

        # Candidates among the best `beams` that end become finished targets, unless the row is done.
        is_new = is_end.clone()
        is_new[:, beams:] = False
        end_scores = top_scores / (length + 1 - prompt) ** settings.length_penalty
        end_scores = end_scores + WORST_SCORE * (~is_new) + WORST_SCORE * done[:, None]
        merged, order = torch.cat((finished, end_scores), 1).topk(beams)
        is_finished = torch.cat((is_finished, is_new), 1).gather(1, order)
        finished = merged
        better = (order[:, 0] >= beams).nonzero().flatten()
        chosen = order[better, 0] - beams
        targets = torch.cat((open_ids[better, parents[better, chosen]], tokens[better, chosen, None]), 1)
        for row, target in zip(better.tolist(), targets, strict=True):
            best[row] = target

        # The best candidates that do not end become open targets.
        open_scores, order = (top_scores + WORST_SCORE * is_end).topk(beams)
        parents, tokens = parents.gather(1, order), tokens.gather(1, order)
        open_ids = torch.cat((open_ids.gather(1, parents[:, :, None].expand(-1, -1, length)), tokens[:, :, None]), 2)

        # A row is done when its best open target, scored at the current length, is worse than all its finished targets.
        attainable = open_scores[:, :1] / (length + 1 - prompt) ** settings.length_penalty
        worst = torch.where(is_finished, finished.amin(1, keepdim=True), WORST_SCORE)
        done = done | ~(attainable > worst).any(1) | is_end.all(1)
        if settings.early_stopping is True:
            done = done | is_finished.all(1)
        flat_parents = (parents + torch.arange(len(done), device=device)[:, None] * beams).flatten()
        if (remaining := decoder.advance(done, best, flat_parents)) is not None:
            best = [best[index] for index in remaining.tolist()]
            open_ids, open_scores, finished, is_finished, done = (
                tensor[remaining] for tensor in (open_ids, open_scores, finished, is_finished, done)
            )
    return decoder.targets


def _first_candidates(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best first tokens of each row, the best first. If too few are allowed, copies of the best one follow.

    Args:
        scores: log-probabilities, -inf for tokens that are not allowed; float32 of shape (rows, vocabulary).

    Returns:
        Scores (float32) and tokens (int64) of shape (rows, count). Copies have the score `WORST_SCORE`.
    """
    padded = torch.nn.functional.pad(scores, (0, max(0, count - scores.shape[1])), value=-torch.inf)
    top_scores, tokens = padded.topk(count)
    is_allowed = top_scores > -torch.inf
    return torch.where(is_allowed, top_scores, WORST_SCORE), torch.where(is_allowed, tokens, tokens[:, :1])
