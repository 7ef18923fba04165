"""Labels in words."""

from collections.abc import Mapping, Sequence

from nlp_transfer.utils.errors import UserError, did_you_mean


def in_words(labels: Sequence[str], given: Mapping[str, str], setting: str) -> list[str]:
    """A description of each label: the one that is given, else its name with spaces for underscores.

    Raises:
        UserError: a description is given for a label that there is not.
    """
    for name in given:
        if name not in labels:
            known = f"{', '.join(labels[:8])}{' ...' if len(labels) > 8 else ''}"
            raise UserError(f"{setting}: there is no label {name!r}{did_you_mean(name, labels)}; known: {known}")
    return [given.get(label) or " ".join(label.replace("_", " ").split()) or label for label in labels]
