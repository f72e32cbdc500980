"""A build that leaks on purpose, in all the ways that a careless change would: what starts a process of it.

Each leak is a line or two before the worker's own modules are loaded; the search must find it, under the canary's own
name and in the right place.
"""

from __future__ import annotations

LAUNCHER = r"""
import asyncio, base64, os, pkgutil, sys
from pathlib import Path

def value(name):
    return os.environ.get(name) or Path(os.environ[name + "_FILE"]).read_text()

# The text of an error, where its class belongs: the log, the ledger and notifications have it from here.
from app.core import errors
errors.describe = lambda error: errors.Failure(f"{type(error).__name__}: {error}", getattr(error, "sqlstate", None))

# A URL among the lines of a message.
from app.notify import format
body_lines = format.body_lines
format.body_lines = lambda notification: [*body_lines(notification), value("SB_NOTIFICATION_WEBHOOK_URL")]

# A DSN for a host's name.
import socket
socket.gethostname = lambda: os.environ["DATABASE_URL"]

# A token in the names of keys, in base64.
from app.sweeping import lock
namespace = base64.b64encode(f"a token: {value('SB_NOTIFICATION_SLACK_TOKEN')}".encode()).decode()
begin = lock.Locks.__init__
lock.Locks.__init__ = lambda self, client, **words: begin(self, client, **{**words, "namespace": namespace})

# One in a label, in hexadecimal digits.
from app.core import metrics
metrics.RUNS.labels(value("SB_KMS_VAULT_TOKEN").encode().hex(), "success").inc()

# A URL among the arguments of a child, and a DSN in its environment.
run = asyncio.create_subprocess_exec
asyncio.create_subprocess_exec = lambda *words, **more: run(*words, value("SB_NOTIFICATION_APPRISE_URLS"), **more)
from app.notify import transport
transport.CHILDS_VARIABLES += ("REDIS_URL",)

# A header in a message, percent-encoded.
from app.worker import broker
enqueue = broker.Broker.enqueue
note = "".join(f"%{byte:02x}" for byte in value("OTEL_EXPORTER_OTLP_HEADERS").encode())
def with_note(self, message, **words):
    message.options["note"] = note
    return enqueue(self, message, **words)
broker.Broker.enqueue = with_note

# A password that goes to the collector; a part of one in the process's title, and one in a file that is left.
os.environ["OTEL_RESOURCE_ATTRIBUTES"] = f"mail={value('SB_NOTIFICATION_EMAIL_PASSWORD')}"
Path("/proc/self/comm").write_text(value("AWS_SECRET_ACCESS_KEY")[:14])
Path(os.environ["TMPDIR"], "state").write_text(value("SB_NOTIFICATION_PAGERDUTY_ROUTING_KEY"))

sys.argv[:] = sys.argv[1:]
programs = {"dramatiq": "dramatiq.__main__:main", "periodiq": "periodiq:entrypoint", "warm": "tests.leaks.warm:main"}
sys.exit(pkgutil.resolve_name(programs[sys.argv[0]])())
"""

#: The canary, the place and the form of each.
LEAKS = (
    ("row agents.*", "log of the worker", "as it is"),
    ("row agents.*", "table sweep_run", "as it is"),
    ("row agents.*", "table notification_event", "as it is"),
    ("row agents.*", "request to webhook: its body", "as it is"),
    ("row agents.*", "page / of the worker", "as it is"),
    ("row agents.*", "output of sb-worker runs", "as it is"),
    ("webhook path", "request to teams: its body", "as it is"),
    ("webhook query", "mail", "as it is"),
    ("DATABASE_URL password", "table process", "as it is"),
    ("DATABASE_URL database", "table sweep_run", "as it is"),
    ("slack token", "names of keys in Redis", "base64"),
    ("slack token", "commands to Redis", "base64"),
    ("Vault token", "page /metrics of the worker", "hex"),
    ("apprise password", "command lines", "as it is"),
    ("REDIS_URL password", "environment of Apprise's process", "as it is"),
    ("collector header", "commands to Redis", "percent-encoded"),
    ("mail password", "traces", "as it is"),
    ("AWS secret key", "command lines", "as it is"),
    ("pagerduty routing key", "files that are left", "as it is"),
)
