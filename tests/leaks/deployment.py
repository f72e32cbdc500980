"""A deployment whose every secret and every row is a canary: a worker, a notifier, a scheduler, and who is around."""

from __future__ import annotations

import base64
import json
import shlex
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import redis as redis_py
from psycopg import Connection

from app.demo.ports import reserved_port
from app.demo.servers import Redis
from app.storage import migrations
from tests.leaks import places
from tests.leaks.canaries import Canaries
from tests.leaks.commands import Commands
from tests.leaks.evidence import Evidence
from tests.leaks.forms import Find, Forms
from tests.leaks.planting.receivers import Echo, received
from tests.leaks.planting.scene import Scene
from tests.leaks.planting.servers import Interposer, StrictPostgres
from tests.leaks.watching import Watch
from tests.support.http_server import Receiver
from tests.support.processes import ROOT, SCHEDULER, WORKER, Process, environment
from tests.support.rights.grants import grant
from tests.support.smtp_server import SmtpServer
from tests.support.tls import Authority
from tests.support.waiting import HUNG_PROCESS, eventually
from tests.tracing.collector import Collector

CONTROL_PLANE = ROOT / "app" / "demo" / "control_plane.sql"
_KINDS = {"worker": (*WORKER, "--queues", "sweeps"), "notifier": (*WORKER, "--queues", "sinks"), "scheduler": SCHEDULER}
#: Not secrets to the worker, and so not read from files.
_NO_FILES = ("SB_NOTIFICATION_SLACK_API_URL", "SB_NOTIFICATION_PAGERDUTY_URL")
#: Every sweeper and every receiver is on, and nothing waits.
QUICK = {
    **{
        f"SB_SWEEP_{name}_INTERVAL": "2s"
        for name in (
            *("WRAPS", "SECRETS", "AGENTS", "JOBS", "DISCOVER", "DISCOVER_STUCK", "REVEAL", "CROSS_TEAM_FILL"),
            *("SESSIONS", "GITOPS_POLL", "GITOPS_TIMEOUT"),
        )
    },
    "LOG_LEVEL": "debug",
    "SB_ENV": "dev",
    "SB_WORKER_NAME": "leaks",
    "SB_WORKER_GITOPS_ENABLED": "true",
    "SB_WORKER_SHUTDOWN_GRACE": "5s",
    "SB_WORKER_SWEEP_BUDGET": "10s",
    "SB_WORKER_LOCK_LEASE": "10s",
    "SB_NOTIFICATION_TIMEOUT": "60s",
    "SB_NOTIFICATION_APPRISE_SWEEPERS": "agents-stale",
    "SB_NOTIFICATION_ALLOWED_NETWORKS": "127.0.0.0/8",
    "SB_NOTIFICATION_REPEAT_INTERVAL": "0s",
    "SB_NOTIFICATION_PACE": "0s",
    "SB_NOTIFICATION_RELAY_INTERVAL": "2s",
    "SB_NOTIFICATION_BREAKER_COOLDOWN": "1s",
    **{
        f"SB_NOTIFICATION_{sink}_MIN_SEVERITY": "info"
        for sink in ("SLACK", "EMAIL", "PAGERDUTY", "TEAMS", "DISCORD", "APPRISE")
    },
}


class Deployment:
    """The deployment; with a `launcher` its processes are started by that, which may have been tampered with."""

    def __init__(self, directory: Path, launcher: str = "") -> None:
        self._stack = ExitStack()
        self._launcher = (sys.executable, "-c", launcher) if launcher else ()
        self._logs = 0
        self.directory = directory
        self.canaries = Canaries()
        self.evidence = Evidence()
        self.processes: dict[str, Process] = {}

    def __enter__(self) -> Self:
        enter = self._stack.enter_context
        self._directories = [self.directory / name for name in ("servers", "commands", "temporary", "secrets", "logs")]
        for directory in self._directories:
            directory.mkdir()
        servers, commands, self._temporary, self._secrets, self._log = self._directories
        self.postgres = enter(StrictPostgres(servers, enter(reserved_port()), self.canaries))
        user = f"--user {self.canaries['REDIS_URL user']} on >{self.canaries['REDIS_URL password']} ~* &* +@all"
        self.redis = enter(Redis(servers, port=enter(reserved_port()), options=user.split()))
        self.interposer = enter(Interposer(self.redis.port))
        self.echo = Echo(self.canaries, lambda wrapped: self.scene.plaintext(wrapped))
        self.receiver = enter(Receiver(self.echo))
        self.collector = enter(Collector())
        self._start_mail()
        with self.postgres.superuser() as sql:
            self._fill(sql)
        self.env = self._environment()
        self.watch = enter(Watch(self.evidence))
        self.watch.redis(self.redis.port)
        self.watch.statements(self.postgres.url(), self.postgres.role)
        self.commands = enter(Commands(self.env, commands, self.evidence))
        self.watch.processes(lambda: [*self.commands.pids, *(one.popen.pid for one in list(self.processes.values()))])
        for kind in _KINDS:
            self.start(kind)
        return self

    def __exit__(self, *words: object) -> None:
        for process in self.processes.values():
            process.__exit__(None)
        self._stack.close()

    def _start_mail(self) -> None:
        authority = Authority(self._secrets)
        self.mail = SmtpServer(tls=authority.server(), implicit=True, login=True)
        refused = f"{self.canaries['mail refused recipient']}@example.org"
        self.mail.replies[f"RCPT {refused}"] = f"550 5.1.1 <{refused}> {self.canaries['mail password']} unknown"
        self.mail.start()
        self._stack.callback(self.mail.stop)
        self._recipients = f"{self.canaries['mail recipient']}@example.org,{refused}"
        self._ca = authority.file

    def _fill(self, sql: Connection[Any]) -> None:
        sql.execute(CONTROL_PLANE.read_bytes())
        migrations.migrate(sql)
        self.scene = Scene(sql, self.canaries, self.receiver.url)
        self.scene.set()
        granted = grant(self.postgres.url(self.postgres.name), self.postgres.role)
        assert granted.returncode == 0, granted.stderr

    def sinks(self, word: str) -> dict[str, str]:
        """Return the settings of receivers by HTTP that answer this word."""
        new, base = self.canaries, f"{self.receiver.url}/{word}"
        return {
            "SB_NOTIFICATION_WEBHOOK_URL": f"{base}/webhook/{new['webhook path']}?token={new['webhook query']}",
            "SB_NOTIFICATION_SLACK_API_URL": f"{base}/slack/{new['slack path']}",
            "SB_NOTIFICATION_PAGERDUTY_URL": f"{base}/pagerduty/{new['pagerduty path']}",
            "SB_NOTIFICATION_TEAMS_URL": f"{base}/teams/{new['teams path']}?sig={new['teams query']}",
            "SB_NOTIFICATION_DISCORD_URL": f"{base}/discord/{new['discord path']}",
            "SB_NOTIFICATION_APPRISE_URLS": "json://{}:{}@127.0.0.1:{}/{}/apprise/{}?+X-Token={}".format(
                new["apprise user"], new["apprise password"], self.receiver.port, word, new["apprise path"],
                new["apprise header"],
            ),
        }  # fmt: skip

    def _environment(self) -> dict[str, str]:
        new = self.canaries
        redis = f"redis://{new['REDIS_URL user']}:{new['REDIS_URL password']}@127.0.0.1:{self.interposer.port}/0"
        signing = "whsec_" + base64.b64encode(new["webhook signing secret"].encode()).decode()
        secret = {
            **self.sinks("turns"),
            "SB_NOTIFICATION_WEBHOOK_SIGNING_SECRETS": signing,
            "SB_NOTIFICATION_WEBHOOK_HEADERS": json.dumps({"X-Token": new["webhook header"]}),
            "SB_NOTIFICATION_SLACK_TOKEN": f"xoxb-{new['slack token']}",
            "SB_NOTIFICATION_PAGERDUTY_ROUTING_KEY": new.of_length("pagerduty routing key", 32),
            "SB_NOTIFICATION_EMAIL_USERNAME": new["mail user"],
            "SB_NOTIFICATION_EMAIL_PASSWORD": new["mail password"],
            "SB_WORKER_HEARTBEAT_URL": f"{self.receiver.url}/turns/heartbeat/{new['heartbeat path']}",
            "SB_KMS_VAULT_TOKEN": new["Vault token"],
            "VAULT_HEADERS": json.dumps({"X-Token": new["Vault header"]}),
            "SB_WRAP_MASTER_KEY": base64.b64encode(new.of_length("master key", 32).encode()).decode(),
            "OTEL_EXPORTER_OTLP_HEADERS": f"authorization={new['collector header']}",
            "AWS_ACCESS_KEY_ID": new["AWS access key"],
            "AWS_SECRET_ACCESS_KEY": new["AWS secret key"],
            "AWS_SESSION_TOKEN": new["AWS session token"],
            "SB_DISCOVER_TARGETS_JSON": json.dumps([{"provider": "vault", "cluster": new["discover target"]}]),
        }
        plain = {
            **QUICK,
            **self.collector.url_of_everything,
            "SB_NOTIFICATION_SLACK_CHANNEL": "C1",
            "SB_NOTIFICATION_EMAIL_HOST": "127.0.0.1",
            "SB_NOTIFICATION_EMAIL_PORT": str(self.mail.port),
            "SB_NOTIFICATION_EMAIL_TLS": "implicit",
            "SB_NOTIFICATION_EMAIL_FROM": "worker@example.org",
            "SB_NOTIFICATION_EMAIL_TO": self._recipients,
            "SB_NOTIFICATION_CA_BUNDLE": str(self._ca),
            "SB_KMS_BACKEND": "vault-transit",
            "SB_KMS_VAULT_ADDR": f"{self.receiver.url}/200/vault",
            "SB_KMS_VAULT_KEY": "key",
            "TMPDIR": str(self._temporary),
            "SB_WORKER_METRICS_DIR": str(self._temporary),
            "COLUMNS": "250",
        }
        return environment(self.postgres.worker_url, redis, **plain, **self._in_files(secret))

    def _in_files(self, secret: Mapping[str, str]) -> dict[str, str]:
        """Have every other secret come from a file, whose name is a canary, too."""
        given = {}
        for number, (name, value) in enumerate(secret.items()):
            if number % 2 or name in _NO_FILES or name.startswith("AWS_"):
                given[name] = value
                continue
            path = self._secrets / self.canaries[f"path of {name}"]
            path.write_text(value, encoding="utf-8")
            given[f"{name}_FILE"] = str(path)
        return given

    def start(self, kind: str, **variables: str) -> None:
        """Start a process of a kind."""
        words = (*self._launcher, *_KINDS[kind])
        self._logs += 1
        self.processes[kind] = Process(words, {**self.env, **variables}, self._log / f"{kind}-{self._logs}.log")

    def client(self) -> redis_py.Redis:
        """Return a client of Redis that nobody refuses."""
        return redis_py.Redis.from_url(self.redis.url())

    def look(self) -> None:
        """Gather what is to be seen now."""
        for name, process in self.processes.items():
            self.evidence.add_all(places.pages(name, process))
        with self.client() as client:
            self.evidence.add_all(places.redis_keys(client))
        with self.postgres.superuser() as sql:
            self.evidence.add_all(places.tables(sql))

    def end(self) -> None:
        """Stop every process, and gather what has piled up."""
        # After an outage a page shows for a while what was known before.
        eventually(lambda: self.processes["worker"].get("/status.json").status_code == HTTPStatus.OK, HUNG_PROCESS)
        self.look()
        for process in self.processes.values():
            process.popen.terminate()
        for process in self.processes.values():
            process.popen.wait()
            process.__exit__(None)
        for path in self._log.iterdir():
            self.evidence.add(f"log of the {path.name.partition('-')[0]}", path.read_text(encoding="utf-8"))
        self.evidence.add_all(received(self.receiver))
        for _, _, message in self.mail.got:
            self.evidence.add("mail", message.as_string(), *(str(part.get_content()) for part in message.iter_parts()))
        self.evidence.add("greetings of mail", *self.mail.greetings)
        self.evidence.add_all(places.traces(self.collector))
        self.evidence.add_all(places.files("files that are left", [self._temporary]))
        self.evidence.add_all(places.statements(self.postgres.log, self.postgres.role))

    def finds(self) -> list[Find]:
        """Return every canary that was seen anywhere."""
        return self.evidence.find(Forms(self.canaries))

    def line(self, line: str, **variables: str) -> None:
        """Begin a command, as a shell would."""
        self.commands.begin(*shlex.split(line), **variables)
