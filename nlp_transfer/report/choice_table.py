"""The table of a choice between strategies (`strategy: auto`), for the terminal and the report."""

from collections.abc import Mapping
from typing import Any

from nlp_transfer.utils.console import duration, number


def choice_table(choice: Mapping[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """Return the title, the header and the rows of the table.

    Args:
        choice: content of `strategy_choice.json`.
    """
    title = (
        f"trials on {choice['training_rows']:,} of {choice['rows']:,} training rows, scored on {choice['held_out_rows']:,} "
        f"held-out rows ({choice['folds']} fold{'s' if choice['folds'] > 1 else ''})"
    )
    head = ["strategy", choice["metric"], "95 % interval", "to the best (95 %)", "training", "note"]
    return title, head, [_cells(candidate) for candidate in choice["candidates"]]


def _cells(row: Mapping[str, Any]) -> list[str]:
    difference = "" if row["difference"] is None else f"{row['difference']:+.4f}"
    if row["difference_low"] is not None:
        difference += f" ({row['difference_low']:+.4f} to {row['difference_high']:+.4f})"
    interval = "" if row["low"] is None else f"{number(row['low'])} to {number(row['high'])}"
    value = "" if row["value"] is None else number(row["value"])
    return [row["label"], value, interval, difference, "" if row["seconds"] is None else duration(row["seconds"]), row["note"]]
