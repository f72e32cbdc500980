"""A deployment for the soak: two whole replicas as operators run them, with what they may do and no more."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import psycopg
import redis as redis_py

from app.demo.ports import reserved_port
from app.demo.servers import Postgres, Redis
from app.storage import migrations
from tests.soak import load, rates
from tests.support import argocd
from tests.support.http_server import Receiver, Reply, Seen
from tests.support.processes import ROOT, Process, environment
from tests.support.rights.acl import PASSWORD, users
from tests.support.rights.grants import grant
from tests.support.smtp_server import SmtpServer

CONTROL_PLANE = ROOT / "app" / "demo" / "control_plane.sql"
ROLE = "secrets_bridge_worker_role"
REPLICAS = 2
#: PostgreSQL's autovacuum keeps pace with ten times the work.
VACUUM = {"autovacuum_naptime": "6s"}
#: Of so many requests a receiver refuses one, and takes it when it is sent again.
REFUSES_EVERY = {"/webhook": 25, "/slack": 40}
#: Requests that a stand-in remembers.
REMEMBERED = 100


class Sinks:
    """Stand-ins for webhook, Slack, mail and the dead man's switch, which count what they take."""

    def __init__(self) -> None:
        self.asked: dict[str, int] = {}
        self.mail = SmtpServer()
        self.http = Receiver(self._answer)

    def _answer(self, seen: Seen) -> Reply:
        """Take it, but now and then."""
        self.asked[seen.path] = number = self.asked.get(seen.path, 0) + 1
        del self.http.seen[:-REMEMBERED]
        if number % REFUSES_EVERY.get(seen.path, number + 1) == 0:
            return Reply(429, b"later", {"Retry-After": "1"}) if seen.path == "/slack" else Reply(503, b"busy")
        return Reply(200, b"ok")

    def taken(self) -> dict[str, int]:
        """Return how many requests each has had, and forget the mails."""
        self.asked["mail"] = self.asked.get("mail", 0) + len(self.mail.got)
        for remembered in (self.mail.got, self.mail.greetings, self.mail.encrypted):
            del remembered[:]
        return dict(self.asked)

    def variables(self) -> dict[str, str]:
        """Return the settings that lead to them."""
        return {
            "SB_NOTIFICATION_ALLOWED_NETWORKS": "127.0.0.0/8",
            "SB_NOTIFICATION_WEBHOOK_URL": f"{self.http.url}/webhook",
            "SB_NOTIFICATION_SLACK_URL": f"{self.http.url}/slack",
            "SB_NOTIFICATION_SLACK_MIN_SEVERITY": "info",
            "SB_NOTIFICATION_EMAIL_HOST": "127.0.0.1",
            "SB_NOTIFICATION_EMAIL_PORT": str(self.mail.port),
            "SB_NOTIFICATION_EMAIL_TLS": "none",
            "SB_NOTIFICATION_EMAIL_ALLOW_PLAINTEXT": "true",
            "SB_NOTIFICATION_EMAIL_FROM": "worker@example.org",
            "SB_NOTIFICATION_EMAIL_TO": "operator@example.org",
            "SB_NOTIFICATION_EMAIL_MIN_SEVERITY": "info",
            "SB_WORKER_HEARTBEAT_URL": f"{self.http.url}/heartbeat",
        }


#: glibc keeps up to 448 freed pieces for each thread, as memory in use. At these rates that fills for more than an hour
#: and looks like a leak until it is full.
UNCACHED = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}


class Deployment:
    """Servers, stand-ins and two replicas; `leak` names what each of their workers is made to leak."""

    def __init__(self, directory: Path, leak: str = "") -> None:
        self.directory = directory
        self._leak = leak
        self._stack = ExitStack()
        self.replicas: list[Process] = []
        self.started = time.monotonic()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        enter = stack.enter_context
        self.postgres = enter(Postgres(self.directory, port=enter(reserved_port()), settings=VACUUM))
        self.redis = enter(Redis(self.directory, port=enter(reserved_port())))
        self.sinks = Sinks()
        enter(self.sinks.http)
        self.sinks.mail.start()
        stack.callback(self.sinks.mail.stop)
        watched = enter(Receiver())
        self.sql = enter(psycopg.connect(self.postgres.url(), autocommit=True))
        self.client = enter(redis_py.Redis.from_url(self.redis.url()))
        self._prepare(watched)
        self.env = environment(
            self.postgres.url(user=ROLE),
            self.redis.url().replace("//", f"//{self._user()}@"),
            **rates.settings(),
            **argocd.ON,
            **self.sinks.variables(),
            SB_WORKER_NAME="soak",
            SOAK_LEAK=self._leak,
            **UNCACHED,
        )
        for number in range(1, REPLICAS + 1):
            replica = enter(self._replica(number, enter(reserved_port())))
            # Orderly, and before the servers: workers whose runner was killed may hang on the pipe of their log.
            stack.callback(_end, replica)
            # One by one: on a busy machine the boots of many processes at once take each other's time.
            self.replicas.append(replica.ready())

    def _prepare(self, watched: Receiver) -> None:
        self.sql.execute(CONTROL_PLANE.read_bytes())
        migrations.migrate(self.sql)
        self.sql.execute(f"CREATE ROLE {ROLE} LOGIN".encode())
        granted = grant(self.postgres.url(), ROLE)
        assert granted.returncode == 0, granted.stderr
        argo = load.begin(self.sql, watched.url)

        def answer(seen: Seen) -> Reply:
            del watched.seen[:-REMEMBERED]
            return argo(seen)

        watched.answer = answer

    def _user(self) -> str:
        """Make the user of deploy/redis.acl; return its name and password as a URL has them."""
        _, name, *rules = users().split()
        self.client.execute_command("ACL", "SETUSER", name, "reset", *rules)
        return f"{name}:{PASSWORD}"

    def _replica(self, number: int, port: int) -> Process:
        words = ("sb-worker", "run", "--procfile", str(self._procfile()))
        env = {**self.env, "SB_NOTIFICATION_LOCAL_ADDR": f"127.0.0.1:{port}"}
        return Process(words, env, self.directory / f"replica-{number}.log")

    def _procfile(self) -> Path:
        """Return the Procfile; for a leak one whose worker is started by what makes it leak."""
        if not self._leak:
            return ROOT / "Procfile"
        path = self.directory / "Procfile"
        leaking = "worker: python -m tests.soak.leaking"
        path.write_text((ROOT / "Procfile").read_text().replace("worker: dramatiq", leaking))
        return path


def _end(replica: Process) -> None:
    if replica.popen.poll() is None:
        replica.end()
