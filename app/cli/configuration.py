"""docs/configuration.md: every variable in tables, from the same declarations that are read at boot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from app.core.config import Settings, Variable, variables
from app.core.egress import EgressSettings
from app.kms.settings import KmsSettings
from app.notify.routing import AnySink
from app.notify.settings import NotificationSettings
from app.storage.settings import DatabaseSettings, RedisSettings
from app.sweeping.sweeper import Sweeper
from app.tracing.settings import TracingSettings
from app.worker.settings import WorkerSettings

_INTRODUCTION = """\
# Configuration

All settings are environment variables. This page is made by `sb-worker config --markdown`; without `--markdown` the
command shows the values that are set here and now.

- Wrong settings end every command with status 1 and one line for each problem. None of these lines has a value.
- An empty value means unset. Where a variable has two names, either is read; set to different values they are an error.
- The value of a secret is never shown. It may come from a file, named by the variable with `_FILE` at its end, such as
  `DATABASE_URL_FILE`.
- Durations are Go's: `500ms`, `30s`, `1m30s`, `24h`. Booleans are `true` or `false`."""

_HEADING = """\
| variable | default | meaning | secret |
|---|---|---|---|"""


def markdown(sweepers: Sequence[Sweeper[Any]], sinks: Sequence[AnySink]) -> str:
    """Return the page, which depends on neither the environment nor the machine."""
    keys = variables(KmsSettings)
    groups: dict[str, type[Settings]] = {
        "Process": WorkerSettings,
        "PostgreSQL": DatabaseSettings,
        "Redis": RedisSettings,
        **{f"Sweeper `{sweeper.name}`": sweeper.settings for sweeper in sweepers},
        "Traces": TracingSettings,
        "The way out": EgressSettings,
        "Notifications": NotificationSettings,
        **{f"Sink `{sink.name}`": sink.settings for sink in sinks},
    }
    tables = {title: [row for row in variables(group) if row not in keys] for title, group in groups.items()}
    return "\n".join((_INTRODUCTION, *_tables({**tables, "Key services, which open the tokens of ArgoCD": keys})))


def _tables(tables: dict[str, list[Variable]]) -> Iterator[str]:
    for title, rows in tables.items():
        yield f"\n## {title}\n\n{_HEADING}"
        for row in rows:
            names = "<br>".join(f"`{name}`" for name in row.names)
            default = row.default or "unset"
            if " " not in default and default not in {"required", "unset"}:
                default = f"`{default}`"
            meaning = row.meaning.replace("<", r"\<").replace("|", r"\|")
            yield f"| {names} | {default} | {meaning} | {'yes' if row.secret else ''} |"
