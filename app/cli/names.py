"""Types of arguments that name a sweeper or a sink: they refuse what there is not, and a shell completes them.

The names are read from the folders `actors/` and `sinks/`, where each is a module of that name: completing imports none
of them, and needs no environment and no server.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cached_property
from importlib.util import find_spec

import click
from click.shell_completion import CompletionItem

from app.core.events import NOTIFICATIONS


class NameType(click.ParamType[str, str]):
    """One of the names of the modules in `folder`; `also` are further ones. With `receivers`, `name:key` is one too."""

    def __init__(self, name: str, folder: str, *, also: Iterable[str] = (), receivers: bool = False) -> None:
        self.name = name
        self._folder = folder
        self._also = tuple(also)
        self._receivers = receivers

    @cached_property
    def known(self) -> tuple[str, ...]:
        """The names there are, in alphabetical order."""
        spec = find_spec(self._folder)
        folders = (spec and spec.submodule_search_locations) or ()
        modules = (module.name.replace("_", "-") for module in pkgutil.iter_modules(folders))
        return tuple(sorted((*modules, *self._also)))

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name as it is. Raises BadParameter with the names there are for any other."""
        if (value.partition(":")[0] if self._receivers else value) in self.known:
            return value
        near = get_close_matches(value, self.known, n=1)
        meant = f" (is {near[0]} meant?)" if near else ""
        text = f"no {self.name} is called {value!r}{meant}; there are: {', '.join(self.known)}"
        raise click.BadParameter(text, ctx, param)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names that begin so."""
        del ctx, param
        return [CompletionItem(name) for name in self.known if name.startswith(incomplete)]


#: A sweeper's name.
SWEEPER = NameType("sweeper", "actors")
#: A sweeper's name, or all of them.
SWEEPER_OR_ALL = NameType("sweeper", "actors", also=("all",))
#: What a notification may be about: a sweeper, or notifications themselves.
COMPONENT = NameType("sweeper", "actors", also=(NOTIFICATIONS,))
#: A sink's name, or that of one receiver of it as `sb-worker notify log` shows it (`email:3f2a9c1b`).
SINK = NameType("sink", "sinks", receivers=True)
