"""Words of users in Markdown: nothing in them may become markup."""

import re

MARKUP = re.compile(r"[\\`*{}\[\]<>#|!&~]|(?<!\w)_|_(?!\w)")


def one_line(text: str) -> str:
    """Without line ends, which would begin something new, and without control characters, which cannot be seen."""
    return "".join(mark if mark.isprintable() else "\ufffd" for mark in " ".join(text.split()))


def plain_text(text: str) -> str:
    """As text: what would be markup is shown as it stands. A low line inside a word is none."""
    return MARKUP.sub(r"\\\g<0>", one_line(text))


def code(text: str) -> str:
    """As code; a back-tick in it would end it."""
    return f"`{one_line(text).replace('`', chr(39))}`"


def row(cells: list[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(map(plain_text, cells))} |"


def python(lines: list[str]) -> list[str]:
    """A block of code."""
    return ["```python", *lines, "```", ""]
