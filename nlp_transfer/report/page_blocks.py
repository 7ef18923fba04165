"""The building blocks of a report page, which its template shows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from markupsafe import Markup

from nlp_transfer.report.rendering import one_line

LONGEST_TEXT = 600  # characters of a text from the data


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        share: Length of a bar behind the text, from 0 to 1. None: no bar.
        is_long: Whether the text is wrapped.
    """

    text: str
    share: float | None = None
    is_long: bool = False


@dataclass(frozen=True)
class Block:
    """A part of a section. If it is folded, a reader has to open it."""

    kind: ClassVar[str]
    title: str = ""
    is_folded: bool = False


@dataclass(frozen=True)
class Paragraph(Block):
    """A paragraph; a caption is small and gray."""

    kind: ClassVar[str] = "text"
    text: str = ""
    is_caption: bool = False


@dataclass(frozen=True)
class Lines(Block):
    """A list of lines."""

    kind: ClassVar[str] = "list"
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Table(Block):
    """A table."""

    kind: ClassVar[str] = "table"
    head: Sequence[str] = ()
    rows: Sequence[Sequence[Cell]] = ()


@dataclass(frozen=True)
class Plot:
    """A plot with its caption.

    Attributes:
        inches: Width of a plot that takes a row of its own, which determines the size of its text. None: next to others.
    """

    caption: str
    svg: Markup
    inches: float | None = None


@dataclass(frozen=True)
class Plots(Block):
    """Plots next to each other, or below each other on a narrow screen."""

    kind: ClassVar[str] = "figures"
    figures: Sequence[Plot] = ()


@dataclass(frozen=True)
class Examples(Block):
    """Examples, each a list of names and texts."""

    kind: ClassVar[str] = "examples"
    examples: Sequence[Sequence[tuple[str, str]]] = ()


@dataclass(frozen=True)
class Section:
    """A section of a report page.

    Attributes:
        id: Target of links to the section.
    """

    id: str
    title: str
    blocks: list[Block] = field(default_factory=list)


def table(head: Sequence[str], rows: Sequence[Sequence[object]], title: str = "", is_folded: bool = False) -> Table:
    """Return a table whose cells may be plain values."""
    cells = [[cell if isinstance(cell, Cell) else Cell(str(cell)) for cell in row] for row in rows]
    return Table(title, is_folded, head, cells)


def shortened(text: object, longest: int = LONGEST_TEXT) -> str:
    """Return a text from the data on one line, truncated to `longest` characters."""
    line = one_line(str(text))
    return line if len(line) <= longest else f"{line[: longest - 1]}…"
