"""The command `completion`: print the script that completes commands, options and settings in a shell."""

import click

SHELLS = ("bash", "zsh", "fish")


@click.command(name="completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print a shell's completion script.

    Add one of these lines to the start-up file of the shell:

    \b
    eval "$(nlp-transfer completion bash)"          # ~/.bashrc
    eval "$(nlp-transfer completion zsh)"           # ~/.zshrc
    nlp-transfer completion fish | source           # ~/.config/fish/config.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None, "click supports all of SHELLS"
    click.echo(kind(ctx.find_root().command, {}, "nlp-transfer", "_NLP_TRANSFER_COMPLETE").source())
