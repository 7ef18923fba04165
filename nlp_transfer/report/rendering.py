"""Render HTML pages and Markdown files from Jinja2 templates. User text is always escaped."""

import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

MARKDOWN_SYNTAX = re.compile(r"[\\`*{}\[\]<>#|!&~]|(?<!\w)_|_(?!\w)")


def one_line(text: str) -> str:
    """Return the text on one line, with unprintable characters replaced by U+FFFD."""
    return "".join(character if character.isprintable() else "\ufffd" for character in " ".join(text.split()))


def escape_markdown(value: object) -> Markup:
    """Return a value as Markdown text with all special characters escaped. `Markup` is returned unchanged."""
    return value if isinstance(value, Markup) else Markup(MARKDOWN_SYNTAX.sub(r"\\\g<0>", one_line(str(value))))


def code_span(values: object) -> Markup:
    """Return a value, or each value of a list, as inline code in Markdown. Backticks become apostrophes."""
    items: Iterable[object] = values if isinstance(values, list) else [values]
    return Markup(", ".join(f"`{one_line(str(item)).replace('`', chr(39))}`" for item in items))


def breakable(text: str) -> Markup:
    """Return escaped text whose lines may break after underscores, so that long labels do not break elsewhere."""
    return Markup(escape(text).replace("_", Markup("_<wbr>")))


def render_html(template: str, **values: Any) -> str:
    """Render the template of an HTML page. Values are escaped except for `Markup`."""
    return _environment(autoescape=True).get_template(template).render(values)


def render_markdown(template: str | Path, **values: Any) -> str:
    """Render the template of a Markdown file, which may extend one of this package or of `tasks/common`.

    Values are escaped except for `Markup`. The filter `code` makes inline code, and `json` a JSON value.
    """
    if isinstance(template, Path):
        return _markdown_template(template.read_text(encoding="utf-8")).render(values)
    return _environment(autoescape=False).get_template(template).render(values)


@cache
def _markdown_template(text: str) -> Template:
    return _environment(autoescape=False).from_string(text)


@cache
def _environment(autoescape: bool) -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("nlp_transfer.report"), PackageLoader("nlp_transfer.tasks", "common")]),
        autoescape=autoescape, finalize=None if autoescape else escape_markdown,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["breakable"] = breakable
    environment.filters["code"] = code_span
    environment.filters["json"] = lambda value: Markup(json.dumps(value, ensure_ascii=False))
    return environment
