"""`sb-worker completion`: what a shell reads to complete commands, options and names of sweepers and sinks."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from app.cli.help import examples

#: By this variable a shell asks; Click makes it of the program's name.
_ASKED_BY = "_SB_WORKER_COMPLETE"


@click.command(
    short_help="Print what bash, zsh or fish need to complete commands.",
    epilog=examples(
        "source <(sb-worker completion bash)    # in ~/.bashrc",
        "source <(sb-worker completion zsh)     # in ~/.zshrc, after compinit",
        "sb-worker completion fish > ~/.config/fish/completions/sb-worker.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script by which SHELL completes commands, options, and names of sweepers and sinks.

    Completing needs no settings and no server.
    """
    made_by = get_completion_class(shell)
    assert made_by is not None
    script = made_by(context.find_root().command, {}, "sb-worker", _ASKED_BY)
    click.echo(script.source_template % script.source_vars())
