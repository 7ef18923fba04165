"""Names that installed packages give to their tasks, strategies and metrics.

A package declares them as entry points, for example in its `pyproject.toml`:

    [project.entry-points."nlp_transfer.strategies"]
    my_strategy = "my_package.strategies:MyStrategy"

Only the metadata of installed packages are read here; `registry.load` imports the module when the name is used.
"""

from typing import Literal, NamedTuple

from nlp_transfer.settings.extensions import installed_packages
from nlp_transfer.utils.errors import UserError

Kind = Literal["task", "strategy", "metric"]
GROUPS: dict[Kind, str] = {"task": "nlp_transfer.tasks", "strategy": "nlp_transfer.strategies", "metric": "nlp_transfer.metrics"}


class EntryPoint(NamedTuple):
    """The object to which a name refers, as `package.module:NAME`, and the distribution that declares the name."""

    target: str
    distribution: str


def names(kind: Kind) -> list[str]:
    """Return the sorted names that installed packages declare."""
    return sorted(_entry_points(kind))


def find(kind: Kind, name: str, setting: str) -> EntryPoint | None:
    """Return the entry point with a name; None if no package declares it.

    Args:
        setting: The setting that contains the name, for messages.

    Raises:
        UserError: Several packages declare the name.
    """
    declared = _entry_points(kind).get(name, [])
    if len(declared) > 1:
        choices = " and ".join(f"{entry.distribution} ({entry.target})" for entry in declared)
        raise UserError(
            f"{setting}: found {name}, which several installed packages declare: {choices}; allowed: one of these in full, such "
            f"as {declared[0].target}"
        )
    return declared[0] if declared else None


def _entry_points(kind: Kind) -> dict[str, list[EntryPoint]]:
    """Return the entry points by name. A package that is installed in two places counts once."""
    declared: dict[str, dict[EntryPoint, None]] = {}
    for package in installed_packages():
        for entry in package.entry_points.select(group=GROUPS[kind]):
            declared.setdefault(entry.name, {})[EntryPoint(entry.value.replace(" ", ""), package.name)] = None
    return {name: list(entries) for name, entries in declared.items()}
