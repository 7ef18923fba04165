"""HTML pages and Markdown files from Jinja2 templates; text of users never becomes markup."""

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

MARKDOWN_SYNTAX = re.compile(r"[\\`*{}\[\]<>#|!&~]|(?<!\w)_|_(?!\w)")


def one_line(text: str) -> str:
    """Return the text on one line; characters that cannot be printed become U+FFFD."""
    return "".join(character if character.isprintable() else "\ufffd" for character in " ".join(text.split()))


def escape_markdown(value: object) -> Markup:
    """Return a value as Markdown text in which every special character is escaped."""
    return value if isinstance(value, Markup) else Markup(MARKDOWN_SYNTAX.sub(r"\\\g<0>", one_line(str(value))))


def code_span(values: object) -> Markup:
    """Return a value, or each of a list, as inline code in Markdown. A backtick would end it, and becomes an apostrophe."""
    items: Iterable[object] = values if isinstance(values, list) else [values]
    return Markup(", ".join(f"`{one_line(str(item)).replace('`', chr(39))}`" for item in items))


def render_html(template: str, **values: Any) -> str:
    """Fill in a template of an HTML page."""
    return _environment(autoescape=True).get_template(template).render(values)


def render_markdown(template: str, **values: Any) -> str:
    """Fill in a template of a Markdown file. Values are escaped except for `Markup`; the filter `code` makes inline code."""
    return _environment(autoescape=False).get_template(template).render(values)


@cache
def _environment(autoescape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("nlp_transfer.report"), autoescape=autoescape, finalize=None if autoescape else escape_markdown,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["code"] = code_span
    return environment
