"""How `sb-worker --help` is laid out: commands under headings, in the order in which one comes to need them."""

from __future__ import annotations

import click

from app.cli.guard import GuardedGroup

#: Click keeps the lines of a paragraph as they are that begins with this character.
_AS_IT_IS = "\b\n"

TOP = f"""Operate the secrets-bridge worker.

{_AS_IT_IS}A replica is three processes, which the Procfile lists:
  sb-worker run          all of them, as the container does
  dramatiq app.actors    a worker and notifier; any number may run
  periodiq app.actors    a scheduler; any number may run
"""
TOP_EPILOG = f"""{_AS_IT_IS}Examples:
  sb-worker check             before the first start: what would not work
  sb-worker status --watch    what the sweepers do, until Ctrl-C
  sb-worker COMMAND --help    what a command does, with examples

{_AS_IT_IS}Exit status: 0 fine, 1 failed or not known, 2 wrong usage; 3 (status, why):
it is known, and something is wrong.
Settings are environment variables; `sb-worker config` lists them.
Tables are JSON in a pipe, a line each, unless a command has -o for it.
"""

#: The commands under their headings; one that is in none comes last.
SECTIONS: dict[str, tuple[str, ...]] = {
    "Set up": ("check", "config", "migrate", "completion"),
    "Run": ("run",),
    "Look": ("status", "runs", "why", "verify"),
    "Step in": ("sweep", "pause", "resume", "unlock"),
    "Notifications": ("notify", "dead"),
}


def examples(*lines: str) -> str:
    """Return a command's epilog: examples of it, a line each."""
    return "\n".join((f"{_AS_IT_IS}Examples:", *(f"  {line}" for line in lines)))


class InOrder(click.Group):
    """A group that lists its commands in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names."""
        del ctx
        return list(self.commands)


class Sectioned(GuardedGroup):
    """A group that lists its commands under headings."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of their headings."""
        del ctx
        listed = [name for names in SECTIONS.values() for name in names if name in self.commands]
        return [*listed, *sorted(self.commands.keys() - set(listed))]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, section by section."""
        del ctx
        rest = sorted(self.commands.keys() - {name for names in SECTIONS.values() for name in names})
        widest = max(map(len, self.commands))
        for heading, names in {**SECTIONS, "Others": tuple(rest)}.items():
            shown = [self.commands[name] for name in names if name in self.commands and not self.commands[name].hidden]
            if shown:
                limit = formatter.width - 6 - widest
                rows = [(str(command.name).ljust(widest), command.get_short_help_str(limit)) for command in shown]
                with formatter.section(heading):
                    formatter.write_dl(rows)
