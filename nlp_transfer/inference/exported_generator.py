"""Models that were exported to CTranslate2, and are called like transformers' encoder-decoders."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from nlp_transfer.inference.exported_model import Exported, opening
from nlp_transfer.models.seq2seq.tokenizer_pair import TokenizerPair
from nlp_transfer.models.verification.reduced_configs import reduce_generation
from nlp_transfer.models.verification.untrusted_json import read_json
from nlp_transfer.utils.errors import UserError

# Generation settings without a counterpart, and their neutral values.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1.0), "encoder_repetition_penalty": (None, 1.0), "encoder_no_repeat_ngram_size": (None, 0),
    "exponential_decay_length_penalty": (None,), "sequence_bias": (None,), "begin_suppress_tokens": (None,),
    "guidance_scale": (None, 1.0), "num_beam_groups": (None, 1), "watermarking_config": (None,),
}  # fmt: skip


class ExportedGenerator(Exported):
    """An exported encoder-decoder, which takes token ids and returns token ids.

    Attributes:
        generation_config: Settings of generation of the trained model.
        sources, tokens: The source and the target vocabulary; CTranslate2 takes and returns tokens instead of ids.
    """

    has_logits = False

    def __init__(self, config: Any, backend: str, graph: Path, precision: str) -> None:
        super().__init__(config, backend, graph)
        with opening(backend, graph):
            import ctranslate2

            self.generation_config = GenerationConfig.from_dict(
                reduce_generation(read_json(graph.parents[1] / "generation_config.json"))[0]
            )
            ctranslate2.set_log_level(logging.ERROR)  # it warns of computing bf16 weights in fp32
            self.translator = ctranslate2.Translator(str(graph.parent), "cpu", intra_threads=torch.get_num_threads())
            settings = json.loads((graph.parent / "config.json").read_text(encoding="utf-8"))
            self.starts = settings["decoder_start_token"] is not None
            self.sources, self.tokens = (read_vocabulary(graph.parent, side) for side in ("source", "target"))
        check_settings(self.generation_config)
        self.ids = {token: i for i, token in enumerate(self.tokens)}

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def generate(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, generation_config: Any, logits_processor: Sequence[Any],
        **arguments: Any,
    ) -> torch.Tensor:  # fmt: skip
        """Return target ids, int64 of shape (rows, longest), with the start token and filled with end tokens.

        Args:
            input_ids, attention_mask: int64 of shape (rows, tokens).
            generation_config: Settings of the search.
            logits_processor: One `LengthLimit`.
            arguments: Ignored.

        Raises:
            FloatingPointError: A score is NaN or infinite.
        """
        beams, start, end = generation_config.num_beams, generation_config.decoder_start_token_id, self._end(generation_config)
        limits = logits_processor[0].limits[::beams].numpy()
        rows_and_masks = zip(input_ids, attention_mask.bool(), strict=True)
        sources = [[self.sources[i] for i in row[mask].tolist()] for row, mask in rows_and_masks]
        forced = generation_config.forced_bos_token_id
        prefix = [] if self.starts else [self.tokens[start]]
        prefix += [] if forced is None else [self.tokens[forced]]
        targets: list[torch.Tensor] = [torch.tensor([start, end])] * len(sources)

        def search(rows: np.ndarray, limit: int) -> None:
            """Generate the targets of these rows, of at most `limit` tokens; the start token counts."""
            results = self.translator.translate_batch(
                [sources[i] for i in rows], [prefix] * len(rows) if prefix else None, max_decoding_length=limit - 1,
                return_scores=True, **self._options(generation_config),
            )  # fmt: skip
            for i, result in zip(rows, results, strict=True):
                if not np.isfinite(result.scores[0]):
                    raise FloatingPointError("the scores of the next token are NaN or infinite")
                targets[i] = torch.tensor([start, *(self.ids[token] for token in result.hypotheses[0]), end])

        # One call per limit would make small batches, so limits are rounded up to powers of 2; only targets that become too
        # long are generated again with their own limit.
        rounded = np.exp2(np.ceil(np.log2(limits))).astype(int)
        for limit in np.unique(rounded[limits > 1]):
            search(np.flatnonzero((rounded == limit) & (limits > 1)), int(limit))
        too_long = (np.array(list(map(len, targets))) > limits) & (limits > 1) & (limits < rounded)
        for limit in np.unique(limits[too_long]):
            search(np.flatnonzero(too_long & (limits == limit)), int(limit))
        return torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=end)

    def _options(self, settings: Any) -> dict[str, Any]:
        """Return the options of `translate_batch` for generation settings of transformers."""
        suppressed = [*(settings.bad_words_ids or ()), *([i] for i in settings.suppress_tokens or ())]
        return {
            "beam_size": settings.num_beams,
            "length_penalty": settings.length_penalty,
            "no_repeat_ngram_size": settings.no_repeat_ngram_size or 0,
            "min_decoding_length": max((settings.min_length or 0) - 1, settings.min_new_tokens or 0, 0),
            "max_input_length": 0,  # no limit; texts are truncated before
            "suppress_sequences": [[self.tokens[i] for i in ids] for ids in suppressed] or None,
        }

    def _end(self, settings: Any) -> int:
        return int(torch.as_tensor(settings.eos_token_id).reshape(-1)[0])


def tokenizers_of(predictor: Any) -> TokenizerPair:
    """Return the tokenizers of a predictor whose model generates text."""
    tokenizers: TokenizerPair = predictor.task.tokenizers
    return tokenizers


def read_vocabulary(folder: Path, side: str) -> list[str]:
    """Return the tokens of a CTranslate2 model, in the order of their ids; `side` is `source` or `target`."""
    shared = folder / "shared_vocabulary.json"
    path = shared if shared.is_file() else folder / f"{side}_vocabulary.json"
    tokens: list[str] = json.loads(path.read_text(encoding="utf-8"))
    return tokens


def check_settings(settings: Any) -> None:
    """Raise a UserError if CTranslate2 cannot generate texts with these generation settings of transformers."""
    for name, neutral in UNSUPPORTED.items():
        if (value := getattr(settings, name, None)) not in neutral:
            raise UserError(
                f"generation_config.json: found {name}: {value}, which CTranslate2 computes in another way or not at all; "
                f"allowed: {neutral[-1]}"
            )
