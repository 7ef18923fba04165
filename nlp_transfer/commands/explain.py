"""The command `explain`."""

from pathlib import Path

import click

from nlp_transfer.commands.options import CODE, OVERWRITE
from nlp_transfer.utils.environment import importing
from nlp_transfer.utils.errors import UserError


@click.command("explain")
@click.argument("model")
@click.option("--text", "texts", multiple=True, required=True, help="A text to explain. Can be repeated.")
@click.option("--text-pair", "pairs", multiple=True, help="The second text of a pair, once for each --text.")
@click.option("--label", help="Explain this label.  [default: the most probable one]")
@click.option("--neighbors", type=click.IntRange(min=0), default=5, show_default=True, help="Similar training rows to list.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Also write an HTML page.")
@click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True, help="json: JSON lines."
)
@OVERWRITE
@CODE
def command(
    model: str, texts: tuple[str, ...], pairs: tuple[str, ...], label: str | None, neighbors: int, output: Path | None, form: str,
    overwrite: bool,
) -> None:  # fmt: skip
    """Show which words a prediction depends on.

    MODEL is a run folder, a model folder or a hub id of a text classification, multi-label or regression model. The similar
    training rows need a run folder.

    \b
    nlp-transfer explain runs/spam --text "Claim your free prize" --output explanation.html
    """
    if pairs and len(pairs) != len(texts):
        raise UserError(f"--text-pair: found {len(pairs)} for {len(texts)} --text; allowed: one for each --text")
    if output is not None and output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output: found {output}; allowed: a file with the extension .html")
    if output is not None and output.exists() and not overwrite:
        raise UserError(f"--output: {output} already exists; allowed: another file, or --overwrite to replace it")
    with importing():
        from nlp_transfer.run.explanations import explain
    from nlp_transfer.report.explanation_page import print_explanations
    from nlp_transfer.security.terminal_text import printable
    from nlp_transfer.utils.atomic_files import to_json
    from nlp_transfer.utils.console import say

    inputs = list(zip(texts, pairs, strict=True)) if pairs else list(texts)
    explanations = explain(model, inputs, label=label, neighbors=neighbors, output=output)
    if form == "json":
        for explanation in explanations:
            print(printable(to_json(explanation.document(), ensure_ascii=False, default=str)))
    else:
        print_explanations(explanations)
    if output is not None:
        say(f"the page is {output}")
