"""Searches over a shrinking batch find what the loops inside `generate` find."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation import logits_process

from nlp_transfer.data.sources.rows import from_columns
from nlp_transfer.models.seq2seq import beam_search
from nlp_transfer.models.seq2seq.candidates import best_candidates
from nlp_transfer.models.seq2seq.generation import LengthLimit, configure_search, generate
from nlp_transfer.models.seq2seq.logits_processors import suppressed_tokens
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks import task_from
from tests.builders import opened
from tests.helpers.seq2seq_models import PAIRS, SEQ2SEQ, languages, save_tiny_seq2seq

pytestmark = pytest.mark.model

LIMITS = torch.tensor([5, 14, 9, 3, 12, 1, 11, 7, 4, 13, 6, 10])
LENGTHS = [3, 7, 5, 9, 4, 8, 6, 3, 9, 5, 7, 4]
SETTINGS: list[dict[str, Any]] = [
    {"beams": 1}, {"beams": 4}, {"beams": 4, "early_stopping": True}, {"beams": 3, "length_penalty": 2.0},
    {"beams": 3, "length_penalty": 0.0}, {"beams": 2, "no_repeat_ngram_size": 2},
    {"beams": 2, "encoder_no_repeat_ngram_size": 1},
]  # fmt: skip
FAMILIES = ["bert", *SEQ2SEQ]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """An untrained model of each family, with the two tokenizers of its task."""
    found = {}
    for family in FAMILIES:
        folder = save_tiny_seq2seq(family, tmp_path_factory.mktemp("tiny") / family)
        found[family] = _build(family, folder)
    return found


def _build(family: str, folder: Path) -> tuple[Any, Any]:
    train = from_columns({"source": [one for one, _ in PAIRS], "target": [other for _, other in PAIRS]}, "train")
    checkpoint = opened(folder)
    task: Any = task_from({"name": "translation", **languages(family)}).prepare(checkpoint, train)
    torch.manual_seed(3)
    model: Any = task.build_model(checkpoint, TrainingConfig()).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from the near-ties of small random weights
            parameter.mul_(2.0 if parameter.dim() > 1 else 1.0)
    return model, task.tokenizers


def _inputs(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return torch.randint(5, 30, mask.shape, generator=generator) * mask, mask


def _up_to_end(row: list[int], end: int) -> list[int]:
    """What follows the end is filling; some families begin with what others end with."""
    return row[: row.index(end, 1) + 1]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(f"{k}={v}" for k, v in settings.items()))
@pytest.mark.parametrize("family", FAMILIES)
def test_search_equals_transformers(
    family: str, settings: dict[str, Any], built: dict[str, tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizers = built[family]
    kept: list[int] = []
    keep = LengthLimit.select_rows
    monkeypatch.setattr(LengthLimit, "select_rows", lambda limit, rows: (kept.append(len(rows)), keep(limit, rows)))
    different, early = set(), 0
    for pull in (1.05, 1.2, 2.5):  # towards the end, the stronger the longer a target is: few would end by themselves
        found, wanted = _both(model, tokenizers, settings, pull)
        assert found == wanted
        different |= {tuple(row) for row in found}
        early += sum(1 < len(row) - 1 < limit for row, limit in zip(found, LIMITS.tolist(), strict=True))
    assert len(different) > 4
    assert early, "a row that ended by itself"
    assert bool(kept) == ("encoder_no_repeat_ngram_size" not in settings), "a processor that holds the sources of all rows"


def _both(model: Any, tokenizers: Any, settings: dict[str, Any], pull: float) -> tuple[list[list[int]], list[list[int]]]:
    """The ids that the toolkit finds, and those that transformers finds by itself."""
    own = dict(settings)
    beams, penalty = own.pop("beams"), own.pop("length_penalty", 1.0)
    before = model.generation_config
    model.generation_config = copy.deepcopy(before)
    model.generation_config.update(**own, exponential_decay_length_penalty=(1, pull))
    plain = copy.deepcopy(model.generation_config)
    configure_search(plain, beams, penalty)
    plain.max_length, plain.max_new_tokens = None, int(LIMITS.max())
    if tokenizers.shared_format:
        plain.decoder_start_token_id, plain.forced_bos_token_id = tokenizers.start, tokenizers.forced
    processors = LogitsProcessorList([LengthLimit(LIMITS, beams, tokenizers.end)])
    ids, mask = _inputs(model)
    try:
        with torch.inference_mode():
            found = generate(model, tokenizers, ids, mask, LIMITS, beams, penalty)
            wanted = model.generate(input_ids=ids, attention_mask=mask, generation_config=plain, logits_processor=processors)
    finally:
        model.generation_config = before
    return tuple([_up_to_end(row, tokenizers.end) for row in ids.tolist()] for ids in (found, wanted))  # type: ignore[return-value]


@pytest.mark.parametrize("beams", [2, 40])
@pytest.mark.parametrize("family", FAMILIES)
def test_search_does_not_depend_on_how_candidates_are_found(
    family: str, beams: int, built: dict[str, tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 beams have more candidates than the vocabulary has tokens."""
    model, tokenizers = built[family]
    settings = copy.deepcopy(model.generation_config)
    settings.update(eos_token_id=[tokenizers.end, *range(20, 26)], suppress_tokens=[7, 9])  # else few targets end by themselves
    monkeypatch.setattr(model, "generation_config", settings)
    ids, mask = _inputs(model)
    found = []
    for known in (suppressed_tokens, lambda _: None):
        monkeypatch.setattr(beam_search, "suppressed_tokens", known)
        with torch.inference_mode():
            found.append(generate(model, tokenizers, ids, mask, LIMITS + 2, beams, 1.0).tolist())
    assert found[0] == found[1]
    assert len({tuple(row) for row in found[0]}) > 2


@pytest.mark.parametrize("vocabulary", [7, 64, 200, 1000])
@pytest.mark.parametrize("suppressed", [[], [0, 3, 5]])
def test_best_candidates_are_those_of_the_whole_vocabulary(vocabulary: int, suppressed: list[int]) -> None:
    rows, beams, count = 4, 3, 6
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 5 * torch.randn(rows * beams, vocabulary, generator=generator)
    open_scores = -torch.rand(rows, beams, generator=generator)
    scores = logits.log_softmax(-1)
    scores[:, suppressed] = -torch.inf
    expected, indices = (scores.view(rows, beams, -1) + open_scores[:, :, None]).flatten(1).topk(count)
    found, parents, tokens = best_candidates(logits.clone(), open_scores, count, suppressed)
    torch.testing.assert_close(found, expected)
    assert torch.equal(parents * vocabulary + tokens, indices)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_candidates_of_broken_logits_are_refused(value: float) -> None:
    logits = torch.zeros(2, 100)
    logits[1, 99] = value
    with pytest.raises(FloatingPointError):
        best_candidates(logits, torch.zeros(1, 2), 4, [])


def test_only_suppressed_tokens_and_limits_need_no_whole_vocabulary() -> None:
    limit = LengthLimit(LIMITS, 2, end=1)
    banned = logits_process.NoBadWordsLogitsProcessor([[7]], eos_token_id=1)
    forced = [logits_process.ForcedBOSTokenLogitsProcessor(5), logits_process.ForcedEOSTokenLogitsProcessor(9, 1)]
    suppressed = logits_process.SuppressTokensLogitsProcessor([3, 4])
    assert suppressed_tokens([limit, banned, suppressed, *forced]) == [7, 3, 4]
    assert suppressed_tokens([limit, logits_process.NoBadWordsLogitsProcessor([[7, 8]], eos_token_id=1)]) is None
    assert suppressed_tokens([limit, logits_process.RepetitionPenaltyLogitsProcessor(1.2)]) is None
