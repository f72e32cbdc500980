"""Types of arguments and options that are lengths of time, or a line that somebody writes for others."""

from __future__ import annotations

from datetime import timedelta

import click

from app.core.values import format_duration, parse_duration, parse_positive_duration


class Length(click.ParamType[timedelta, str | timedelta]):
    """A duration as settings have it, such as 2h: more than 0 unless `zero` is allowed too, and at most `most`."""

    name = "time"

    def __init__(self, *, most: timedelta | None = None, zero: bool = False) -> None:
        self._most = most
        self._parse = parse_duration if zero else parse_positive_duration

    def convert(self, value: str | timedelta, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return the duration. Raises BadParameter."""
        try:
            length = value if isinstance(value, timedelta) else self._parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from None
        if length < timedelta(0):
            raise click.BadParameter("must not be negative", ctx, param)
        if self._most is not None and length > self._most:
            raise click.BadParameter(f"at most {format_duration(self._most)}; it is to end by itself", ctx, param)
        return length


class OneLine(click.ParamType[str, str]):
    """One line of printable characters, at most `most` of them."""

    name = "text"

    def __init__(self, most: int) -> None:
        self._most = most

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the line without blanks at its ends. Raises BadParameter."""
        if not value.strip() or len(value) > self._most or not value.isprintable():
            raise click.BadParameter(f"accepted: one line of 1 to {self._most} printable characters", ctx, param)
        return value.strip()
