"""What this process is set to: names of variables and where they come from, never a value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from app.core.config import Row
from app.page.markup import Html, join, tag
from app.page.table import Column, section, table

_VARIABLE, _MEANING = Column("Variable"), Column("Meaning", class_="w12")
_SOURCE = Column("Source", class_="w12 set")


class Setting(NamedTuple):
    """A variable, and the name under which it is set; empty where it is left at its default."""

    name: str
    set_as: str
    meaning: str


def settings(rows: Sequence[Row]) -> list[Setting]:
    """Return what may be shown of these."""
    return [Setting(row.name, "" if row.source == "default" else row.source, row.meaning) for row in rows]


def configuration(found: Sequence[Setting]) -> Html:
    """Return the section of the main page: the variables that are set."""
    names = [tag("li", setting.set_as, class_="mono") for setting in found if setting.set_as]
    everything = tag("a", f"All {len(found)} variables, and what they mean", href="/configuration")
    listed = tag("ul", *names, class_="chips") if names else tag("p", "Nothing is set.", class_="empty")
    beside = f"{len(names)} of {len(found)} variables are set for this process; values are never shown"
    return section("configuration", "Configuration", listed, tag("p", everything), beside=beside)


def all_settings(found: Sequence[Setting]) -> Html:
    """Return the sections of the page that has all of them."""
    here = [setting for setting in found if setting.set_as]
    default = [setting for setting in found if not setting.set_as]
    set_rows = [(_name(setting), _source(setting), setting.meaning) for setting in here]
    default_rows = [(_name(setting), setting.meaning) for setting in default]
    said = "A variable's source is the name under which it is set; values are never shown."
    set_table = table(said, (_VARIABLE, _SOURCE, _MEANING), set_rows, "settings")
    default_table = table("Variables that are not set.", (_VARIABLE, _MEANING), default_rows, "settings")
    return join(section("set", "Set", set_table), section("default", "At their defaults", default_table))


def _name(setting: Setting) -> Html:
    return tag("span", setting.name, class_="mono")


def _source(setting: Setting) -> str:
    return "set" if setting.set_as == setting.name else f"set as {setting.set_as}"
