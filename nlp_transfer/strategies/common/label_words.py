"""Descriptions of labels in words."""

from collections.abc import Mapping, Sequence

from nlp_transfer.utils.errors import UserError, did_you_mean


def describe_labels(labels: Sequence[str], descriptions: Mapping[str, str], setting: str) -> list[str]:
    """Return a description of each label. Default: its name, with underscores replaced by spaces.

    Args:
        setting: The setting that contains the descriptions, for messages.

    Raises:
        UserError: If there is a description of an unknown label.
    """
    for name in descriptions:
        if name not in labels:
            known = f"{', '.join(labels[:8])}{' ...' if len(labels) > 8 else ''}"
            raise UserError(f"{setting}: there is no label {name!r}{did_you_mean(name, labels)}; known: {known}")
    return [descriptions.get(label) or " ".join(label.replace("_", " ").split()) or label for label in labels]
