"""A target: what is thrown at a piece of the program, and what must hold whatever it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from hypothesis import HealthCheck
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

T = TypeVar("T")

#: How long a case takes, and how large it is, says nothing of a property.
UNHURRIED = (
    *(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example),
    HealthCheck.filter_too_much,
)

#: What raises nothing for a good input, and an AssertionError or whatever else it may for one that breaks a promise.
Holds = Callable[[T], None]


class Servers(Protocol):
    """Real servers for targets that need one; they are started when they are asked for."""

    def postgres(self) -> str:
        """Return the URL of a database with the control plane's schema and ours."""
        ...

    def redis(self) -> str:
        """Return the URL of an empty Redis."""
        ...


@dataclass(frozen=True)
class Target(Generic[T]):
    """One property.

    `inputs` are structured, and `raw` makes an input of any bytes where that says something. `seeds` are bytes that a
    fuzzer may begin with; `found` are inputs that once broke the property, tried each time. `cases` is how many the
    suite tries: what bounds its time.
    """

    name: str
    inputs: SearchStrategy[T]
    opened: Callable[[Servers], AbstractContextManager[Holds[T]]]
    raw: Callable[[bytes], T] | None = None
    seeds: tuple[bytes, ...] = ()
    found: tuple[T, ...] = ()
    cases: int = 100

    @property
    def everything(self) -> SearchStrategy[T]:
        """Structured inputs, and those of any bytes."""
        return self.inputs if self.raw is None else st.one_of(self.inputs, st.binary(max_size=200).map(self.raw))


def target(  # noqa: PLR0913 - what a target is
    name: str,
    inputs: SearchStrategy[T],
    *,
    raw: Callable[[bytes], T] | None = None,
    seeds: tuple[bytes, ...] = (),
    found: tuple[T, ...] = (),
    cases: int = 100,
) -> Callable[[Holds[T]], Target[T]]:
    """Make the decorated property, which needs no server, a target."""

    def declare(holds: Holds[T]) -> Target[T]:
        @contextmanager
        def opened(_servers: Servers) -> Iterator[Holds[T]]:
            yield holds

        return Target(name, inputs, opened, raw, seeds, found, cases)

    return declare
