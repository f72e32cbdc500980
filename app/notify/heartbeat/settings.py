"""Where the dead man's switch is, and whose runs it gets to know of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from app.core.config import Settings, name_of, variable
from app.notify import routing
from app.notify.settings import NotificationSettings
from app.notify.sink import Destination, Filter, SecretUrl, destination


class HeartbeatSettings(Settings):
    """The URL, and the sweepers."""

    url: SecretUrl | None = variable(
        "SB_WORKER_HEARTBEAT_URL",
        default=None,
        secret=True,
        meaning="URL that gets a GET after good runs, such as a check's of healthchecks.io, which alarms without them",
    )
    sweepers: Filter = variable(
        "SB_WORKER_HEARTBEAT_SWEEPERS",
        default="",
        meaning="sweepers whose good runs count for it, comma-separated; -name for all but it; unset: all",
    )

    @property
    def enabled(self) -> bool:
        """Whether there is a URL."""
        return self.url is not None

    @property
    def destinations(self) -> Mapping[str, Destination]:
        """Where the URL leads, by its variable's name."""
        return {name_of(type(self), "url"): destination(self.url)} if self.url else {}

    def chosen(self, sweepers: Iterable[str]) -> list[str]:
        """Return those of these sweepers whose runs count."""
        included = [name for name in self.sweepers if not name.startswith("-")]
        return [name for name in sweepers if f"-{name}" not in self.sweepers and (not included or name in included)]

    def problems(
        self, common: NotificationSettings, sweepers: Collection[str], enabled: Collection[str]
    ) -> Iterator[str]:
        """Yield what is wrong with it beside what there is: the sweepers, and those of them that are on."""
        yield from routing.closed_places(common, self.destinations)
        unknown = list(routing.unknown_sweepers(type(self), self.sweepers, sweepers))
        yield from unknown
        if self.enabled and not unknown and not self.chosen(enabled):
            text = "none of these is on, so there would never be a heartbeat"
            yield f"{name_of(type(self), 'sweepers')}: {text}; accepted: {', '.join(sorted(enabled))}"
