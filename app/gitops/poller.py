"""Many polls at once: a lane for each endpoint, with one client and one opened token a run.

The run's thread owns the event loop: it turns in `wait`, between two transactions, and rests while one is under way. A
lane works on as many observations at a time as it may; when its endpoint is down, the rest of them fail at once. A
lane whose endpoint was unhealthy when the run began sends one request first.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from app.core import metrics
from app.core.errors import LONGEST_RETRY_AFTER, UnwrapFailed
from app.gitops.client import Client, PollFailed
from app.gitops.documents import snapshot
from app.gitops.model import Endpoint, News, Observation, Outcome, Result
from app.gitops.verdict import Verdict, decide
from app.kms.envelope import KeyManager, open_token, wipe
from app.kms.transport import KeyServiceTransport

if TYPE_CHECKING:
    import ssl

#: How often a wait looks up, seconds: for the lease; for the end of it when results are there; at the longest.
_LOOK, _GATHER, _LONGEST = 0.1, 0.03, 1.0
#: How long polls under way are waited for when the process is to end, seconds.
_FAREWELL = 2.0
#: How many tokens are opened at once, and failures in a row that count as an endpoint that is down.
_OPENINGS, _STRIKES = 8, 2
_DOWN = frozenset({Outcome.UNAUTHORIZED, Outcome.BUSY, Outcome.UNREACHABLE, Outcome.CONTENT})
_STRIKE = frozenset({Outcome.TIMEOUT, Outcome.BROKEN})
#: Failures of one application that say nothing of its endpoint.
_OWN_FAULT = frozenset({Outcome.FORBIDDEN, Outcome.NOT_FOUND, Outcome.SHAPE, Outcome.CLIENT})


class _Lane:
    """The polls of one endpoint."""

    def __init__(self, endpoint: Endpoint, most: int) -> None:
        self.endpoint = endpoint
        self.limit = 1 if endpoint.unhealthy else most
        self.queue: deque[Observation] = deque()
        self.active = 0
        self.token = bytearray()
        self.opening: asyncio.Task[Client] | None = None
        #: Why no more requests are sent, and whether that is the endpoint's doing.
        self.closed: PollFailed | None = None
        self.probing = endpoint.unhealthy
        self.strikes = 0
        self.well = False
        self.error: str | None = None
        self.rest = 0.0
        self.told: tuple[str | None, float] | None = None

    @property
    def outstanding(self) -> int:
        return len(self.queue) + self.active


class Polls:
    """The polls of one run."""

    def __init__(  # noqa: PLR0913 - what the settings say
        self,
        keys: KeyManager,
        context: ssl.SSLContext | None,
        *,
        deadline: float,
        most: int,
        fresh: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`context` verifies the key service; `deadline` is for one request, seconds; `most` at once to an endpoint."""
        self._keys = keys
        self._deadline = deadline
        self._most = most
        self._fresh = fresh
        self._clock = clock
        self._loop = asyncio.new_event_loop()
        self._transport = KeyServiceTransport(context)
        self._over: float | None = None
        #: Since when the process is to end.
        self._ending: float | None = None
        self._lanes: dict[str, _Lane] = {}
        self._tasks: dict[asyncio.Task[None], float] = {}
        self._finished: list[Result] = []
        self._openings = asyncio.Semaphore(_OPENINGS)
        #: Whether more may be due than was claimed, and whether it can be claimed at once: then a wait is short.
        self.left = self.hungry = False
        #: How often there was a wait.
        self.turns = 0
        metrics.preset_polls(Outcome)

    # What a transaction asks and tells.

    @property
    def pending(self) -> bool:
        """Whether anything is still to be polled or written."""
        return bool(self._tasks or self._finished or any(lane.queue for lane in self._lanes.values()))

    @property
    def known(self) -> list[str]:
        """The endpoints that need not be read again."""
        return list(self._lanes)

    @property
    def busy(self) -> list[str]:
        """The endpoints that have enough to do."""
        return [key for key, lane in self._lanes.items() if not lane.closed and lane.outstanding >= 2 * lane.limit]

    def may_claim(self, *, over: bool) -> bool:
        """Say whether more may be claimed.

        When the run's time is over, a poll that began before may still wait for a slow endpoint. It must not hold up
        the others: as long as it does, they go on.
        """
        if not over:
            return True
        if self._ending is not None:
            return False
        self._over = self._over or self._clock()
        return any(began < self._over for began in self._tasks.values())

    def meet(self, endpoints: Iterable[Endpoint]) -> None:
        """Learn of endpoints."""
        for endpoint in endpoints:
            self._lanes.setdefault(endpoint.id, _Lane(endpoint, self._most))

    def submit(self, observations: Iterable[Observation]) -> None:
        """Poll these, as soon as their lanes let them."""
        for one in observations:
            self._lanes[one.endpoint].queue.append(one)

    def finished(self) -> list[Result]:
        """Take the results that are there."""
        taken, self._finished = self._finished, []
        return taken

    def news(self) -> list[News]:
        """Take what was learned of endpoints that have nothing more to do, once for each change."""
        told = []
        for lane in self._lanes.values():
            if (lane.outstanding and not lane.closed) or not (lane.well or lane.error):
                continue
            error = lane.error if lane.closed or not lane.well else None
            if lane.told != (error, lane.rest):
                lane.told = (error, lane.rest)
                told.append(News(lane.endpoint.id, error, lane.rest))
        return told

    # What happens between two transactions.

    def wait(self, stopping: Callable[[], bool]) -> None:
        """Poll until there is something to write, or to claim, or a while is over. Raises what `stopping` raises."""
        self.turns += 1
        self._loop.run_until_complete(self._turn(stopping))

    def close(self) -> None:
        """Cut what is under way and forget all tokens."""
        try:
            self._loop.run_until_complete(self._end())
        finally:
            self._loop.close()  # unlike a Runner's, this does not wait for a look-up of a name that hangs
            for lane in self._lanes.values():
                wipe(lane.token)

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        openings = [lane.opening for lane in self._lanes.values() if lane.opening]
        for opening in openings:
            opening.cancel()
        await asyncio.gather(*self._tasks, *openings, return_exceptions=True)
        for opening in openings:
            if not opening.cancelled() and opening.exception() is None:
                await opening.result().close()
        await self._transport.close()

    async def _turn(self, stopping: Callable[[], bool]) -> None:
        began = self._clock()
        first: float | None = None
        while True:
            if stopping():
                await self._end_soon()
            self._start()
            if not self._tasks:
                return
            pause = 0.002 if self.hungry else _GATHER if first is not None else _LOOK
            done, _ = await asyncio.wait(self._tasks, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                del self._tasks[task]
                task.result()
            now = self._clock()
            if self._finished and first is None:
                first = now
            if self.hungry or (first is not None and now - first >= _GATHER):
                return
            if now - began >= _LONGEST:
                return

    async def _end_soon(self) -> None:
        """Begin nothing more, and after a while let go of what is under way: it is due again in the next slot."""
        if self._ending is None:
            self._ending = self._clock()
        for lane in self._lanes.values():
            self.left = self.left or bool(lane.queue)
            lane.queue.clear()
        if self._tasks and self._clock() - self._ending >= _FAREWELL:
            self.left = True
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._tasks.clear()

    def _start(self) -> None:
        """Begin as many polls as the lanes let; fail those of closed lanes at once."""
        for lane in self._lanes.values():
            while lane.closed and lane.queue:
                self._fail_unasked(lane.queue.popleft(), lane.closed)
            while lane.queue and lane.active < lane.limit:
                lane.active += 1
                task = asyncio.get_running_loop().create_task(self._poll(lane, lane.queue.popleft()))
                self._tasks[task] = self._clock()

    async def _poll(self, lane: _Lane, one: Observation) -> None:
        began = self._clock()
        try:
            client = await self._client(lane)
            if lane.closed:
                self._fail_unasked(one, lane.closed)
                return
            await self._ask(client, lane, one)
            metrics.GITOPS_POLL_SECONDS.observe(self._clock() - began)
        except PollFailed as error:
            self._note(lane, error)
            prefix = "" if error.outcome in (Outcome.UNWRAP, Outcome.CLIENT) else "argocd fetch: "
            self._finish(Result(one, error.outcome, Verdict.ACTIVE, prefix + error.text, None))
        finally:
            lane.active -= 1

    async def _ask(self, client: Client, lane: _Lane, one: Observation) -> None:
        application, used = await client.application(one.application, one.known)
        lane.well, lane.strikes, lane.probing, lane.limit = True, 0, False, self._most
        state: dict[str, Any] = application.snapshot()
        outcome, error = Outcome.OK, None
        try:
            state |= snapshot(await client.resources(one.application, used))
        except PollFailed as problem:  # what the application itself says still counts
            outcome, error = Outcome.PARTIAL, f"argocd fetch: {problem.text}"
            self._note(lane, problem)
        verdict = decide(application, one.created_at, fresh=self._fresh)
        self._finish(Result(one, outcome, verdict, error, state))

    async def _client(self, lane: _Lane) -> Client:
        if lane.opening is None:
            lane.opening = asyncio.get_running_loop().create_task(self._open(lane))
        return await asyncio.shield(lane.opening)

    async def _open(self, lane: _Lane) -> Client:
        endpoint = lane.endpoint
        try:
            async with self._openings:
                lane.token = await open_token(endpoint.envelope, self._keys, self._transport)
            return Client(
                endpoint.base_url,
                lane.token,
                ca_pem=endpoint.tls_ca_pem,
                server_name=endpoint.tls_server_name,
                deadline=self._deadline,
                connections=self._most,
            )
        except UnwrapFailed as error:
            problem = PollFailed(Outcome.UNWRAP, f"unwrap token: {error}")
        except ValueError as error:
            problem = PollFailed(Outcome.CLIENT, f"build argocd client: {error}")
        lane.closed = problem
        raise problem from None

    def _note(self, lane: _Lane, error: PollFailed) -> None:
        """Learn from a failure whether its endpoint is down."""
        if error.outcome in _OWN_FAULT or error.outcome is Outcome.UNWRAP:
            return
        if lane.closed is None:
            lane.error = error.text
        lane.strikes += error.outcome in _STRIKE
        if error.outcome in _DOWN or lane.strikes >= (1 if lane.probing else _STRIKES):
            lane.closed = lane.closed or error
            lane.rest = max(lane.rest, min(error.retry_after or 0.0, LONGEST_RETRY_AFTER))

    def _fail_unasked(self, one: Observation, why: PollFailed) -> None:
        text = why.text
        if why.outcome not in (Outcome.UNWRAP, Outcome.CLIENT):
            text = f"argocd fetch: not asked, the endpoint is down: {why.text}"
        self._finish(Result(one, Outcome.SKIPPED, Verdict.ACTIVE, text, None))

    def _finish(self, result: Result) -> None:
        metrics.GITOPS_POLLS.labels(result.outcome.value).inc()
        self._finished.append(result)
