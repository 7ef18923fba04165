"""What a saved model answers to a file's rows, window by window: in the process that writes them, or in one of several."""

from pathlib import Path
from typing import Any

from nlp_transfer import inference, translator
from nlp_transfer.console import say
from nlp_transfer.errors import UserError
from nlp_transfer.export.load import load_predictor
from nlp_transfer.inference import PRECISION, Predictor
from nlp_transfer.sources.tables import Batch
from nlp_transfer.tasks import task_name
from nlp_transfer.training.device import inference_device
from nlp_transfer.translator import Translator, translates
from nlp_transfer.unused_settings import unused_columns
from nlp_transfer.writing import Columns


def open_predictor(
    model: str, settings: dict[str, Any], batch_size: int | None, precision: str, base: str | None = None
) -> Predictor:
    """Load a saved model; print the precision where that was left to this machine."""
    predictor = load_predictor(model, batch_size, precision, settings.get("task"), base)
    if precision == "auto":
        exact = "" if predictor.precision == PRECISION else f"; {PRECISION}, the default, is more exact"
        say(f"computing in {predictor.precision}, the fastest on this machine{exact}")
    return predictor


class Answers:
    """A saved model that answers windows of one file: `answers(window)`."""

    def __init__(
        self,
        model: str,
        source: Path,
        settings: dict[str, Any],
        batch_size: int | None,
        precision: str,
        probabilities: bool = False,
        translate: bool = False,
        beams: int | None = None,
        processes: int = 1,
        base: str | None = None,
    ) -> None:
        """Raises a UserError where the model cannot be used, does something else than what it is asked for, or is on a GPU that
        several processes would share."""
        if processes > 1 and (device := inference_device()) != "cpu":
            raise UserError(
                f"--processes: found {processes}; this machine computes on a GPU ({device}), which one process keeps busy; "
                "allowed: 1"
            )
        predictor = open_predictor(model, settings, batch_size, precision, base)
        if translate and not translates(predictor.task):
            raise UserError(
                f"{model}: is a {task_name(predictor.task)} model, which does not translate; use nlp-transfer predict"
            )
        if translates(predictor.task) and not translate:
            raise UserError(f"{model}: is a translation model; use nlp-transfer translate")
        if beams:
            predictor.task = predictor.task.model_copy(update={"beams": beams})
        if probabilities and predictor.task.answer_kind not in ("label", "labels"):
            raise UserError(f"--probabilities: {model} predicts numbers, which have none; leave it out")
        say(*unused_columns(predictor.task, source))
        self.predictor, self.source, self.probabilities = predictor, source, probabilities
        self.translator = Translator(predictor) if translate else None

    @property
    def window(self) -> int:
        """Rows that are answered together."""
        return inference.WINDOW if self.translator is None else translator.WINDOW

    @property
    def columns(self) -> list[str]:
        """Columns that the model reads."""
        return self.predictor.task.input_columns()

    def __call__(self, batch: Batch) -> tuple[Columns, int]:
        """The further columns of a window, and how many of its texts were translated in pieces.

        Raises:
            UserError: a row cannot be answered, or the file already has a column of that name.
        """
        if self.translator is not None:
            before = self.translator.in_pieces
            found = self.translator.translate_batch(batch, self.source)
            return found, self.translator.in_pieces - before
        return self.predictor.answer_batch(batch, self.source, self.probabilities), 0
