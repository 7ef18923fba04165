"""One interface to predictors and translators, for requests."""

from typing import Any

from nlp_transfer.data.sources.in_memory import read_inputs
from nlp_transfer.inference.predictor import Predictor
from nlp_transfer.inference.translator import Translator, text_faults
from nlp_transfer.tasks import task_name
from nlp_transfer.utils.errors import Problems, UserError


class ServedModel:
    """A saved model that predicts the rows of requests.

    Args:
        predictor: The loaded model.
        name: Name of the model, for its users.
    """

    def __init__(self, predictor: Predictor, name: str) -> None:
        self.predictor, self.name = predictor, name
        self.task, traits = predictor.task, predictor.task.traits
        self.task_name: str = task_name(self.task)
        self.inputs: list[str] = self.task.inputs
        self.has_probabilities = traits.has_probabilities
        self.translator = Translator(predictor) if traits.command == "translate" else None

    def read(self, inputs: Any) -> dict[str, list[Any]]:
        """Return the columns of the rows of a request.

        Args:
            inputs: Texts, lists of texts, or dicts of cells; see `Predictor`.

        Raises:
            UserError: The inputs cannot be predicted.
        """
        rows, _ = read_inputs(inputs, self.inputs, self.task.traits.word_lists)
        if self.translator is not None:
            for index, fault in text_faults(rows.columns[self.inputs[0]]).items():
                raise UserError(fault.at(f"texts, row {index + 1}"))
        else:
            self.task.check(rows, problems := Problems(), targets=False)
            problems.raise_if_any()
        return {name: list(cells) for name, cells in rows.columns.items()}

    def predict(self, columns: dict[str, list[Any]], probabilities: bool) -> list[dict[str, Any]]:
        """Return the predictions of columns that were read, as `load_predictor` returns them."""
        if self.translator is not None:
            return [{self.task.traits.output: text} for text in self.translator(columns)]
        return self.predictor(columns, probabilities)
