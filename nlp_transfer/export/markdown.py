"""Words of users in Markdown: nothing in them may become markup."""


def plain_text(text: str) -> str:
    """As text: what would be markup is shown as it stands."""
    return "".join(f"\\{mark}" if mark in "\\`*_{}[]<>#|!" else mark for mark in " ".join(text.split()))


def code(text: str) -> str:
    """As code; a back-tick in it would end it."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"


def row(cells: list[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def python(lines: list[str]) -> list[str]:
    """A block of code."""
    return ["```python", *lines, "```", ""]
