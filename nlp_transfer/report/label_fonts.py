"""Labels in PNG files: installed fonts that have their characters, and readable names of labels that no font can draw."""

from collections.abc import Iterable, Sequence
from functools import cache

from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font

from nlp_transfer.report.plots import STYLE
from nlp_transfer.report.rendering import one_line

FONT = str(STYLE["font.family"])
PLACEHOLDERS = "Last Resort"  # a font that draws a box for each character


def find_fonts(labels: Iterable[str]) -> tuple[list[str], set[str]]:
    """Return the font families that together draw labels, the font of all plots first, and the characters that none has."""
    default = characters_of(findfont(FontProperties(family=[FONT])))
    missing = {character for label in labels for character in one_line(label)} - default
    families = [FONT]
    installed = [entry for entry in fontManager.ttflist if not entry.name.startswith(PLACEHOLDERS)]
    entries = sorted(installed, key=lambda entry: (entry.style != "normal", entry.weight != 400, entry.name, entry.fname))
    for entry in entries if missing else ():
        if found := missing & characters_of(entry.fname):
            families.append(entry.name)
            missing -= found
    return families, missing


@cache
def characters_of(path: str) -> frozenset[str]:
    """Return the characters of a font file; none for a font without outlines, such as a bitmap font of emoji."""
    try:
        font = FT2Font(path)
        return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
    except (OSError, RuntimeError):  # the file was removed, or is damaged
        return frozenset()


def drawable(labels: Sequence[str], missing: set[str]) -> tuple[list[str], str]:
    """Replace labels that contain characters without a glyph by `#1`, `#2`, ...: their places in `labels`.

    Returns:
        The labels to draw, and a line that says what the numbers mean; empty if there are none.
    """
    numbers = {i: f"#{i + 1}" for i, label in enumerate(labels) if missing & set(one_line(label))}
    names = [numbers.get(i, label) for i, label in enumerate(labels)]
    return names, ", ".join(f"{number}: {one_line(labels[i])}" for i, number in numbers.items())
