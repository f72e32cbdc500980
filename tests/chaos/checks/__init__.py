"""The checks: each a function from a history to what it finds wrong, by a rule of its own and believing no other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from tests.chaos.checks.beside import none_dies, nothing_left, nothing_remarked, renewed_stay
from tests.chaos.checks.counts import numbers_are_true
from tests.chaos.checks.due import only_what_is_due
from tests.chaos.checks.events import each_is_told_once
from tests.chaos.checks.fencing import fence_holds
from tests.chaos.checks.gaps import gaps_are_short
from tests.chaos.checks.go_replica import go_excluded
from tests.chaos.checks.locks import locks_are_kept
from tests.chaos.checks.notifications import notifications_arrive
from tests.chaos.checks.polls import polls_go_forward
from tests.chaos.checks.slots import slots_once
from tests.chaos.checks.standstill import all_go_on
from tests.chaos.checks.targets import one_open_job
from tests.chaos.checks.tokens import tokens_grow
from tests.chaos.checks.violation import Violation
from tests.chaos.history import History

Check = Callable[[History], Iterable[str]]

CHECKS: Mapping[str, Check] = {
    "slots": slots_once,
    "tokens": tokens_grow,
    "go": go_excluded,
    "remarks": nothing_remarked,
    "fencing": fence_holds,
    "locks": locks_are_kept,
    "due": only_what_is_due,
    "renewed": renewed_stay,
    "counts": numbers_are_true,
    "events": each_is_told_once,
    "notifications": notifications_arrive,
    "polls": polls_go_forward,
    "targets": one_open_job,
    "standstill": all_go_on,
    "deaths": none_dies,
    "leftovers": nothing_left,
}
#: Judged by seconds: where a machine has nothing else to do.
TIMED: Mapping[str, Check] = {"gaps": gaps_are_short}


def run(history: History, *, timed: bool = False) -> list[Violation]:
    """Return all that is wrong; `timed` also how long it took to go on."""
    checks = {**CHECKS, **TIMED} if timed else CHECKS
    return [Violation(name, text) for name, check in checks.items() for text in check(history)]
