"""Many polls at once: each endpoint by itself, with one client and one opened token a run.

The run's thread owns the event loop: it turns in `wait`, between two transactions, and rests while one is under way.
Of one endpoint so many observations are polled at a time as it allows; when it is down, the rest of them fail at once.
An endpoint that was unhealthy when the run began is sent one request first.

Whatever goes wrong in the work for one observation, of whatever class, is that observation's failed result: what a row,
a key service or a server says never ends a run.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from app.core import metrics
from app.core.errors import LONGEST_RETRY_AFTER, UnwrapFailed, describe
from app.gitops.client import Client, PollFailed, WrongEndpoint
from app.gitops.model import Endpoint, EndpointHealth, Observation, PollOutcome, Result
from app.gitops.verdict import Verdict, decide
from app.kms.buffers import wipe
from app.kms.envelope import KeyManager, open_token
from app.kms.transport import KeyServiceTransport
from app.tracing import spans
from app.tracing.spans import Span

if TYPE_CHECKING:
    import ssl

#: A wait looks up this often, seconds: for the lease; for more results once there are some; when more can be claimed.
_LOOK, _GATHER, _SHORT = 0.1, 0.25, 0.002
#: An endpoint has enough to do with so many times what it may be asked at once.
_AHEAD = 4
#: The longest wait, and how long polls under way are waited for when the process is to end, seconds.
_LONGEST, _FAREWELL = 1.0, 2.0
#: How many tokens are opened at once, and timeouts in a row that count as an endpoint that is down.
_OPENINGS, _TIMEOUTS = 8, 2
_DOWN = frozenset({PollOutcome.UNAUTHORIZED, PollOutcome.BUSY, PollOutcome.UNREACHABLE, PollOutcome.CONTENT})
_TIMEOUT = frozenset({PollOutcome.TIMEOUT, PollOutcome.BROKEN})
#: Failures of one application that say nothing of its endpoint.
_OWN_FAULT = frozenset({PollOutcome.FORBIDDEN, PollOutcome.NOT_FOUND, PollOutcome.SHAPE, PollOutcome.CLIENT})


class _EndpointPolls:
    """The polls of one endpoint."""

    def __init__(self, endpoint: Endpoint, concurrency: int) -> None:
        self.endpoint = endpoint
        self.limit = 1 if endpoint.unhealthy else concurrency
        self.waiting: deque[Observation] = deque()
        self.active = 0
        self.token = bytearray()
        self.opening: asyncio.Task[Client] | None = None
        #: Why no more requests are sent, be it the endpoint's doing or not.
        self.closed: PollFailed | None = None
        #: Whether one request alone decides if it is down: it was unhealthy and has not answered since.
        self.probing = endpoint.unhealthy
        self.timeouts = 0
        self.answered = False
        self.error: str | None = None
        self.rest = 0.0
        self.reported: tuple[str | None, float] | None = None

    @property
    def outstanding(self) -> int:
        return len(self.waiting) + self.active

    @property
    def may_start(self) -> bool:
        """Whether one more may be asked: after a timeout none beside others, which will tell whether it is down."""
        return bool(self.waiting) and self.active < (1 if self.timeouts else self.limit)


class _Poll(NamedTuple):
    """A poll under way."""

    polls: _EndpointPolls
    observation: Observation
    began: float


class Backlog(Enum):
    """Whether more observations may be due than were claimed."""

    NONE = 0
    #: Their endpoints have enough to do.
    BUSY = 1
    #: They can be claimed at once.
    CLAIMABLE = 2


class Poller:
    """The polls of one run."""

    def __init__(  # noqa: PLR0913 - what the settings say
        self,
        keys: KeyManager,
        context: ssl.SSLContext | None,
        *,
        deadline: float,
        concurrency: int,
        fresh: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`context` verifies the key service; `deadline` is one request's, seconds; `concurrency` an endpoint's."""
        self._keys = keys
        self._deadline = deadline
        self._concurrency = concurrency
        self._fresh = fresh
        self._clock = clock
        self._loop = asyncio.new_event_loop()
        self._transport = KeyServiceTransport(context)
        #: Since when the run's time is up, and since when the process is to end.
        self._over: float | None = None
        self._ending: float | None = None
        self._endpoints: dict[str, _EndpointPolls] = {}
        self._tasks: dict[asyncio.Task[None], _Poll] = {}
        self._results: list[Result] = []
        self._openings = asyncio.Semaphore(_OPENINGS)
        self._backlog = Backlog.NONE
        #: The endpoints of which more may be due, since they had enough to do when the last claim was made.
        self._left_out: set[str] = set()
        metrics.preset_polls(PollOutcome)

    # What a transaction asks and tells.

    @property
    def pending(self) -> bool:
        """Whether anything is still to be polled or written."""
        return bool(self._tasks or self._results or any(polls.waiting for polls in self._endpoints.values()))

    @property
    def done(self) -> bool:
        """Whether nothing is left: nothing pending, and nothing due that was not claimed."""
        return not self.pending and self._backlog is Backlog.NONE

    @property
    def known(self) -> list[str]:
        """The endpoints that need not be read again."""
        return list(self._endpoints)

    @property
    def busy(self) -> list[str]:
        """The endpoints that have enough to do."""
        endpoints = self._endpoints.items()
        return [key for key, polls in endpoints if not polls.closed and polls.outstanding >= _AHEAD * polls.limit]

    def may_claim(self, *, over: bool) -> bool:
        """Return whether more may be claimed.

        When the run's time is over, a poll that began before may still wait for a slow endpoint. It must not hold up
        the others: as long as it does, they go on.
        """
        if not over:
            return True
        self._over = self._over or self._clock()
        if self._ending is None and any(poll.began < self._over for poll in self._tasks.values()):
            return True
        self._left_out.clear()  # nobody waits for an endpoint that could take more
        if self._backlog is Backlog.CLAIMABLE:
            self._backlog = Backlog.BUSY
        return False

    def add_endpoints(self, endpoints: Iterable[Endpoint]) -> None:
        """Add endpoints that observations may be submitted of."""
        for endpoint in endpoints:
            self._endpoints.setdefault(endpoint.id, _EndpointPolls(endpoint, self._concurrency))

    def submit(self, observations: Sequence[Observation], limit: int) -> None:
        """Poll these, as soon as their endpoints allow; they are all that was due if there are fewer than `limit`."""
        self._left_out = set(self.busy)
        for observation in observations:
            self._endpoints[observation.endpoint].waiting.append(observation)
        more = Backlog.BUSY if self._left_out else Backlog.NONE
        self._backlog = Backlog.CLAIMABLE if len(observations) == limit else more

    def take_results(self) -> list[Result]:
        """Return the results that are there, each once."""
        results, self._results = self._results, []
        return results

    def take_health(self) -> list[EndpointHealth]:
        """Return the health of endpoints that have nothing more to do, once for each change."""
        changes = []
        for polls in self._endpoints.values():
            if (polls.outstanding and not polls.closed) or not (polls.answered or polls.error):
                continue
            error = polls.error if polls.closed or not polls.answered else None
            if polls.reported != (error, polls.rest):
                polls.reported = (error, polls.rest)
                changes.append(EndpointHealth(polls.endpoint.id, error, polls.rest))
        return changes

    # What happens between two transactions.

    def wait(self, stopping: Callable[[], bool]) -> None:
        """Poll until there is something to write, or to claim, or a while is over. Raises what `stopping` raises."""
        self._loop.run_until_complete(self._turn(stopping))

    def close(self) -> None:
        """Cut what is under way and forget all tokens."""
        try:
            self._loop.run_until_complete(self._end())
        finally:
            self._loop.close()
            for polls in self._endpoints.values():
                wipe(polls.token)

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        openings = [polls.opening for polls in self._endpoints.values() if polls.opening]
        for opening in openings:
            opening.cancel()
        await asyncio.gather(*self._tasks, *openings, return_exceptions=True)
        self._tasks.clear()
        opened = [one.result() for one in openings if not one.cancelled() and one.exception() is None]
        await asyncio.gather(*(client.close() for client in opened), self._transport.close(), return_exceptions=True)

    async def _turn(self, stopping: Callable[[], bool]) -> None:
        began = self._clock()
        first: float | None = None
        hurried = self._backlog is Backlog.CLAIMABLE
        while True:
            if stopping():
                await self._end_soon()
            self._start()
            if not self._tasks:
                return
            pause = _SHORT if hurried else _GATHER if first is not None else _LOOK
            done, _ = await asyncio.wait(self._tasks, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                self._collect(task)
            now = self._clock()
            if self._results and first is None:
                first = now
            idle = not all(self._endpoints[key].waiting for key in self._left_out)
            if hurried or idle or (first is not None and now - first >= _GATHER) or now - began >= _LONGEST:
                return

    async def _end_soon(self) -> None:
        """Begin nothing more, and after a while let go of what is under way: it is due again in the next slot."""
        if self._ending is None:
            self._ending = self._clock()
        dropped = any(polls.waiting for polls in self._endpoints.values())
        for polls in self._endpoints.values():
            polls.waiting.clear()
        if self._tasks and self._clock() - self._ending >= _FAREWELL:
            dropped = True
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for task in list(self._tasks):
                if task.cancelled():
                    self._tasks.pop(task).polls.active -= 1
                else:
                    self._collect(task)
        if dropped and self._backlog is Backlog.NONE:
            self._backlog = Backlog.BUSY

    def _start(self) -> None:
        """Begin as many polls as the endpoints allow; fail those of closed ones at once."""
        for polls in self._endpoints.values():
            while polls.closed and polls.waiting:
                self._fail_unasked(polls.waiting.popleft(), polls.closed)
            while polls.may_start:
                polls.active += 1
                poll = _Poll(polls, polls.waiting.popleft(), self._clock())
                self._tasks[asyncio.get_running_loop().create_task(self._poll(poll))] = poll

    def _collect(self, task: asyncio.Task[None]) -> None:
        """Note the end of a poll. The one place where errors end: it has a result, or one is made of its error."""
        poll = self._tasks.pop(task)
        poll.polls.active -= 1
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            return
        if not isinstance(error, PollFailed):
            error = PollFailed(PollOutcome.UNEXPECTED, f"argocd: unexpected {describe(error).error}")
        self._judge(poll.polls, error)
        prefix = "" if error.outcome in (PollOutcome.UNWRAP, PollOutcome.CLIENT) else "argocd fetch: "
        self._finish(Result(poll.observation, error.outcome, Verdict.ACTIVE, prefix + error.text, None))

    async def _poll(self, poll: _Poll) -> None:
        """Bring one result, or raise. A result is what is done last: whoever raises has none."""
        with spans.span("poll", poll.polls.endpoint.id) as span:
            try:
                await self._polled(poll, span)
            except PollFailed as error:
                span.note(outcome=error.outcome.value)
                raise

    async def _polled(self, poll: _Poll, span: Span) -> None:
        polls, observation, began = poll
        client = await self._client(polls)
        if polls.closed:
            self._fail_unasked(observation, polls.closed)
            return
        result = await self._ask(client, polls, observation)
        metrics.poll_seconds().observe(self._clock() - began)
        span.note(outcome=result.outcome.value, verdict=result.verdict.value)
        self._finish(result)

    async def _ask(self, client: Client, polls: _EndpointPolls, observation: Observation) -> Result:
        application, parameters = await client.application(observation.application, observation.known)
        polls.answered, polls.timeouts, polls.probing, polls.limit = True, 0, False, self._concurrency
        state: dict[str, Any] = application.snapshot()
        outcome, error = PollOutcome.OK, None
        try:
            state |= await client.resources(observation.application, parameters)
        except PollFailed as problem:  # what the application itself says still counts
            outcome, error = PollOutcome.PARTIAL, f"argocd fetch: {problem.text}"
            state["resource_count"] = None
            self._judge(polls, problem)
        verdict = decide(application, observation.created_at, fresh=self._fresh)
        return Result(observation, outcome, verdict, error, state)

    async def _client(self, polls: _EndpointPolls) -> Client:
        if polls.opening is None:
            polls.opening = asyncio.get_running_loop().create_task(self._open(polls))
        return await asyncio.shield(polls.opening)

    async def _open(self, polls: _EndpointPolls) -> Client:
        endpoint = polls.endpoint
        try:
            async with self._openings:
                polls.token = await open_token(endpoint.envelope, self._keys, self._transport)
            return Client(
                endpoint.base_url,
                polls.token,
                ca_pem=endpoint.tls_ca_pem,
                server_name=endpoint.tls_server_name,
                deadline=self._deadline,
                connections=self._concurrency,
            )
        except UnwrapFailed as error:
            problem = PollFailed(PollOutcome.UNWRAP, f"unwrap token: {error}")
        except WrongEndpoint as error:
            problem = PollFailed(PollOutcome.CLIENT, f"build argocd client: {error}")
        except Exception as error:  # noqa: BLE001 - of one endpoint, as in `_collect` of one poll
            problem = PollFailed(PollOutcome.CLIENT, f"build argocd client: unexpected {describe(error).error}")
        polls.closed = problem
        raise problem from None

    def _judge(self, polls: _EndpointPolls, error: PollFailed) -> None:
        """Close an endpoint that is down, by this failure or one timeout too many."""
        if error.outcome in _OWN_FAULT or error.outcome is PollOutcome.UNWRAP:
            return
        if polls.closed is None:
            polls.error = error.text
        polls.timeouts += error.outcome in _TIMEOUT
        if error.outcome in _DOWN or polls.timeouts >= (1 if polls.probing else _TIMEOUTS):
            polls.closed = polls.closed or error
            polls.rest = max(polls.rest, min(error.retry_after or 0.0, LONGEST_RETRY_AFTER))

    def _fail_unasked(self, observation: Observation, why: PollFailed) -> None:
        text = why.text
        if why.outcome not in (PollOutcome.UNWRAP, PollOutcome.CLIENT):
            text = f"argocd fetch: not asked, the endpoint is down: {why.text}"
        self._finish(Result(observation, PollOutcome.SKIPPED, Verdict.ACTIVE, text, None))

    def _finish(self, result: Result) -> None:
        metrics.GITOPS_POLLS.labels(result.outcome.value).inc()
        self._results.append(result)
