"""Trim the vocabulary of a saved model: drop the tokens, and their embeddings, that given texts do not need.

Models for many languages have most of their parameters in the embeddings (Abdaoui et al. 2020, 2010.05609).
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoModelForMaskedLM

from nlp_transfer.data.sources import find_model
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.tokens import model_inputs
from nlp_transfer.export.covered_texts import TextReader, token_ids
from nlp_transfer.export.export_folder import PRETRAINING, new_folder, output_folder
from nlp_transfer.export.tokenizer_vocabulary import check_kind, replace_document, trimmed, without_limits
from nlp_transfer.export.vocabulary_rows import configured_ids, keep_rows, parameter_size
from nlp_transfer.inference.batched_prediction import predict_table
from nlp_transfer.inference.loading import load_predictor
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.models.layers import new_parameters, output_logits
from nlp_transfer.models.verification.allowed import TRIMMED_VOCABULARY
from nlp_transfer.saved_models.custom_models import is_built
from nlp_transfer.saved_models.load import find_adapter, hub_adapter, quiet
from nlp_transfer.saved_models.save import UnfaithfulError, is_adapted, save_model, versions
from nlp_transfer.tasks import Task, encode_table
from nlp_transfer.utils.atomic_files import write_json
from nlp_transfer.utils.console import Steps, percent, say
from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import UserError

BATCH, ENCODER_BATCH = 32, 4  # rows; a masked language model returns a logit for each token of the vocabulary
CHECKED_ROWS, ENCODER_ROWS, HELD_OUT_ROWS = 256, 32, 1000  # whose outputs or predictions are compared
TOLERANCE = 1e-6  # relative difference of the outputs on the given texts


@dataclass(frozen=True)
class TrimmedModel:
    """A model with a trimmed vocabulary.

    Attributes:
        folder: The model folder.
        report: The content of `trimmed_vocabulary.json`: what was measured before the folder was kept.
    """

    folder: Path
    report: dict[str, Any]


@dataclass(frozen=True)
class _Opened:
    """A loaded model; `task` is None for a pretrained encoder."""

    model: Any
    tokenizer: Any
    task: Task | None

    def batches(self, rows: Rows) -> Iterator[dict[str, torch.Tensor]]:
        if self.task:
            table = encode_table(self.task, rows, self.tokenizer, targets=False)
            for start in range(0, len(table), BATCH):
                yield table.batch(np.arange(start, min(start + BATCH, len(table))))
            return
        length = min(self.tokenizer.model_max_length, 128)
        for start in range(0, len(rows), ENCODER_BATCH):
            texts = list(rows.columns["text"][start : start + ENCODER_BATCH])
            yield dict(self.tokenizer(texts, truncation=True, max_length=length, padding=True, return_tensors="pt"))

    def outputs(self, rows: Rows, kept: Sequence[int] | slice = slice(None)) -> list[torch.Tensor]:
        """Return the logits of each batch, or the token states of an encoder without a head.

        Args:
            kept: tokens whose logits a masked language model returns.
        """
        outputs = []
        for batch in self.batches(rows):
            with torch.inference_mode():
                computed = self.model(**model_inputs(batch))
            if self.task:
                outputs.append(output_logits(computed).float())
            else:
                outputs.append(computed.logits[..., kept] if "logits" in computed else computed.last_hidden_state)
        return outputs

    def predictions(self, rows: Rows) -> list[str]:
        if self.task is None:
            return []
        table = encode_table(self.task, rows, self.tokenizer, targets=False)
        return list(map(str, predict_table(self.model, self.task, table)[0]["prediction"]))


def trim_vocabulary(
    model: str | Path,
    texts: Sequence[str | Path] = (),
    output: str | Path | None = None,
    columns: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> TrimmedModel:
    """Write a model folder without the tokens that the texts do not need.

    All texts must keep their tokens, and the model its outputs for them; else nothing is written.

    Args:
        model: a run folder, a model folder, an adapter folder or a hub id; also a pretrained encoder.
        texts: files that the vocabulary must cover. Empty: the training rows of the run.
        output: folder to write. None: `exports/trimmed` in the run folder.
        columns: columns with the texts. Empty: the input columns of the model, or `text`.
        data: settings in `data`, for reading files; `validation` is a file with other texts, to report how many of them have
            other tokens now. None: the validation split of the run.
        overwrite: whether to replace an existing folder.

    Raises:
        UserError: the model or its tokenizer cannot be trimmed, a file cannot be read, or the outputs would change.
    """
    folder = output_folder(model, "trimmed", TRIMMED_VOCABULARY, output, overwrite)
    opened = _open(str(model))
    document = _tokenizer_document(opened, str(model))
    reader = TextReader(opened.task, columns, data or {})
    given, held_out = reader.read(model, texts)
    checked = reader.sample(given, CHECKED_ROWS if opened.task else ENCODER_ROWS)
    other = None if held_out is None else reader.sample([held_out], HELD_OUT_ROWS)
    used = _used_ids(opened, reader, document, given, checked)
    old, vocabulary = without_limits(document), opened.tokenizer.get_vocab()
    document, kept = trimmed(document, used | configured_ids(opened.model))
    tokenizer = replace_document(opened.tokenizer, document)
    new = without_limits(json.loads(tokenizer.backend_tokenizer.to_str()))
    numbers = np.full(max(vocabulary.values()) + 1, -1)
    numbers[kept] = np.arange(len(kept))
    total = sum(map(len, given))
    if changed := sum(reader.changed(old, new, rows, numbers) for rows in given):
        raise UserError(
            f"model: {changed:,} of the {total:,} texts would have other tokens with the trimmed vocabulary of {model}, so this "
            "tokenizer cannot be trimmed; nothing was written"
        )
    outputs, predictions = opened.outputs(checked, kept), [] if other is None else opened.predictions(other)
    probe = next(opened.batches(checked.select(np.arange(min(2, len(checked))))))
    probe["input_ids"] = torch.from_numpy(numbers)[probe["input_ids"]]
    before = parameter_size(opened.model)
    keep_rows(opened.model, kept)
    after = parameter_size(opened.model)
    report: dict[str, Any] = {
        "texts": total,
        "tokens": {"before": len(vocabulary), "after": len(kept), "share": len(kept) / len(vocabulary)},
        **{name: {"before": before[name], "after": after[name]} for name in before},
    }
    with new_folder(folder) as partial:
        _save(opened, tokenizer, probe, partial, str(model), report)
        saved = _open(str(partial))
        report["output_difference"] = _difference(outputs, saved.outputs(checked))
        if not report["output_difference"] <= TOLERANCE:
            raise UserError(
                f"model: the outputs of {model} on the given texts would change by {report['output_difference']:.2g}; allowed: "
                f"{TOLERANCE:g}; nothing was written"
            )
        report["held_out"] = None
        if held_out is not None and other is not None and len(held_out):
            same = [a == b for a, b in zip(predictions, saved.predictions(other), strict=True)]
            report["held_out"] = {
                "texts": len(held_out),
                "changed_tokens": reader.changed(old, new, held_out, numbers) / len(held_out),
                "same_predictions": float(np.mean(same)) if same else None,
            }
        write_json(partial / TRIMMED_VOCABULARY, report | {"versions": versions()})
    _describe(report)
    return TrimmedModel(folder, report)


def _open(model: str) -> _Opened:
    """Load a model with its task, or a pretrained encoder."""
    if not (find_adapter(expand(model)) or hub_adapter(model)):
        checkpoint = Checkpoint.open(find_model(model))
        if not checkpoint.record and checkpoint.head in PRETRAINING:
            with quiet():
                encoder: Any = checkpoint.load(AutoModelForMaskedLM if checkpoint.head == "MaskedLM" else AutoModel)
            return _Opened(encoder.eval(), checkpoint.tokenizer, None)
    predictor = load_predictor(model, backend="torch")
    return _Opened(predictor.model.to("cpu"), predictor.tokenizer, predictor.task)


def _tokenizer_document(opened: _Opened, name: str) -> dict[str, Any]:
    """Return the tokenizer.json of a model.

    Raises:
        UserError: the vocabulary of the model cannot be trimmed.
    """
    if is_adapted(opened.model):
        raise UserError(f"model: {name} has an adapter that cannot be merged; allowed: a merged model, or the base model")
    if is_built(opened.model):
        raise UserError(f"model: {name} is a model of a user's class, which may use token ids anywhere; allowed: other models")
    if opened.task.traits.generates if opened.task else opened.model.config.is_encoder_decoder:
        raise UserError(
            f"model: {name} generates text, and could no longer write the tokens that are dropped; allowed: a model with a head, "
            "such as a classifier, or a pretrained encoder"
        )
    backend = getattr(opened.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"model: {name} has a {type(opened.tokenizer).__name__}, which is not fast; allowed: a tokenizer.json")
    document: dict[str, Any] = json.loads(backend.to_str())
    check_kind(document, name)
    return document


def _used_ids(opened: _Opened, reader: TextReader, document: Mapping[str, Any], given: Sequence[Rows], checked: Rows) -> set[int]:
    """Return the ids of all tokens of the texts, and of the inputs that the task makes of some rows."""
    used = {int(i) for batch in opened.batches(checked) for i in batch["input_ids"].unique()}
    backend = without_limits(document)
    with Steps("tokenizing", sum(len(rows) * len(rows.columns) for rows in given)) as progress:
        for rows in given:
            for _, texts, words in reader.blocks(rows):
                used.update(i for ids in token_ids(backend, texts, words) for i in ids)
                progress.advance(0 if words else len(texts))
    return used


def _save(
    opened: _Opened, tokenizer: Any, probe: dict[str, torch.Tensor], folder: Path, name: str, report: Mapping[str, Any]
) -> None:
    if opened.task is None:
        new = new_parameters(opened.model)  # such as a pooler that the checkpoint does not have
        weights = {key: value for key, value in opened.model.state_dict().items() if key not in new}
        with quiet():
            opened.model.save_pretrained(folder, state_dict=weights)
            tokenizer.save_pretrained(folder)
        return
    try:
        save_model(opened.model, tokenizer, opened.task, folder, probe)
    except UnfaithfulError as error:
        raise UserError(f"model: {name} cannot be trimmed: its outputs would change; nothing was written") from error
    source = next((place for place in (expand(name) / "model", expand(name)) if (place / "README.md").is_file()), None)
    if source is not None:
        tokens = report["tokens"]
        note = (
            f"\n## Trimmed vocabulary\n\n{tokens['after']:,} of {tokens['before']:,} tokens were kept. The metrics above were "
            "measured before that.\n"
        )
        (folder / "README.md").write_text((source / "README.md").read_text(encoding="utf-8") + note, encoding="utf-8")
        for plot in source.glob("plot_*.png"):
            shutil.copyfile(plot, folder / plot.name)


def _difference(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    """Return the largest difference of outputs, relative to the largest output or 1."""
    pairs = zip(before, after, strict=True)
    return max(float((old - new).abs().max() / old.abs().max().clamp(min=1)) for old, new in pairs)


def _describe(report: Mapping[str, Any]) -> None:
    tokens, size = report["tokens"], report["bytes"]
    say(
        f"vocabulary: {tokens['after']:,} of {tokens['before']:,} tokens are kept ({percent(tokens['share'])}); weights: "
        f"{size['before'] / 1e6:,.1f} MB before, {size['after'] / 1e6:,.1f} MB after; the {report['texts']:,} texts have "
        f"the same tokens, and outputs that differ by at most {report['output_difference']:.1g}"
    )
    if held_out := report["held_out"]:
        same = held_out["same_predictions"]
        agreement = "" if same is None else f"; {percent(same)} of the predictions are the same"
        say(f"of {held_out['texts']:,} other texts, {percent(held_out['changed_tokens'])} have other tokens{agreement}")
    else:
        say("texts with other words may get other tokens; for how many of them, give a file with --data.validation")
