"""What an operator types, on a deployment that works and with settings that do not."""

from __future__ import annotations

from collections.abc import Iterator

import click

from actors import SWEEPERS
from app.cli.main import main
from tests.leaks.deployment import Deployment
from tests.support.http_server import Rude, body_that_breaks_off

_LINES = (
    *("status", "status -o wide", "status -o json", "config", "config --json", "check", "check --json", "migrate"),
    *("runs", "runs --failed -o wide", "runs -o json", "verify", "verify -o json", "dead list", "dead list --json"),
    *("notify log", "notify log --json --limit 1000", "notify log --sums", "notify explain", "dead show 1 2 3 4 5"),
    *("why agents-stale", "why gitops-poller -o json", "sweep sessions-expired", "sweep secrets-stale --json"),
    *("completion bash", "config --markdown", "dead replay --all --rate 1000", "dead purge --all --older 1h"),
    *("unlock agents-stale --yes", "why agents-stale 12:00", "migrate --sql", "nonsense", "status --nonsense"),
)
#: What receivers answer to a test.
WORDS = ("400", "401", "404", "413", "429", "500", "302")


def commands(command: click.Command = main, *path: str) -> Iterator[tuple[str, ...]]:
    """Yield every command."""
    yield path
    for name, inner in command.commands.items() if isinstance(command, click.Group) else ():
        yield from commands(inner, *path, name)


def look_around(deployment: Deployment) -> None:
    """Ask whatever can be asked; pause and mute with a reason."""
    for path in commands():
        deployment.commands.begin(*path, "--help")
    reasons = deployment.canaries["reason of a pause"], deployment.canaries["reason of a mute"]
    deployment.commands("pause", "discover-scheduler", "--for", "1h", "--reason", f"because of {reasons[0]}")
    deployment.commands("notify", "mute", "discord", "--for", "1h", "--reason", f"because of {reasons[1]}")
    for line in _LINES:
        deployment.line(line)
    for sweeper in SWEEPERS:
        deployment.line(f"sweep {sweeper.name} --dry-run")


def try_receivers(deployment: Deployment) -> None:
    """Send tests to receivers that say back what they were told, and to others that are none."""
    for word in WORDS:
        sinks = deployment.sinks(word)
        if word not in ("500", "302"):
            sinks["SB_NOTIFICATION_APPRISE_URLS"] = ""  # it takes seconds, and says no more than whether it went well
        deployment.line("notify test --severity error --json", **sinks, **_no_files(sinks))
    new = deployment.canaries
    port = deployment.receiver.port
    for base in (f"https://{new['receiver host']}.invalid", f"https://127.0.0.1:{port}", "http://127.0.0.1:1"):
        url = f"{base}/{new['receiver path']}?{new['receiver query']}"
        names = ("WEBHOOK", "TEAMS", "DISCORD")
        sinks = {f"SB_NOTIFICATION_{name}_URL": url for name in names} | {"SB_NOTIFICATION_APPRISE_URLS": ""}
        deployment.line("notify test --json", **sinks, **_no_files(sinks))
    deployment.line("notify test --json")


def try_proxy(deployment: Deployment) -> None:
    """Send a test through a proxy that quotes its login."""
    new = deployment.canaries
    said = new["proxy answer"]
    answer = f"HTTP/1.1 407 {said}\r\nProxy-Status: {said}\r\nX: {said}\r\nContent-Length: 24\r\n\r\n{said}".encode()
    with Rude(body_that_breaks_off(answer)) as proxy:
        url = f"http://{new['proxy user']}:{new['proxy password']}@127.0.0.1:{proxy.port}"
        sinks = {
            "SB_NOTIFICATION_WEBHOOK_URL": f"https://example.org/{new['receiver path']}",
            "SB_EGRESS_PROXY_URL": url,
            "SB_NOTIFICATION_APPRISE_URLS": f"jsons://example.org/{new['receiver path']}",
        }
        deployment.commands("notify", "test", "--json", **sinks, **_no_files(sinks))


def try_servers(deployment: Deployment) -> None:
    """Use servers that are not there, do not know us, or are something else."""
    new, server = deployment.canaries, deployment.postgres
    said = new["PostgreSQL error"]
    fields = "".join(f"{field}{said}\0" for field in "SVCMDHPpqWstcdnFLR")
    error = b"E" + (len(fields) + 5).to_bytes(4, "big") + fields.encode() + b"\0"
    place = f"127.0.0.1:{server.port}/{server.name}"
    with Rude(body_that_breaks_off(error)) as rude, Rude(body_that_breaks_off(said.encode() * 9)) as garbage:
        own = f"application_name={new['other application_name']}&connect_timeout=5"
        keys = f"sslkey=/{new['sslkey path']}&sslcert=/{new['sslcert path']}&sslpassword={new['sslpassword']}"
        stranger = f"{new['unknown role']}:{new['wrong password']}"
        databases = [
            f"postgres://{server.role}:{new['wrong password']}@{place}?{own}",
            f"postgres://{stranger}@{place}?{own}",
            f"postgres://postgres@127.0.0.1:{server.port}/{new['unknown database']}?{own}",
            f"postgres://{new['unknown role']}@{new['unknown host']}.invalid/{new['unknown database']}",
            f"postgres://{server.role}:{server.password}@{place}?sslmode=require&{keys}",
            f"postgres://{server.role}:{server.password}@{place}?sslmode=verify-full&sslrootcert=/{new['root path']}",
            *(f"postgres://{stranger}@127.0.0.1:{other.port}/{new['unknown database']}" for other in (rude, garbage)),
            f"postgres://{server.role}:{server.password}@{place}?options=-c%20{new['option']}%3D1",
            f"host={new['unknown host']} port={new['port']} {new['option']}={new['wrong password']}",
            f"service={new['service']}",
        ]
        login = f"{new['unknown Redis user']}:{new['wrong Redis password']}"
        caches = [
            f"redis://{login}@127.0.0.1:{deployment.redis.port}/0",
            f"redis://{login}@{new['unknown Redis host']}.invalid/0",
            f"rediss://{login}@127.0.0.1:{deployment.redis.port}/0",
            f"redis://{login}@127.0.0.1:{rude.port}/0",
            f"redis://{login}@127.0.0.1:{garbage.port}/0?client_name={new['client_name']}",
            f"redis://{login}@127.0.0.1:{deployment.redis.port}/{new['Redis database']}",
            f"unix://{login}@/{new['Redis socket']}",
        ]
        runs = [
            deployment.commands.begin(*line.split(), **{name: url})
            for name, urls, lines in (
                ("DATABASE_URL", databases, ("status", "check --json")),
                ("REDIS_URL", caches, ("check", "unlock agents-stale --yes")),
            )
            for url in urls
            for line in lines
        ]
        for run in runs:
            assert run.result().status != 0 or run.result().output


def try_key_services(deployment: Deployment) -> None:
    """Have the tokens opened by key services that quote what they are told, and by keys that do not fit."""
    new, base = deployment.canaries, deployment.receiver.url
    aws = {
        "SB_KMS_BACKEND": "aws-kms",
        "SB_KMS_AWS_REGION": "eu-central-1",
        "SB_KMS_AWS_KEY_ID": f"alias/{new['AWS key id']}",
    }
    for word in ("400", "403", "500", "302", "200"):
        endpoint = f"{base}/{word}/aws/{new['AWS endpoint path']}"
        deployment.line("check --json", **aws, SB_KMS_AWS_ENDPOINT=endpoint, AWS_MAX_ATTEMPTS="1")
    deployment.line("check --json", **aws, SB_KMS_AWS_ENDPOINT=f"http://{new['AWS host']}.invalid")
    deployment.line("check", SB_KMS_BACKEND="local")
    role = {"SB_KMS_VAULT_TOKEN": "", "SB_KMS_VAULT_TOKEN_FILE": "", "SB_KMS_VAULT_KUBERNETES_ROLE": new["Vault role"]}
    jwt = deployment.directory / "secrets" / "jwt"
    jwt.write_text(new["service account's token"])
    deployment.line("check", **role, SB_KMS_VAULT_KUBERNETES_JWT_PATH=str(jwt))
    deployment.line("check", SB_KMS_VAULT_ADDR=f"https://{new['Vault host']}.invalid", VAULT_MAX_RETRIES="0")


def _no_files(variables: dict[str, str]) -> dict[str, str]:
    return {f"{name}_FILE": "" for name in variables}
