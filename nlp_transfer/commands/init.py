"""The command `init`: inspect a table and write commented settings for `train`."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from nlp_transfer.commands.options import HELP_ALL, OVERRIDES, OVERWRITE, QUIET, SettingsHelp
from nlp_transfer.utils.errors import UserError

WIDTH = 110  # characters of a comment
LABEL_WIDTH = 60  # characters of a label in a comment
TEST_SHARE, TEST_ROWS = 0.1, 200  # a test split is proposed for tables with at least this many rows
PROPOSED = {
    "data": ("train", "validation", "test", "test_share", "validation_share"),
    "strategy": ("name",),
    "training": ("epochs", "batch_size", "learning_rate", "seed"),
}
"""Settings that are written even if they have their default, since they are the first ones that people change."""


@click.command(name="init", cls=SettingsHelp, context_settings=OVERRIDES)
@click.argument("table")
@click.option("--output", type=click.Path(path_type=Path), help="The YAML file.  [default: the name of TABLE, with .yaml]")
@OVERWRITE
@QUIET
@HELP_ALL
@click.pass_context
def command(ctx: click.Context, table: str, output: Path | None, overwrite: bool) -> None:
    """Inspect a table and write commented settings.

    TABLE is the training data. Its task and columns are inferred, as train does. Each setting is written to a YAML file with what
    it means and why it was chosen; check it, change it, and train with it:

    \b
    nlp-transfer init reviews.csv
    nlp-transfer train reviews.yaml

    Settings given as flags, such as --task.label stars, are used as they are.
    """
    from nlp_transfer.commands.completion import prompt
    from nlp_transfer.run.document import merge, parse_overrides
    from nlp_transfer.utils.atomic_files import write_bytes
    from nlp_transfer.utils.console import Level, is_main, say
    from nlp_transfer.utils.environment import expand

    target = _target(table, output, overwrite)
    given, _ = merge({"data": {"train": table}}, parse_overrides(ctx.args))
    document, reasons, notes = propose(given, prompt())
    text = commented_yaml(document, reasons, f"proposed by `nlp-transfer init`. To train: nlp-transfer train {target}")
    if not is_main():
        return
    try:
        write_bytes(expand(str(target)), text.encode(), overwrite)
    except OSError as error:
        raise UserError(f"--output: {target} cannot be written: {error.strerror}; allowed: another file") from error
    say(*notes)
    say(f"wrote {target}; to train: nlp-transfer train {target}", level=Level.QUIET)


def _target(table: str, output: Path | None, overwrite: bool) -> Path:
    """Return the path of the YAML file, or raise a UserError if it cannot be used."""
    if output is None:
        stem = re.sub(r"[^\w.-]+", "-", re.split(r"[/\\]", table)[-1].split(".")[0]).strip("-.")
        output = Path(f"{stem or 'run'}.yaml")
    if output.suffix.lower() not in (".yaml", ".yml"):
        raise UserError(f"--output: found the file extension {output.suffix!r} of {output}; allowed: .yaml, .yml")
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise UserError(f"--output: {output} cannot be written; allowed: a file in a folder that exists")
    if output.exists() and not overwrite:
        raise UserError(f"--output: {output} already exists; allowed: another file, or --overwrite to replace it")
    return output


def propose(document: dict[str, Any], ask: Any) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Complete the settings of a run for a table.

    Args:
        document: `data.train` and the settings that the user gave.
        ask: asks the user about ambiguous settings, see `completion.complete`.

    Returns:
        The document, the reason for each setting by dotted name, and notes for the user.

    Raises:
        UserError: the table cannot be read, settings are invalid, or the columns are ambiguous.
    """
    from nlp_transfer.commands.completion import complete, read_column
    from nlp_transfer.run.resolve import resolve
    from nlp_transfer.settings.schema import DataConfig, TrainingConfig, expand_name

    reasons = dict.fromkeys(_names(document), "as given")
    reasons["data.train"] = "the table that was inspected"
    document = {**document, "data": dict(document["data"]), "strategy": expand_name(document.get("strategy", "full"))}
    for role, path in _siblings(table=str(document["data"]["train"])).items():
        if not {role, f"{role}_share"} & document["data"].keys():
            document["data"][role] = path
            reasons[f"data.{role}"] = "a file of this name lies next to the table"
    before, given_data = set(_names(document)), document["data"]
    document, notes = complete(document, ask)
    for name in [name for name in _names(document) if name not in before]:
        reasons[name] = next((_reason(note) for note in notes if f"{name}: " in note), "inferred")
    data, task = document["data"], {"name": document["task"]["name"], **document["task"]}
    document["task"] = task
    column = next((task[name] for name in ("label", "target") if isinstance(task.get(name), str)), None)
    cells = list(read_column(data["train"], data, column)) if column else []
    if cells:
        reasons["data.train"] += f"; {len(cells):,} rows"
    if "label" in task and (summary := _summary(cells)):
        reasons["task.label"] += f"; {summary}"
        notes.append(f"{column}: {summary}")
    if len(cells) >= TEST_ROWS and not {"test", "test_share"} & data.keys():
        data["test_share"] = TEST_SHARE
        reasons["data.test_share"] = "no test file was given. Remove this line if you have one, and set `test`"
    defaults: dict[str, Any] = {"data": DataConfig(), "training": TrainingConfig()}
    for section, names in PROPOSED.items():
        values = document.setdefault(section, {})
        for name in names:
            if isinstance(values, dict) and name not in values and section in defaults:
                value = getattr(defaults[section], name)
                if value not in (None, 0.0) or name == "seed":
                    values[name] = value
            reasons.setdefault(f"{section}.{name}", "the default")
    run = resolve(document)  # reports all invalid settings before the file is written
    if "on_bad_rows" not in given_data:
        unusable, problems = _unusable_rows(run)
        if unusable:
            data["on_bad_rows"] = "skip"
            reasons["data.on_bad_rows"] = f"{unusable}. With `refuse`, train would stop and list them"
            notes.append(f"warning: {unusable}; data.on_bad_rows: skip was written, so that train skips and lists them")
        notes += problems
    return document, reasons, notes


def _unusable_rows(run: Any) -> tuple[str, list[str]]:
    """Return how many rows the task cannot use and why, and warnings about data that cannot be trained on at all."""
    from nlp_transfer.data.bad_rows import count_kinds
    from nlp_transfer.data.sources import HUB_DATA
    from nlp_transfer.data.splits import read_sources
    from nlp_transfer.utils.environment import expand

    source = run.config.data.train
    if isinstance(source, str) and HUB_DATA.match(source) and not expand(source).exists():
        return "", []  # on the hub: it is only downloaded for training
    try:
        provided, _ = read_sources(run.config.data.model_copy(update={"on_bad_rows": "skip"}), run.task, run.config.training)
    except UserError as error:
        return "", [f"warning: train cannot use these rows as they are: {error}"]
    counted = [
        f"{len(rows.skipped):,} of {len(rows.skipped) + len(rows):,} rows of {role} cannot be used: {count_kinds(rows.skipped)} "
        f"(the first: {rows.skipped[0]})"
        for role, rows in provided.items()
        if rows.skipped
    ]
    return "; ".join(counted), []


def _siblings(table: str) -> dict[str, str]:
    """Return the test and validation files next to a table whose name contains `train`, by role."""
    path, found = Path(table), dict[str, str]()
    for role, words in (("test", ("test",)), ("validation", ("validation", "valid", "val", "dev"))):
        paths = [path.with_name(path.name.replace("train", word, 1)) for word in words if "train" in path.name]
        if present := [str(other) for other in paths if other.is_file()]:
            found[role] = present[0]
    return found


def _names(document: Mapping[str, Any]) -> list[str]:
    """Return the dotted names of the settings of a document, two levels deep."""
    return [
        f"{section}.{name}" if name else section
        for section, values in document.items()
        for name in (values if isinstance(values, Mapping) else ("",))
    ]


def _reason(note: str) -> str:
    """Return the text in parentheses at the end of a note of `completion.complete`."""
    reason = re.split(r"(?:^|; )to change it: ", note.partition(" (")[2].removesuffix(")"))[0]
    return reason or "inferred"


def _summary(cells: Sequence[Any]) -> str:
    """Return how often the most frequent cells of a label column occur."""
    from collections import Counter

    from nlp_transfer.report.page_blocks import shortened
    from nlp_transfer.utils.console import percent

    counts = Counter(str(cell) for cell in cells if cell is not None and str(cell).strip())
    shown = [f"{_plain(shortened(cell, LABEL_WIDTH))} {percent(count, counts.total())}" for cell, count in counts.most_common(5)]
    more = f", and {len(counts) - len(shown):,} more" if len(counts) > len(shown) else ""
    return f"{len(counts):,} different values: {', '.join(shown)}{more}" if counts else ""


def _plain(text: str) -> str:
    """Return a cell without quotes, unless it would be ambiguous in a list without them."""
    return repr(text) if text != text.strip() or "," in text else text


def commented_yaml(document: Mapping[str, Any], reasons: Mapping[str, str], title: str) -> str:
    """Return a document as YAML, with a comment on each setting: what it means, and why it has this value."""
    import yaml

    from nlp_transfer.security.terminal_text import printable
    from nlp_transfer.settings.schema import RunConfig

    lines = [*_comment(f"Settings of a run, {title}", ""), *_comment("All settings: nlp-transfer train --help-all", "")]
    for section in [name for name in RunConfig.model_fields if name in document]:
        values = document[section]
        nested = isinstance(values, Mapping)
        lines += ["", *([f"{section}:"] if nested else [])]
        for name, value in values.items() if nested else [(section, values)]:
            dotted, indent = (f"{section}.{name}", "  ") if nested else (section, "")
            lines += _comment(_meaning(dotted, document), indent)
            lines += _comment(f"Chosen: {reasons.get(dotted, 'as given')}.", indent)
            flow = isinstance(value, (list, dict))
            plain = printable(str(value)) == str(value)  # PyYAML folds U+0085 without escaping it
            text = yaml.safe_dump({name: value}, allow_unicode=plain, width=10**9, sort_keys=False, default_flow_style=flow)
            text = text.strip()[1:-1] if flow else text.strip()
            lines += [f"{indent}{line}" for line in text.split("\n")]
    return "\n".join(lines) + "\n"


def _meaning(name: str, document: Mapping[str, Any]) -> str:
    """Return the first sentence of the help text of a setting, and the one about its value, such as `auto: ...`."""
    from nlp_transfer.settings.validation import all_settings

    section = name.partition(".")[0]
    chosen = document.get(section)
    prefix = f"{chosen['name']}: " if isinstance(chosen, Mapping) and "name" in chosen else ""
    texts = [text for other, _, text in all_settings() if other == name]
    own = next((text for text in texts if prefix and text.startswith(prefix)), None)
    text = own or next((text for text in texts if not re.match(r"[a-z_]+: ", text)), "")
    first, *further = re.split(r"(?<=[^.])[.] ", text.removeprefix(prefix))
    value = chosen.get(name.partition(".")[2]) if isinstance(chosen, Mapping) else None
    sentences = [first, *(sentence for sentence in further if isinstance(value, str) and sentence.startswith(f"{value}: "))]
    return " ".join(f"{sentence.rstrip('.')}." for sentence in sentences if sentence)


def _comment(text: str, indent: str) -> list[str]:
    """Return comment lines. White space is normalized, since a line break would end the comment."""
    from nlp_transfer.utils.console import shown

    return [f"{indent}# {line}" for line in textwrap.wrap(" ".join(shown(text).split()), WIDTH, break_on_hyphens=False)]
