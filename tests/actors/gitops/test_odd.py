"""Rows, answers, names and clocks that are odd hurt one observation or one endpoint, and never a run."""

from __future__ import annotations

import json
import socket
import tracemalloc
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection
from structlog.testing import capture_logs

from actors.gitops_poller import gitops_poller
from actors.gitops_timeout import GitopsTimeout, gitops_timeout
from app.gitops.client import MOST_BODY
from tests.actors.gitops.looking import OBSERVATIONS
from tests.support.argocd import (
    AFTER,
    Argo,
    again,
    document,
    error,
    insert_endpoint,
    insert_observations,
    seal,
    settings,
)
from tests.support.http_server import Receiver, Reply, Seen
from tests.support.replica import Replica
from tests.support.rows import column, rows
from tests.support.slots import steady
from tests.support.tls import Authority
from tests.support.waiting import HUNG, eventually

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def good() -> Iterator[Receiver]:
    """Return an ArgoCD whose application `good` has landed, whatever stands beside it."""
    applications = {name: document(name, reconciledAt=AFTER) for name in ("good", "other")}
    with Receiver(Argo(applications)) as server:
        yield server


def states(sql: Connection[Any]) -> dict[str, str]:
    return {row["application_name"]: row["polling_state"] for row in rows(sql, OBSERVATIONS)}


def errors(sql: Connection[Any]) -> dict[str, str]:
    query = (
        "SELECT e.name, o.last_error, o.polls_count FROM gitops_observations AS o"
        " JOIN argocd_endpoints AS e ON e.id = o.argocd_endpoint_id"
    )
    found = rows(sql, query)
    assert {row["polls_count"] for row in found} == {1}, found
    return {row["name"]: row["last_error"] or "" for row in found}


# ------------------------------------------------------------------------------------------------------------- rows

#: columns of an endpoint, `{http}` and `{https}` being a server's address; what its observation says then.
ENDPOINTS: dict[str, tuple[dict[str, str], str]] = {
    "name: leading dot": ({"tls_server_name": ".argocd.example.com"}, "tls_server_name is not a server's name"),
    "name: long label": ({"tls_server_name": "a" * 64 + ".example"}, "tls_server_name is not a server's name"),
    "name: empty label": ({"tls_server_name": "argocd..example"}, "tls_server_name is not a server's name"),
    "name: IDN mistake": ({"tls_server_name": "münchen..de"}, "tls_server_name is not a server's name"),
    "name: dot": ({"tls_server_name": "."}, "tls_server_name is not a server's name"),
    "name: space": ({"tls_server_name": " "}, "cannot be reached (tls)"),
    "PEM: no certificate": ({"tls_ca_pem": "ű\u2028"}, "tls_ca_pem holds no usable certificate"),
    "PEM: none in the blocks": (
        {"tls_ca_pem": "-----BEGIN CERTIFICATE-----\nű\n-----END CERTIFICATE-----"},
        "tls_ca_pem holds no usable certificate",
    ),
    "host: long label": ({"base_url": "https://" + "a" * 64 + ".example"}, "cannot be reached (dns)"),
    "host: empty label": ({"base_url": "https://argocd..example"}, ""),
    "host: dot": ({"base_url": "https://."}, ""),
    "host: long": ({"base_url": "https://" + "a." * 600 + "example"}, ""),
    "host: zone": ({"base_url": "https://[fe80::1%25lo]:1"}, ""),
    "host: letters": ({"base_url": "https://üü..example"}, "not https://host"),
    "port: none": ({"base_url": "https://127.0.0.1:99999"}, "not https://host"),
    "base: long": ({"base_url": "{http}/" + "a" * 70_000}, "not https://host"),
    "base: empty": ({"base_url": ""}, "not https://host"),
    "base: lines": ({"base_url": "{http}\r\nX: y"}, ""),
    "base: another host": ({"base_url": "{http}\\@evil"}, ""),
    "base: up": ({"base_url": "{http}/a/../b"}, ""),
}


def test_an_odd_endpoint_is_told_in_its_own_rows(replica: Replica, sql: Connection[Any], good: Receiver) -> None:
    insert_observations(sql, insert_endpoint(sql, "good", good.url), "good")
    for name, (columns, _) in ENDPOINTS.items():
        given = {"base_url": "{https}", **columns}
        base = given.pop("base_url").replace("{https}", good.url.replace("http:", "https:")).replace("{http}", good.url)
        insert_observations(sql, insert_endpoint(sql, name, base, **given), "app")
    replica.run(gitops_poller, settings())
    told = errors(sql)
    assert states(sql)["good"] == "applied"
    assert {name: text for name, (_, text) in ENDPOINTS.items() if text not in told[name] or not told[name]} == {}
    for text in told.values():
        assert "aaaa" not in text
        assert "evil" not in text


def test_tokens_of_any_bytes_hurt_their_endpoint_alone(replica: Replica, sql: Connection[Any], good: Receiver) -> None:
    insert_observations(sql, insert_endpoint(sql, "good", good.url), "good")
    for token in (" tok ", "tök", "", "a\r\nX: y", "a" * 300_000, "\x00", "\x7f"):
        insert_observations(sql, insert_endpoint(sql, repr(token)[:20], good.url, **seal(token)), "app")
    for column_, value in (("token_nonce", b""), ("token_ciphertext", b""), ("token_data_key_ciphertext", b"\xff")):
        insert_observations(sql, insert_endpoint(sql, column_, good.url, **{column_: value}), "app")
    replica.run(gitops_poller, settings())
    told = errors(sql)
    assert told.pop("good") == ""
    assert all(told.values())
    assert states(sql)["good"] == "applied"


@pytest.mark.parametrize(
    "name",
    ["n" * 66_000, "a/b", "../../x", "\u2603" * 10, "a?project=x#y", "a\r\nb", "%2e%2e", "a;b", "a+b c&d=e", "..", ""],
    ids=lambda name: repr(name[:10]),
)
def test_an_odd_name_is_its_own_rows_failure(replica: Replica, sql: Connection[Any], good: Receiver, name: str) -> None:
    insert_observations(sql, insert_endpoint(sql, "good", good.url), "good", name)
    replica.run(gitops_poller, settings())
    assert states(sql)["good"] == "applied"
    assert set(column(sql, "SELECT polls_count FROM gitops_observations")) == {1}
    assert column(sql, "SELECT last_health_error FROM argocd_endpoints") == [None]


def test_a_project_of_any_length_is_its_own_rows_failure(
    replica: Replica, sql: Connection[Any], good: Receiver
) -> None:
    """Nobody thought of this one: the row has the error's class."""
    endpoint = insert_endpoint(sql, "good", good.url)
    insert_observations(sql, endpoint, "good", "bad")
    sql.execute("INSERT INTO provider_connections (name, type, auth_method) VALUES ('p', 'vault', 'token')")
    sql.execute(
        "INSERT INTO gitops_app_mappings (provider_connection_id, argocd_endpoint_id, application_name, project_name)"
        " SELECT id, %s, 'bad', repeat('p', 66000) FROM provider_connections",
        [endpoint],
    )
    replica.run(gitops_poller, settings())
    assert states(sql) == {"good": "applied", "bad": "active"}
    assert rows(sql, OBSERVATIONS)[0]["last_error"] == "argocd fetch: argocd: unexpected InvalidURL"


def test_a_row_at_the_ends_of_time_and_number_is_polled(replica: Replica, sql: Connection[Any], good: Receiver) -> None:
    endpoint = insert_endpoint(sql, "good", good.url)
    odd: list[dict[str, Any]] = [
        {"created_at": "infinity"},
        {"created_at": "-infinity"},
        {"created_at": "0044-03-15 BC"},
        {"last_polled_at": "-infinity"},
        {"last_polled_at": "0044-03-15 BC"},
        {"last_polled_at": "infinity"},
        {"polls_count": 2**31 - 1},
        {"observed_state": "[]"},
        {"observed_state": "5"},
    ]
    for columns in odd:
        insert_observations(sql, endpoint, "good", **columns)
    replica.run(gitops_poller, settings())
    query = "SELECT polling_state = 'active' OR observed_state ->> 'health_status' = 'Healthy' FROM gitops_observations"
    assert column(sql, query) == [True] * len(odd)
    assert column(sql, "SELECT count(*) FROM gitops_observations WHERE polling_state = 'applied'") == [len(odd) - 1]
    assert column(sql, "SELECT max(polls_count) FROM gitops_observations") == [2**31 - 1]


def test_what_timed_out_at_the_beginning_of_time_has_timed_out(replica: Replica, sql: Connection[Any]) -> None:
    endpoint = insert_endpoint(sql, "main", "http://127.0.0.1:1")
    for timeout_at in ("-infinity", "0044-03-15 BC", "infinity", None):
        insert_observations(sql, endpoint, str(timeout_at), timeout_at=timeout_at)
    assert replica.run(gitops_timeout, GitopsTimeout(gitops=True)).changed == 2
    left = column(sql, "SELECT application_name FROM gitops_observations WHERE polling_state = 'queued'")
    assert sorted(left) == ["None", "infinity"]


def test_an_authority_with_comments_in_any_language_is_one(
    replica: Replica, sql: Connection[Any], tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    pem = "\ufeff# Főtanúsítvány\n" + authority.file.read_text() + "# fin\u2028"
    with Receiver(Argo({"app": document("app", reconciledAt=AFTER)}), tls=authority.server()) as server:
        insert_observations(sql, insert_endpoint(sql, "main", server.url, tls_ca_pem=pem), "app")
        replica.run(gitops_poller, settings())
    assert states(sql) == {"app": "applied"}


# ---------------------------------------------------------------------------------------------------------- answers

OK = json.dumps(document("app")).encode()


def status(text: str) -> bytes:
    return b'{"metadata":{"name":"app"},"status":' + text.encode() + b"}"


ANSWERS: dict[str, Reply] = {
    "retry-after: year": Reply(503, b"", {"Retry-After": "Wed, 21 Oct 99999999999999999999 07:28:00 GMT"}),
    "retry-after: zone": Reply(429, b"", {"Retry-After": "Wed, 21 Oct 2015 07:28:00 +99999999999999"}),
    "status: 999": Reply(999, OK, JSON),
    "header: latin": Reply(200, OK, {**JSON, "X-A": "\xe9\xff"}),
    "cookie: expires": Reply(200, OK, {"Set-Cookie": "a=b; expires=Wed, 21 Oct 99999999999999999999 07:28:00 GMT"}),
    "cookie: age": Reply(200, OK, {"Set-Cookie": 'a=b; version=x; port="99999999999999"; max-age=9e999'}),
    "deep": Reply(200, b"[" * 100_000, JSON),
    "deeper": Reply(200, b'{"a":' * 100_000, JSON),
    "number": Reply(200, status("9" * 100_000), JSON),
    "float": Reply(200, status("1e999"), JSON),
    "NaN": Reply(200, status("NaN"), JSON),
    "surrogate": Reply(200, status('{"health":{"status":"\\ud800\\u0000x","message":"\\udfff"}}'), JSON),
    "UTF-16": Reply(200, OK.decode().encode("utf-16"), JSON),
    "not UTF-8": Reply(200, b'{"metadata":{"name":"app\xff"}}', JSON),
    "time: first": Reply(
        200, status('{"reconciledAt":"0001-01-01T00:00:00+14:00","health":{"status":"Healthy"}}'), JSON
    ),
    "time: last": Reply(
        200, status('{"operationState":{"phase":"Failed","finishedAt":"9999-12-31T23:59:59-14:00"}}'), JSON
    ),
}


def test_an_odd_answer_is_one_rows_result(replica: Replica, sql: Connection[Any], good: Receiver) -> None:
    insert_observations(sql, insert_endpoint(sql, "good", good.url), "good")

    def answer(seen: Seen) -> Reply:
        return ANSWERS[seen.path.split("/")[1].replace("%20", " ")]

    with Receiver(answer) as server:
        for name in ANSWERS:
            insert_observations(sql, insert_endpoint(sql, name, f"{server.url}/{name}"), "app")
        replica.run(gitops_poller, settings())
    told = errors(sql)
    assert states(sql)["good"] == "applied"
    assert not [text for text in told.values() if "unexpected" in text]


def test_no_cookie_is_sent_back(replica: Replica, sql: Connection[Any]) -> None:
    with Receiver(Reply(200, OK, {**JSON, "Set-Cookie": "canary=1; Path=/"})) as server:
        insert_observations(sql, insert_endpoint(sql, "main", server.url), "app")
        replica.run(gitops_poller, settings())
    assert len(server.seen) == 2
    assert not [seen for seen in server.seen if "cookie" in seen.headers]


def test_a_tree_that_is_too_large_is_a_partial_result_and_takes_no_memory(
    replica: Replica, sql: Connection[Any]
) -> None:
    """Nodes of three bytes: 1.4 million of them fit into an answer."""
    tree = b'{"nodes":[' + b",".join([b"{}"] * 1_390_000) + b"]}"
    assert len(tree) < MOST_BODY
    stand_in = Argo({"app": document("app", reconciledAt=AFTER), "old": document("old", "Degraded")})
    stand_in.trees |= {"app": Reply(200, tree, JSON), "old": error(500, 2, "no")}
    kept = '{"resources": [{"kind": "old"}], "resource_count": 1}'
    with Receiver(stand_in) as server:
        endpoint = insert_endpoint(sql, "main", server.url)
        insert_observations(sql, endpoint, "app")
        insert_observations(sql, endpoint, "old", observed_state=kept)
        tracemalloc.start()
        try:
            replica.run(gitops_poller, settings())
            assert tracemalloc.get_traced_memory()[1] < 64 * 1024 * 1024
        finally:
            tracemalloc.stop()
    app, old = rows(sql, OBSERVATIONS)
    assert app["polling_state"] == "applied"
    assert app["last_error"].endswith("/resource-tree: the answer has more than 250000 values")
    assert (app["observed_state"]["resources"], app["observed_state"]["resource_count"]) == ([], None)
    assert (old["observed_state"]["resources"], old["observed_state"]["resource_count"]) == ([{"kind": "old"}], None)


def test_a_large_tree_is_read(replica: Replica, sql: Connection[Any]) -> None:
    node = {"group": "apps", "version": "v1", "kind": "Pod", "namespace": "ns", "uid": "0000", "resourceVersion": "1"}
    more = {"parentRefs": [{"kind": "ReplicaSet", "name": "c", "uid": "1"}], "health": {"status": "Healthy"}}
    stand_in = Argo({"app": document("app", reconciledAt=AFTER)})
    stand_in.trees["app"] = {"nodes": [{**node, **more, "name": f"p{number:05}"} for number in range(9000)]}
    with Receiver(stand_in) as server:
        insert_observations(sql, insert_endpoint(sql, "main", server.url), "app")
        replica.run(gitops_poller, settings())
    (row,) = rows(sql, OBSERVATIONS)
    assert (row["last_error"], row["observed_state"]["resource_count"]) == (None, 9000)


# ----------------------------------------------------------------------------------------------- names and addresses


def test_names_that_hang_keep_no_endpoint_waiting(
    replica: Replica, sql: Connection[Any], good: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More names hang than asyncio has threads for look-ups; they do so until the good one is polled."""
    real = socket.getaddrinfo

    def resolver(host: Any, *arguments: Any, **more: Any) -> Any:
        if "hang.example" in str(host):
            eventually(lambda: good.seen)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return real("127.0.0.1" if "good.example" in str(host) else host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    for number in range(40):
        insert_observations(sql, insert_endpoint(sql, f"a{number}", f"http://{number}.hang.example"), f"app{number}")
    insert_observations(sql, insert_endpoint(sql, "z", f"http://good.example:{good.port}"), "good")
    replica.run(gitops_poller, settings(batch_size=100, timeout=timedelta(seconds=2 * HUNG)))
    assert states(sql)["good"] == "applied"
    told = {text for name, text in errors(sql).items() if name != "z"}
    assert {text.rpartition(": ")[2] for text in told} == {"cannot be reached (dns)"}


METADATA = ("169.254.169.254", "[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]", "100.100.100.200", "2852039166")


def test_no_address_of_a_metadata_service_is_dialled(replica: Replica, sql: Connection[Any], good: Receiver) -> None:
    insert_observations(sql, insert_endpoint(sql, "good", good.url), "good")
    for host in METADATA:
        insert_observations(sql, insert_endpoint(sql, host, f"http://{host}:8000/latest"), "app")
    replica.run(gitops_poller, settings())
    told = errors(sql)
    assert states(sql)["good"] == "applied"
    assert {told[host].rpartition(": ")[2] for host in METADATA} == {"cannot be reached (blocked_address)"}


def test_each_connection_goes_to_the_address_that_was_judged(
    replica: Replica, sql: Connection[Any], good: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look-up leads to the server, all others to a metadata service."""
    real, asked = socket.getaddrinfo, list[str]()

    def resolver(host: Any, *arguments: Any, **more: Any) -> Any:
        if "rebind.example" in str(host):
            asked.append(str(host))
            host = "127.0.0.1" if len(asked) == 1 else "169.254.169.254"
        return real(host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    endpoint = insert_endpoint(sql, "main", f"http://rebind.example:{good.port}")
    insert_observations(sql, endpoint, "good")
    replica.run(gitops_poller, settings())
    assert states(sql) == {"good": "applied"}
    assert len(asked) == 1
    insert_observations(sql, endpoint, "other")
    again(sql)
    replica.run(gitops_poller, settings())
    assert [text.rpartition(": ")[2] for text in column(sql, "SELECT last_error FROM gitops_observations") if text] == [
        "cannot be reached (blocked_address)"
    ]


# ------------------------------------------------------------------------------------------------- claims and clocks

REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'canary'; END $$
"""


def test_what_a_failed_run_had_claimed_is_due_for_its_retry(
    replica: Replica, sql: Connection[Any], good: Receiver
) -> None:
    """Else the retry would find nothing due, and count as a success."""
    insert_observations(sql, insert_endpoint(sql, "good", good.url), "good")
    sql.execute("ALTER TABLE argocd_endpoints RENAME COLUMN last_health_at TO other")
    own = settings(interval=steady())
    for _ in range(3):
        assert str(replica.fails(gitops_poller, own)) == "UndefinedColumn 42703"
    sql.execute("ALTER TABLE argocd_endpoints RENAME COLUMN other TO last_health_at")
    replica.run(gitops_poller, own)
    assert states(sql) == {"good": "applied"}


@pytest.mark.parametrize(
    ("bad", "when", "asked"),
    [
        (("app-03", "app-17"), "NEW.polls_count > 0", 30),
        (("app-00", "app-17"), "OLD.polling_state = 'queued'", 28),
    ],
    ids=["a result", "a claim"],
)
def test_what_postgresql_refuses_is_alone_with_its_trouble(
    replica: Replica, sql: Connection[Any], bad: tuple[str, str], when: str, asked: int
) -> None:
    names = [f"app-{number:02}" for number in range(30)]
    stand_in = Argo({name: document(name, reconciledAt=AFTER) for name in names})
    sql.execute(REFUSE)
    sql.execute(
        "CREATE TRIGGER refuse BEFORE UPDATE ON gitops_observations FOR EACH ROW"
        f" WHEN (NEW.application_name IN {bad} AND {when}) EXECUTE FUNCTION refuse()".encode()
    )
    with Receiver(stand_in) as server:
        insert_observations(sql, insert_endpoint(sql, "main", server.url), *names)
        sweep = replica.run(gitops_poller, settings())
    assert dict(sweep.counts)["unwritten"] == 2
    found = states(sql)
    assert {name for name in names if found[name] != "applied"} == set(bad)
    assert len(server.seen) == 2 * asked


def test_health_that_postgresql_refuses_to_note_stops_no_poll(
    replica: Replica, sql: Connection[Any], good: Receiver
) -> None:
    sql.execute(REFUSE)
    sql.execute(
        "CREATE TRIGGER refuse BEFORE UPDATE ON argocd_endpoints FOR EACH ROW WHEN (NEW.name = 'bad')"
        " EXECUTE FUNCTION refuse()"
    )
    insert_observations(sql, insert_endpoint(sql, "bad", "http://127.0.0.1:1"), "bad")
    insert_observations(sql, insert_endpoint(sql, "good", good.url), "good")
    assert dict(replica.run(gitops_poller, settings()).counts)["unwritten"] == 1
    assert states(sql)["good"] == "applied"
    query = "SELECT name FROM argocd_endpoints WHERE last_health_at IS NOT NULL"
    assert column(sql, query) == ["good"]


def test_what_is_not_asked_any_more_and_cannot_be_told_so_stops_no_poll(
    replica: Replica, sql: Connection[Any], good: Receiver
) -> None:
    insert_observations(sql, insert_endpoint(sql, "off", "http://127.0.0.1:1", enabled=False), "bad")
    insert_observations(sql, insert_endpoint(sql, "good", good.url), "good")
    sql.execute(REFUSE)
    sql.execute(
        "CREATE TRIGGER refuse BEFORE UPDATE ON gitops_observations FOR EACH ROW"
        " WHEN (NEW.application_name = 'bad') EXECUTE FUNCTION refuse()"
    )
    assert dict(replica.run(gitops_poller, settings()).counts)["unwritten"] == 1
    assert states(sql)["good"] == "applied"


def test_a_stamp_or_a_rest_from_the_future_mutes_nobody(replica: Replica, sql: Connection[Any], good: Receiver) -> None:
    endpoint = insert_endpoint(sql, "good", good.url)
    insert_observations(sql, endpoint, "good", last_polled_at="2099-01-01")
    insert_observations(sql, endpoint, "other")
    sql.execute("INSERT INTO secrets_bridge_worker.gitops_rest VALUES (%s, '2099-01-01')", [endpoint])
    with capture_logs() as records:
        replica.run(gitops_poller, settings())
    assert states(sql) == {"good": "applied", "other": "applied"}
    assert column(sql, "SELECT max(last_polled_at) <= now() FROM gitops_observations") == [True]
    assert column(sql, "SELECT count(*) FROM secrets_bridge_worker.gitops_rest") == [0]
    assert [record["rows"] for record in records if record["event"].startswith("a clock was ahead")] == [2]


@pytest.mark.parametrize("minutes", [59, 61])
def test_the_longest_rest_that_is_granted_is_kept(
    replica: Replica, sql: Connection[Any], good: Receiver, minutes: int
) -> None:
    endpoint = insert_endpoint(sql, "good", good.url)
    insert_observations(sql, endpoint, "good")
    sql.execute(
        "INSERT INTO secrets_bridge_worker.gitops_rest VALUES (%s, now() + %s)", [endpoint, timedelta(minutes=minutes)]
    )
    replica.run(gitops_poller, settings())
    assert states(sql) == {"good": "queued" if minutes < 60 else "applied"}
