"""Greedy and beam search (Graves 2012, 1211.3711; length penalty as in Wu et al. 2016, 1609.08144) over a shrinking batch.

They find what the loops inside transformers' `generate` find, and do less for it: rows that are finished leave the batch, so no
row is computed on until the longest one ends; the source's keys and values are computed once a row, not once a beam; and they
stay where they are when beams change places, since all beams of a row look at the same source. Given to `generate` as its
`custom_generate`, which prepares the encoder's states, the cache and the processors of scores.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import EncoderDecoderCache

NEVER = -1e9  # a score below all others
SHARE = 8  # one row in so many must be finished before the others are copied together

Keep = Callable[[torch.Tensor], None]


class DecoderState:
    """A decoder over rows of which some leave: their states, and what they have said so far."""

    def __init__(self, model: Any, cache: EncoderDecoderCache, states: torch.Tensor, mask: torch.Tensor, output: Any) -> None:
        """`states` are the encoder's, of shape (rows, source tokens, width); `mask` int64 of shape (rows, source tokens).

        `output` is the family's own type of encoder outputs: its decoder may ask for fields that others have not (NLLB-MoE).
        """
        self.model, self.cache, self.states, self.mask, self.output = model, cache, states, mask, output

    def scores(self, tokens: torch.Tensor) -> torch.Tensor:
        """fp32 of shape (rows, vocabulary): the logits of what follows `tokens`, int64 of shape (rows, 1).

        Raises:
            FloatingPointError: those of a row are NaN or infinite.
        """
        found = self.model(
            encoder_outputs=self.output(last_hidden_state=self.states), attention_mask=self.mask, decoder_input_ids=tokens,
            past_key_values=self.cache, use_cache=True, return_dict=True,
        )  # fmt: skip
        scores: torch.Tensor = found.logits[:, -1].float()
        if not bool(torch.isfinite(scores.amax(-1)).all()):  # a NaN among a row's scores is its maximum
            raise FloatingPointError("the scores of the next token are NaN or infinite")
        return scores

    def widen(self, beams: int) -> None:
        """Each row `beams` times, side by side."""
        self.cache.batch_repeat_interleave(beams)
        self.states, self.mask = self.states.repeat_interleave(beams, 0), self.mask.repeat_interleave(beams, 0)

    def follow(self, parents: Any, kept: Any = None) -> None:
        """Each row goes on from what the row at `parents` (int64) said; it has the same source. `kept` (int64): only these
        stay."""
        self.cache.self_attention_cache.reorder_cache(parents if kept is None else parents[kept])
        if kept is not None:
            self.cache.cross_attention_cache.batch_select_indices(kept)
            self.states, self.mask = self.states[kept], self.mask[kept]


def search(
    model: Any, input_ids: torch.Tensor, logits_processor: Any, generation_config: Any, keep: Keep | None, fill: int, **given: Any
) -> torch.Tensor:
    """Target ids, int64 of shape (rows, longest), from the decoder's start on; `fill` stands behind what is shorter.

    Args:
        input_ids: int64 of shape (rows x beams, tokens): what every target begins with.
        keep: is told which rows x beams (int64) are left, for processors that know them; None: no row may leave.
        given: `encoder_outputs`, `attention_mask` and `past_key_values`, as `generate` prepares them.
    """
    beams = generation_config.num_beams
    ends = torch.as_tensor(generation_config.eos_token_id, device=input_ids.device).reshape(-1)
    states, mask = given["encoder_outputs"].last_hidden_state[::beams], given["attention_mask"][::beams]
    decoding = DecoderState(model, given["past_key_values"], states, mask, type(given["encoder_outputs"]))
    if beams == 1:
        return _greedy(decoding, input_ids, logits_processor, ends, keep, fill)
    return _beams(decoding, input_ids, logits_processor, ends, keep, fill, generation_config)


def _leaving(done: torch.Tensor, keep: Keep | None) -> bool:
    """Whether enough rows (`done`: bool, (rows,)) are finished to copy the others together."""
    return keep is not None and int(done.sum()) * SHARE >= len(done)


def _greedy(
    decoding: DecoderState, ids: torch.Tensor, processors: Any, ends: torch.Tensor, keep: Keep | None, fill: int
) -> torch.Tensor:
    whole: list[torch.Tensor] = [ids[row] for row in range(len(ids))]
    rows = torch.arange(len(ids), device=ids.device)
    done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    while True:
        chosen = processors(ids, decoding.scores(ids[:, -1:])).argmax(-1)
        ids = torch.cat((ids, torch.where(done, fill, chosen)[:, None]), 1)
        done = done | torch.isin(chosen, ends)
        every = bool(done.all())
        if every or _leaving(done, keep):
            for place in done.nonzero().flatten().tolist():
                whole[rows[place]] = ids[place]
            if every:
                return _together(whole, fill)
            assert keep is not None
            left = (~done).nonzero().flatten()
            decoding.follow(torch.arange(len(ids), device=ids.device), left)
            keep(left)
            ids, rows, done = ids[left], rows[left], done[left]


def _beams(
    decoding: DecoderState, ids: torch.Tensor, processors: Any, ends: torch.Tensor, keep: Keep | None, fill: int, settings: Any
) -> torch.Tensor:
    """Each row has `beams` open targets, the best first, and as many finished ones; what is open and what is finished are sorted
    by log-probability, the latter divided by a power of its length."""
    beams, device = settings.num_beams, ids.device
    begun = ids.shape[1]
    number = len(ids) // beams
    candidates = max(2, 1 + len(ends)) * beams  # so many that enough stay open where the best ones all end
    whole: list[torch.Tensor] = [ids[0]] * number
    rows = torch.arange(number, device=device)
    open_ids = ids.view(number, beams, begun)
    open_scores = torch.full((number, beams), NEVER, device=device)
    open_scores[:, 0] = 0.0  # at first all beams are the same
    best = [ids[0]] * number  # the best finished target, and the scores of all finished ones
    finished = torch.full((number, beams), NEVER, device=device)
    ended = torch.zeros((number, beams), dtype=torch.bool, device=device)
    done = torch.zeros(number, dtype=torch.bool, device=device)
    first = decoding.scores(ids[::beams, -1:]).repeat_interleave(beams, 0)
    decoding.widen(beams)
    while True:
        length = open_ids.shape[2]
        flat = open_ids.reshape(-1, length)
        logits = first if length == begun else decoding.scores(flat[:, -1:])
        scores = processors(flat, logits.log_softmax(-1)).view(len(rows), beams, -1) + open_scores[:, :, None]
        words = scores.shape[2]
        found, places = scores.flatten(1).topk(candidates)
        parents, tokens = places // words, places % words
        ending = torch.isin(tokens, ends)

        # Finished: only what is among the best `beams` candidates, and nothing any more in rows that are done.
        closing = ending.clone()
        closing[:, beams:] = False
        reached = found / (length + 1 - begun) ** settings.length_penalty
        reached = reached + NEVER * (~closing) + NEVER * done[:, None]
        merged, order = torch.cat((finished, reached), 1).topk(beams)
        ended = torch.cat((ended, closing), 1).gather(1, order)
        finished = merged
        for row in (order[:, 0] >= beams).nonzero().flatten().tolist():
            place = int(order[row, 0]) - beams
            best[row] = torch.cat((open_ids[row, parents[row, place]], tokens[row, place, None]))

        # Open: the best ones that do not end.
        open_scores, order = (found + NEVER * ending).topk(beams)
        parents, tokens = parents.gather(1, order), tokens.gather(1, order)
        open_ids = torch.cat((open_ids.gather(1, parents[:, :, None].expand(-1, -1, length)), tokens[:, :, None]), 2)

        # A row is done where its best open target, at its present length, is worse than all that are finished.
        possible = open_scores[:, :1] / (length + 1 - begun) ** settings.length_penalty
        worst = torch.where(ended, finished.amin(1, keepdim=True), NEVER)
        done = done | ~(possible > worst).any(1) | ending.all(1)
        if settings.early_stopping is True:
            done = done | ended.all(1)
        every = bool(done.all())
        flat_parents = (parents + torch.arange(len(rows), device=device)[:, None] * beams).flatten()
        if not every and not _leaving(done, keep):
            decoding.follow(flat_parents)
            continue
        for place in done.nonzero().flatten().tolist():
            whole[rows[place]] = best[place]
        if every:
            return _together(whole, fill)
        assert keep is not None
        left = (~done).nonzero().flatten()
        kept = (left[:, None] * beams + torch.arange(beams, device=device)).flatten()
        decoding.follow(flat_parents, kept)
        keep(kept)
        best = [best[place] for place in left.tolist()]
        rows, open_ids, open_scores, finished, ended, done = (
            part[left] for part in (rows, open_ids, open_scores, finished, ended, done)
        )


def _together(whole: list[torch.Tensor], fill: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(whole, batch_first=True, padding_value=fill)
