"""What people are told: any counts, texts and tallies become lines and bodies within bounds, and JSON that is JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from hypothesis import strategies as st

from app.core.events import Event, Kind, Notification, Severity, Tally
from app.notify.digest import digest
from app.notify.format import body, body_lines, headline, one_line, slack_escape, timestamp, to_json, truncate
from sinks.email import message
from tests.fuzz.target import target

_NUMBERS = st.dictionaries(st.text(max_size=10), st.integers(), max_size=4)
_MOMENTS = st.datetimes(timezones=st.just(UTC))
_SEVERITIES, _KINDS = st.sampled_from(Severity), st.sampled_from(Kind)
#: What PostgreSQL's text holds: no NUL, no half of a surrogate pair.
_TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=400)
_TALLIES = st.lists(
    st.builds(Tally, _TEXTS, _SEVERITIES, _TEXTS, st.integers(0, 2**63), _MOMENTS, _MOMENTS, _NUMBERS), max_size=30
).map(tuple)
_EVENTS = st.builds(Event, _TEXTS, _SEVERITIES, _TEXTS, _TEXTS, _NUMBERS, _KINDS, _TALLIES)
NOTIFICATIONS = st.builds(
    Notification, st.uuids().map(str), _MOMENTS, _EVENTS, st.text(max_size=50), st.integers(0, 2**31)
)


#: RFC 3339 has four digits for a year.
_OLD = Notification("x", datetime(753, 4, 21, tzinfo=UTC), Event("wraps-expired", Severity.INFO, "rows deleted"))


@target("told", NOTIFICATIONS, found=(_OLD,), cases=150)
def told(notification: Notification) -> None:
    event = notification.event
    assert json.loads(to_json(body(notification)))["title"] == event.title
    lines = [headline(notification), *body_lines(notification)]
    assert len(lines) <= 25
    for line in lines:
        assert one_line(line).isprintable()
        assert len(truncate(line, 100)) <= 100
        assert "<" not in slack_escape(line)
    assert datetime.fromisoformat(timestamp(notification.time)) == notification.time
    mail = message(notification, "worker@example.org", "ops@example.org")
    assert len(mail["Subject"]) <= 200
    assert b"\r\n\r\n" in mail.as_bytes()
    if event.tallies:
        made = digest(event.tallies, event)
        assert made.metadata["events"] == sum(tally.events for tally in event.tallies)
        assert json.loads(json.dumps(dict(made.metadata), allow_nan=False)) == dict(made.metadata)
