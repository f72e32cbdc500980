"""Checks the rows of one sweeper as they come, in the order of their claims, with no more memory than a few of them.

It counts slots itself and believes no number of the ledger. Rows come in the order of their ids: a row is inserted
under the lock of the sweeper's fence, so that this is the order in which slots were claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from app.core.values import format_duration
from app.overview.history import grid
from app.overview.history.cadences import Cadences
from app.overview.history.entry import Entry
from app.overview.history.findings import Check, Fault, Findings
from app.overview.history.row_check import wrong_with
from app.sweeping.schedule import moment

#: Slots that a fault names; of more it says how many there are.
_MOST_NAMED = 3
#: So many runs in a row with the same distance are of another cadence than that of the settings.
_CHANGED_AFTER = 3


class Rules(NamedTuple):
    """By what all sweepers are judged."""

    cadences: Cadences
    #: When the window begins.
    since: datetime
    now: datetime
    #: How long a claim may wait for the fence: its row says when it began to wait.
    claim_waits: timedelta
    #: How long a lock outlives its holder.
    lease: timedelta


class _Gap(NamedTuple):
    """A run and those before it: what lies between was nobody's own."""

    row: Entry
    #: The claim that was kept before it.
    before: Entry | None
    #: The cadences that its slot may be of, and whether processes have told them.
    intervals: Sequence[timedelta] = ()
    told: bool = False
    #: Whether it was judged before.
    counted: bool = False


class _Wrong(NamedTuple):
    """What a run and the slots before it come to by one cadence."""

    #: Slots that nobody has run or covered.
    missing: range
    #: How many are covered that are not there.
    too_many: int


def _named(slots: range) -> str:
    names = ", ".join(f"{moment(slot):%Y-%m-%d %H:%M:%S}" for slot in slots[:_MOST_NAMED])
    return names if len(slots) <= _MOST_NAMED else f"{names} and {len(slots) - _MOST_NAMED} more"


def _wrong(row: Entry, before: Entry, interval: timedelta) -> _Wrong:
    """Count the slots that nobody has run or covered, and those that are covered and are not there.

    A run by hand has a moment of its own for a slot: it serves the slot that this is in.
    """
    slots = grid.between(before.slot, grid.slot_of(row.slot, interval), interval)
    # After a change to a cadence that does not meet the old one, the first slot may count as run, or as none.
    least = len(slots) - (bool(slots) and not before.requested_by and not grid.is_slot(before.slot, interval))
    missing = slots[: least - row.covered] if row.covered < least else range(0)
    return _Wrong(missing, max(0, row.covered - len(slots)))


class Checker:
    """Checks one sweeper. Feed it rows in the order of their ids, then ask for the `findings`."""

    def __init__(self, name: str, rules: Rules) -> None:
        self._rules = rules
        self._found = Findings(name)
        self._judging = False
        self._token = 0
        self._cadence: tuple[Sequence[timedelta], bool] = ((), False)
        #: The newest end of a run that succeeded.
        self._done: Entry | None = None
        self._gap: _Gap | None = None
        #: Runs that would miss slots by the cadence of now, which nobody has told of then, and their distance.
        self._odd: list[tuple[Entry, _Wrong | None]] = []
        self._odd_step = timedelta(0)

    def before(self, row: Entry) -> None:
        """Take a row from before the window: what follows it is compared with it."""
        self._judging = False
        self._feed(row)
        self._judging = True

    def feed(self, row: Entry) -> None:
        """Check a row of the window."""
        self._judging = True
        self._feed(row)

    def findings(
        self, *, enabled: bool, running: Sequence[Entry] = (), held: bool | None, stopped: bool = False
    ) -> Findings:
        """Return what was found.

        `running` are the rows that say so, `held` is whether the sweeper's lock is (None: not known), and `stopped`
        whether it may begin no run now: it is paused, or its brake holds it.
        """
        self._judging = True
        newest = self._gap.row if self._gap else None
        self._close_gap()
        self._report_odd()
        for row in running:
            self._check_running(row, held=held, stopped=stopped)
        if newest is None:
            self._found.note("never ran in this time")
        elif enabled:
            self._check_since(newest)
        else:
            self._found.note("is off by this command's settings")
        return self._found

    def _fault(self, check: Check, slot: datetime, text: str) -> None:
        if self._judging:
            self._found.add(Fault(check, slot, text))

    def _feed(self, row: Entry) -> None:
        self._cadence = intervals, _ = self._rules.cadences.of(row)
        for text in wrong_with(row, max(intervals, default=None)):
            self._fault(Check.COUNTS, row.slot, f"run {row.id} {text}")
        if self._judging:
            self._found.failed += row.outcome == "failure"
            self._found.by_hand += row.requested_by is not None and row.outcome == "success"
        if row.token is None:  # an attempt that never claimed its slot
            return
        self._check_order(row, row.token)
        if row.outcome == "failure":
            self._give_back(row)
        else:
            self._keep(row)

    def _check_order(self, row: Entry, token: int) -> None:
        if token <= self._token:
            self._fault(Check.TOKENS, row.slot, f"run {row.id} has token {token}, a run before it {self._token}")
        self._token = max(self._token, token)
        done = self._done
        if done and done.finished_at and done.finished_at > row.started_at + self._rules.claim_waits:
            over = format_duration(done.finished_at - row.started_at)
            self._fault(Check.OVERLAP, row.slot, f"run {row.id} began {over} before run {done.id} had ended")
        ended = row.finished_at if row.outcome == "success" else None
        if ended and not (done and done.finished_at and done.finished_at >= ended):
            self._done = row

    def _give_back(self, row: Entry) -> None:
        """Take a claim back: its run has failed, and the slot is to be run or covered by another."""
        gap = self._gap
        if gap and gap.row.slot == row.slot and gap.row.outcome != "success":
            self._gap = _Gap(gap.before, None, counted=True) if gap.before else None

    def _keep(self, row: Entry) -> None:
        gap = self._gap
        if gap is None:
            self._begin(row, None)
        elif row.slot > gap.row.slot:
            self._close_gap()
            self._begin(row, gap.row)
        elif gap.row.outcome != "success":
            # The same slot once more; or slots that a clock ahead had claimed, which count as interrupted.
            self._begin(row, gap.before if row.slot == gap.row.slot else None)
        elif row.slot == gap.row.slot:
            self._fault(Check.ONCE, row.slot, f"run {row.id} is of the slot that run {gap.row.id} had done")
        else:
            self._fault(Check.ONCE, row.slot, f"run {row.id} came after run {gap.row.id} of a newer slot")

    def _begin(self, row: Entry, before: Entry | None) -> None:
        self._gap = _Gap(row, before, *self._cadence)
        if self._judging and self._found.since is None:
            self._found.since = row.slot

    def _close_gap(self) -> None:
        """Judge the newest kept claim, now that no other one of its slot can come."""
        gap, self._gap = self._gap, None
        since = self._found.since
        if gap is None or gap.counted or not self._judging or since is None or gap.row.slot < since:
            return
        found, row = self._found, gap.row
        found.slots += 1 + max(0, row.covered)
        found.runs += row.outcome == "success"
        found.taken_over += row.outcome == "interrupted"
        found.covered += max(0, row.covered)
        if gap.before is not None:
            self._judge(gap, gap.before)

    def _judge(self, gap: _Gap, before: Entry) -> None:
        row = gap.row
        wrong = [_wrong(row, before, interval) for interval in gap.intervals]
        if any(not each.missing and not each.too_many for each in wrong):
            self._report_odd()
            return
        step = (row.slot - before.slot) / (max(0, row.covered) + 1)
        if not gap.told and grid.is_slot(row.slot, step) and not (row.requested_by or before.requested_by):
            self._suspect(row, wrong[0] if wrong else None, step)
        else:
            self._report(row, wrong[0] if wrong else None)

    def _report(self, row: Entry, wrong: _Wrong | None) -> None:
        if wrong is None:
            self._found.note("some slots are of a cadence that nobody has told; they were not judged")
            return
        slots = wrong.missing
        if slots:
            self._found.slots += len(slots)
            text = f"{len(slots)} without a run before run {row.id}, which covers {row.covered}: {_named(slots)}"
            self._fault(Check.EVERY, moment(slots[0]), text)
        if wrong.too_many:
            text = f"run {row.id} covers {row.covered}, {wrong.too_many} more than there are without a run"
            self._fault(Check.COVERED, row.slot, text)

    def _suspect(self, row: Entry, wrong: _Wrong | None, step: timedelta) -> None:
        """Put a distance aside that is wrong by the cadence of now: if it comes again, it was another cadence's."""
        if step != self._odd_step:
            self._report_odd()
        self._odd_step = step
        if len(self._odd) < _CHANGED_AFTER:
            self._odd.append((row, wrong))
        if len(self._odd) == _CHANGED_AFTER:
            self._found.note(f"ran every {format_duration(step)} for a while, by the distance of its slots")

    def _report_odd(self) -> None:
        odd, self._odd, self._odd_step = self._odd, [], timedelta(0)
        if len(odd) < _CHANGED_AFTER:
            for row, wrong in odd:
                self._report(row, wrong)

    def _check_running(self, row: Entry, *, held: bool | None, stopped: bool) -> None:
        interval = self._rules.cadences.at(row.name, self._rules.now)
        due = row.started_at + (interval or timedelta(0)) + self._rules.lease + timedelta(seconds=1)
        run = f"run {row.id} of {row.worker}"
        if (row.token or 0) < self._token:
            self._fault(Check.RUNNING, row.slot, f"{run} is open, and another has claimed since")
        elif held:
            self._found.note(f"{run} is under way")
        elif self._rules.now > due and held is not None and not stopped:
            open_for = format_duration(timedelta(seconds=(self._rules.now - row.started_at) // timedelta(seconds=1)))
            self._fault(Check.RUNNING, row.slot, f"{run} has been open for {open_for}, and nobody holds its lock")
        else:
            why = "; whether it is held is not known without Redis" if held is None else ""
            self._found.note(f"{run} is open{why}{', until a run may follow it' * stopped}")

    def _check_since(self, newest: Entry) -> None:
        """Count the slots after the newest run that are over and have none: the next run will cover them."""
        interval = self._rules.cadences.at(newest.name, self._rules.now)
        if interval is None:
            return
        after = max(newest.slot, self._rules.since)
        slots = grid.between(after, grid.slot_of(self._rules.now, interval), interval)
        if slots:
            self._found.waiting = len(slots)
            self._found.slots += len(slots)
            self._found.note(f"no run since {newest.slot:%Y-%m-%d %H:%M:%S}; `sb-worker why {newest.name}` says why")
