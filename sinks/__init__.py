"""The notification sinks, one module each, and the list of them: a new one is one file and one line."""

from typing import Any

from app.notify.sink import Sink
from sinks import apprise, discord, email, noop, pagerduty, slack, teams, webhook

SINKS: tuple[Sink[Any], ...] = (
    noop.noop,
    webhook.webhook,
    slack.slack,
    email.email,
    pagerduty.pagerduty,
    teams.teams,
    discord.discord,
    apprise.apprise,
)
