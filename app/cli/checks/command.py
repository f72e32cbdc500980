"""`sb-worker check`: what would not work with this environment, and what to do."""

from __future__ import annotations

import json
import sys

import click

from actors import SWEEPERS
from app.cli.checks.database import database_findings
from app.cli.checks.finding import Finding
from app.cli.checks.receivers import receiver_findings
from app.cli.checks.redis import redis_findings
from app.cli.checks.tokens import token_findings
from app.cli.help import examples
from app.cli.terminal import Terminal
from app.core import config
from app.core.logging import configure_logging
from app.kms.settings import KmsSettings
from app.worker.loading import groups, load
from sinks import SINKS


@click.command(
    "check",
    short_help="Say what would not work, and why: settings, servers, tables.",
    epilog=examples("sb-worker check", "sb-worker check --json | jq 'select(.fine or .warning | not)'"),
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as when piped.")
def check(as_json: bool) -> None:
    """Check settings, servers, tables, privileges and ArgoCD's tokens; status 1 when anything would not work."""
    configure_logging("error")
    loaded = load(SWEEPERS, SINKS)
    findings = [Finding("settings", True, "valid")]
    findings += [
        Finding("settings", False, f"{name} is not known, and not read", warning=True)
        for name in config.unknown(*groups(SWEEPERS, SINKS))
    ]
    findings += [Finding("settings", False, warning, warning=True) for warning in loaded.warnings]
    findings.append(Finding("sinks", True, ", ".join(target.name for target in loaded.targets)))
    heartbeat = loaded.heartbeat.destinations
    findings += receiver_findings(loaded.notification, loaded.egress.proxy, loaded.targets, heartbeat)
    findings += redis_findings(loaded.redis, loaded.worker.lease / 5)
    pairs = list(zip(SWEEPERS, loaded.sweepers, strict=True))
    findings += [
        Finding(sweeper.name, False, warning, warning=True)
        for sweeper, settings in pairs
        if settings.enabled
        for warning in settings.warnings
    ]
    on = [sweeper for sweeper, settings in pairs if settings.enabled]
    findings += database_findings(loaded.database, on, pairs)
    for _, settings in pairs:
        if settings.enabled and isinstance(settings, KmsSettings):
            findings += token_findings(loaded.database, settings)
    if as_json or not sys.stdout.isatty():
        for finding in findings:
            click.echo(json.dumps(finding._asdict()))
    else:
        for finding in findings:
            mark = "[green]ok[/]  " if finding.fine else "[yellow]warn[/]" if finding.warning else "[red]FAIL[/]"
            Terminal().print(f"{mark} [bold]{finding.subject}[/]: {finding.text}", highlight=False)
    sys.exit(any(not finding.fine and not finding.warning for finding in findings))
