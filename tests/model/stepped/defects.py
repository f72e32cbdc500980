"""The real code with one statement that is wrong, and a course by which that shows."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

from app.sweeping import lock
from app.sweeping.ledger import claims, failures, runs


class Defect(NamedTuple):
    """A text in a statement that is replaced, by what, and a course of the model's moves."""

    name: str
    module: ModuleType
    constant: str
    text: str
    by: str
    course: tuple[str, ...]
    #: Whether free steps are to find it as well, in a search that is always the same.
    free: bool = False

    def apply(self, replace: Callable[[ModuleType, str, str], None]) -> None:
        """Put the wrong statement in place of the right one."""
        right: str = getattr(self.module, self.constant)
        assert self.text in right
        replace(self.module, self.constant, right.replace(self.text, self.by))


_TOKEN = " AND token = %(token)s"
_FIRST, _ONLY = "claim, and the first batch", "claim that is the only batch"
_EXPIRES, _TIME = "the lock expires", "time goes on by half a slot"
_OVERTAKEN = ("A: tick", _EXPIRES, "B: tick", f"A: {_FIRST}", f"B: {_FIRST}")
_FAILED = ("A: tick", f"A: {_FIRST}", "A: fail in a batch", "A: release, not done", "A: write the failure down")
_CRASHED = ("A: tick", f"A: {_FIRST}", "A: crash", _EXPIRES, "A: tick", f"A: {_FIRST}")
_DONE = ("A: tick", f"A: {_ONLY}", "A: release, done")
_AHEAD = ("PostgreSQL's clock is ahead", *_DONE, "PostgreSQL's clock is right again", _TIME, _TIME, "A: tick")
DEFECTS = (
    Defect("a fence without the token", runs, "FENCE", _TOKEN, "", (*_OVERTAKEN, "A: batch: fenced")),
    Defect(
        "a claim of older slots",
        claims,
        "CLAIM",
        "state.last_slot < excluded.last_slot OR",
        "true OR",
        (_TIME, "A: tick", _EXPIRES, "B: early tick", f"B: {_FIRST}", "A: claim: superseded"),
    ),
    Defect(
        "a claim with no new token", claims, "CLAIM", "token = state.token + 1", "token = state.token", _OVERTAKEN, True
    ),
    Defect(
        "a claim that covers too few",
        claims,
        "CLAIM",
        "excluded.last_slot THEN state.last_slot\n",
        "excluded.last_slot THEN excluded.last_slot - %(interval)s\n",
        (*_DONE, *[_TIME] * 4, "A: tick", f"A: {_ONLY}"),
    ),
    Defect(
        "a slot given back by anybody",
        failures,
        "GIVE_BACK",
        _TOKEN,
        "",
        (*_OVERTAKEN, "A: fail in a batch", "A: release, not done", "A: write the failure down"),
    ),
    Defect("a slot given back to nobody", failures, "GIVE_BACK", "= previous_slot", "= last_slot", _FAILED),
    Defect(
        "a lock released by anybody",
        lock,
        "_RELEASE",
        "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end",
        "",
        ("A: tick", _EXPIRES, "B: tick", f"A: {_ONLY}", "A: release, done"),
    ),
    Defect("no slot mark", lock, "_RELEASE", "redis.call('SET', KEYS[2]", "redis.call('SET', KEYS[2] .. 'x'", _DONE),
    Defect(
        "a run that is interrupted and not reported",
        runs,
        "INTERRUPT",
        "RETURNING changed,",
        "RETURNING 0 AS changed,",
        _CRASHED,
        True,
    ),
    Defect("a run that is left open", runs, "INTERRUPT", "outcome = 'running'", "false", _CRASHED),
    Defect(
        "a failure that forgets", failures, "CLOSE_FAILED", "before, changed,", "before, 0 AS changed,", _FAILED, True
    ),
    Defect(
        "a slot far ahead that counts",
        claims,
        "CLAIM",
        "> clock_timestamp() + %(interval)s * 0.75",
        "> clock_timestamp() + %(interval)s * 1000",
        (*_AHEAD, f"A: {_ONLY}"),
    ),
    Defect(
        "a slot ahead by a whole one that counts",
        claims,
        "CLAIM",
        "> clock_timestamp() + %(interval)s * 0.75",
        "> clock_timestamp() + %(interval)s",
        (*_AHEAD, f"A: {_ONLY}"),
    ),
    Defect(
        "what a clock ahead has run stays done",
        claims,
        "FORGET",
        "outcome = 'success'",
        "false",
        (*_AHEAD, f"A: {_ONLY}"),
    ),
)
