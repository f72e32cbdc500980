"""discover-scheduler: one job a target, never a second open one, and a bad target is alone with its trouble."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from actors.discover_scheduler import DiscoverScheduler, discover_scheduler
from app.core import metrics
from app.discovery.targets import parse
from app.sweeping.items import MOST_ITEMS
from tests.support.replica import Replica
from tests.support.rows import column, insert_agent, insert_job, rows

AGENT = "0b0e5d1c-4a57-4d42-9d0c-2f9a3f6f0a11"


def settings(*targets: dict[str, Any]) -> DiscoverScheduler:
    return DiscoverScheduler(targets=parse(json.dumps(targets)))


def jobs(sql: Connection[Any]) -> list[dict[str, Any]]:
    return rows(sql, "SELECT * FROM sync_jobs ORDER BY payload ->> 'target_name'")


def next_slot(sql: Connection[Any], replica: Replica) -> None:
    """Make the current slot claimable again and the jobs of this slot old, as if it were the next one."""
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET last_slot = last_slot - interval '1 hour'")
    sql.execute("UPDATE secrets_bridge_worker.sweep_run SET slot = slot - id * interval '1 hour'")
    sql.execute("UPDATE sync_jobs SET created_at = created_at - interval '1 hour'")
    replica.redis.flushall()


def test_the_seeds_shape_becomes_the_job_that_an_agent_can_decode(replica: Replica, sql: Connection[Any]) -> None:
    sql.execute(
        "INSERT INTO agents (id, name, secret_hash, cluster_name) VALUES (%s, 'agent', '\\x01', 'prod-1')", [AGENT]
    )
    target = {"agent_id": AGENT, "provider": "vault", "config": {"kvPrefix": "apps"}, "scope": {"prefix": "team/"}}

    assert replica.run(discover_scheduler, settings(target)).changed == 1

    (job,) = jobs(sql)
    assert (job["job_type"], job["status"], job["request_id"]) == ("discover", "queued", None)
    assert job["agent_scope"] == {"agent_id": AGENT, "cluster_name": "prod-1", "cluster": "prod-1"}
    assert job["payload"] == {
        "target_name": f"vault@{AGENT}",
        "target_provider_type": "vault",
        "target_provider_config": {"kvPrefix": "apps"},
        "cluster_name": "prod-1",
        "scope": "team/",
        "target_scope": {"prefix": "team/"},
    }


@pytest.mark.parametrize(
    ("target", "payload"),
    [
        (
            {"name": "n", "cluster": "c", "provider_type": "aws-sm", "provider_config": {"a": 1}, "scope": "p/"},
            {
                "target_provider_type": "aws-sm",
                "target_provider_config": {"a": 1},
                "cluster_name": "c",
                "scope": "p/",
            },
        ),
        (
            {"name": "n", "cluster_name": "c", "provider": "vault", "scope": {"labels": {"team": "a"}}},
            {
                "target_provider_type": "vault",
                "label_selector": {"team": "a"},
                "target_scope": {"labels": {"team": "a"}},
            },
        ),
        ({"name": "n", "cluster": "c", "provider": "vault", "scope": {"x": 1}}, {"target_scope": {"x": 1}}),
        ({"name": "n", "cluster": "c", "provider": "vault"}, {"target_provider_config": {}, "cluster_name": "c"}),
    ],
)
def test_the_other_shapes_become_jobs_too(
    replica: Replica, sql: Connection[Any], target: dict[str, Any], payload: dict[str, Any]
) -> None:
    replica.run(discover_scheduler, settings(target))
    (job,) = jobs(sql)
    assert payload.items() <= job["payload"].items()
    assert isinstance(job["payload"].get("scope", ""), str)
    assert job["agent_scope"] == {"cluster_name": "c", "cluster": "c"}


@pytest.mark.parametrize("status", ["queued", "claimed"])
@pytest.mark.parametrize("config", ["null", "{}"])
def test_no_second_job_while_one_is_open_whoever_made_it(
    replica: Replica, sql: Connection[Any], status: str, config: str
) -> None:
    payload = f'{{"target_provider_type": "vault", "target_provider_config": {config}, "cluster_name": "c"}}'
    insert_job(sql, job_type="discover", status=status, payload=payload, agent_scope='{"cluster_name": "c"}')

    sweep = replica.run(discover_scheduler, settings({"cluster": "c", "provider": "vault"}))

    assert (sweep.changed, dict(sweep.counts)) == (0, {"already_open": 1})
    assert len(jobs(sql)) == 1


@pytest.mark.parametrize("status", ["succeeded", "failed", "expired"])
def test_a_finished_job_of_an_earlier_slot_does_not_stand_in_the_way(
    replica: Replica, sql: Connection[Any], status: str
) -> None:
    own = settings({"cluster": "c", "provider": "vault"})
    assert replica.run(discover_scheduler, own).changed == 1
    sql.execute("UPDATE sync_jobs SET status = %s", [status])
    next_slot(sql, replica)
    assert replica.run(discover_scheduler, own).changed == 1


def test_targets_that_differ_in_one_thing_are_different(replica: Replica, sql: Connection[Any]) -> None:
    base: dict[str, Any] = {"cluster": "c", "provider": "vault"}
    others = [
        base | {"scope": "a/"},
        base | {"config": {"x": 1}},
        base | {"cluster": "d"},
        base | {"provider": "aws-sm"},
    ]
    assert replica.run(discover_scheduler, settings(base, *others)).changed == 5


def test_a_failing_target_neither_blocks_nor_repeats_the_others(replica: Replica, sql: Connection[Any]) -> None:
    sql.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'canary-row-content %', NEW.payload; END $$"
    )
    sql.execute(
        "CREATE TRIGGER refuse BEFORE INSERT ON sync_jobs FOR EACH ROW"
        " WHEN (NEW.payload ->> 'target_name' = 'bad') EXECUTE FUNCTION refuse()"
    )
    own = settings(
        {"name": "a", "cluster": "a", "provider": "vault"},
        {"name": "bad", "cluster": "b", "provider": "vault"},
        {"name": "c", "cluster": "c", "provider": "vault"},
    )

    error = replica.fails(discover_scheduler, own)

    assert str(error) == "PartlyFailed"
    assert [job["payload"]["target_name"] for job in jobs(sql)] == ["a", "c"]
    (run,) = rows(sql, "SELECT * FROM secrets_bridge_worker.sweep_run")
    assert (run["outcome"], run["changed"], run["counts"]["failed"]) == ("failure", 2, 1)
    assert [event.title for event in replica.events] == [
        "discover jobs enqueued",
        "some discover targets failed to enqueue",
    ]
    assert "canary" not in repr(replica.events)

    # The retry, in the same slot: the good ones are even done by now.
    sql.execute("UPDATE sync_jobs SET status = 'succeeded'")
    sql.execute("DROP TRIGGER refuse ON sync_jobs")
    sweep = replica.run(discover_scheduler, own)
    assert (sweep.changed, sweep.counts["already_open"]) == (1, 2)
    assert [job["payload"]["target_name"] for job in jobs(sql)] == ["a", "bad", "c"]
    outcomes = column(sql, "SELECT outcome FROM secrets_bridge_worker.sweep_run ORDER BY id")
    assert outcomes == ["failure", "success"]


@pytest.mark.parametrize("known", ["unknown", "revoked"])
def test_an_unknown_or_revoked_agent_is_reported_and_the_others_go_on(
    replica: Replica, sql: Connection[Any], known: str
) -> None:
    if known == "revoked":
        insert_agent(sql, "gone", status="revoked")
        sql.execute("UPDATE agents SET id = %s", [AGENT])
    own = settings({"agent_id": AGENT, "provider": "vault"}, {"cluster": "c", "provider": "vault"})
    counter = metrics.TARGETS_SKIPPED.labels("discover-scheduler")
    before = counter._value.get()
    sweep = replica.run(discover_scheduler, own)
    assert (sweep.changed, dict(sweep.counts)) == (1, {"unknown_agent": 1})
    assert counter._value.get() == before + 1


def test_the_cluster_of_an_agent_may_be_in_its_scope(replica: Replica, sql: Connection[Any]) -> None:
    insert_agent(sql, "old", scope='{"cluster": "legacy"}')
    sql.execute("UPDATE agents SET id = %s", [AGENT])
    replica.run(discover_scheduler, settings({"agent_id": AGENT, "provider": "vault"}))
    assert jobs(sql)[0]["agent_scope"]["cluster"] == "legacy"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not JSON; accepted: a list of objects with provider and agent_id or cluster"),
        ("{}", "not a list; accepted: a JSON list of objects with provider and agent_id or cluster"),
        ("[1]", "target 1: not an object"),
        ('[{"cluster": "c"}]', "target 1: provider must be one of aws-sm, vault, gcp-sm, azure-kv, kubernetes"),
        (
            '[{"cluster": "c", "provider": "hunter2"}]',
            "target 1: provider must be one of aws-sm, vault, gcp-sm, azure-kv, kubernetes",
        ),
        ('[{"provider": "vault"}]', "target 1: needs agent_id (a UUID) or cluster (a name), or both"),
        (
            '[{"provider": "vault", "provider_type": "aws-sm", "cluster": "c"}]',
            "target 1: provider and provider_type are both given and differ",
        ),
        ('[{"provider": "vault", "agent_id": "hunter2", "cluster": "c"}]', "target 1: agent_id must be a UUID"),
        ('[{"provider": "vault", "cluster": 5}]', "target 1: cluster must be a string"),
        ('[{"provider": "vault", "cluster": "c", "config": []}]', "target 1: config must be an object"),
        ('[{"provider": "vault", "cluster": "c", "scope": 5}]', "target 1: scope must be a string or an object"),
        (
            '[{"provider": "vault", "cluster": "c", "config": {"auth": {"token": "hunter2"}}}]',
            "target 1: config seems to hold a credential; agents have their own, remove it",
        ),
        (
            '[{"provider": "aws-sm", "cluster": "c", "config": {"id": "AKIAABCDEFGHIJKLMNOP"}}]',
            "target 1: config seems to hold a credential; agents have their own, remove it",
        ),
    ],
)
def test_targets_that_cannot_work_are_refused_without_showing_them(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=r"target|accepted") as refused:
        parse(text)
    assert problem in str(refused.value).splitlines()
    assert "hunter2" not in str(refused.value)


def test_odd_targets_are_accepted_with_a_warning() -> None:
    targets = parse('[{"provider": "vault", "cluster": "c", "colour": "red", "scope": {"x": 1}}]')
    assert targets.warnings == (
        "target 1: key colour is not known, and ignored",
        "target 1: nothing in scope is a prefix or labels; the agent will discover everything",
    )


def test_null_is_no_targets_as_in_go() -> None:
    assert parse("null").all == ()
    assert parse("null").warnings == ("null is taken as no targets; leave the variable unset",)
    assert parse("[]") == parse("[]")
    assert parse("[]").warnings == ()


def test_targets_that_differ_in_name_alone_are_one_with_a_warning() -> None:
    same = {"provider": "vault", "cluster": "c", "scope": "a/"}
    text = json.dumps([{**same, "name": "one"}, {"provider": "vault", "cluster": "d"}, {**same, "name": "two"}, same])
    targets = parse(text)
    assert [target.name for target in targets.all] == ["one", "vault@d"]
    assert targets.warnings == (
        "target 3: the same as target 1; both get one job",
        "target 4: the same as target 1; both get one job",
    )


def test_keys_in_another_case_are_read_as_go_reads_them() -> None:
    (target,) = parse('[{"Name": "n", "Provider_Type": "vault", "CLUSTER": "c", "provider_config": {"Path": 1}}]').all
    assert (target.name, target.provider, target.cluster, target.config) == ("n", "vault", "c", {"Path": 1})


def test_a_name_that_is_not_for_logs_is_replaced_with_a_warning() -> None:
    targets = parse('[{"name": "Vault in Frankfurt (canary)", "provider": "vault", "cluster": "c"}]')
    assert [target.name for target in targets.all] == ["vault"]
    assert len(targets.warnings) == 1
    assert "canary" not in targets.warnings[0]


def test_targets_of_one_name_are_told_apart() -> None:
    targets = parse('[{"provider": "vault", "cluster": "c"}, {"provider": "vault", "cluster": "c", "scope": "a/"}]')
    assert [target.name for target in targets.all] == ["vault@c", "vault@c#2"]


def test_targets_keep_their_interval_and_connections_are_looked_at_more_often() -> None:
    assert DiscoverScheduler().interval == timedelta(minutes=5)
    assert DiscoverScheduler().tick == timedelta(seconds=30)
    assert DiscoverScheduler(interval=timedelta(seconds=10)).tick == timedelta(seconds=10)


def test_a_job_in_the_making_elsewhere_is_not_waited_for(database: str, replica: Replica, sql: Connection[Any]) -> None:
    with psycopg.connect(database) as other:
        other.execute(
            "INSERT INTO sync_jobs (job_type, correlation_id, payload) VALUES ('discover', gen_random_uuid(), '{}')"
        )
        assert replica.run(discover_scheduler, settings({"cluster": "c", "provider": "vault"})).changed == 1


# ---------------------------------------------------------------------------------------- values, turns and company


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ('{"cluster": "c", "provider": "vault", "config": {"x": NaN}}', "a number that is none or has no end"),
        ('{"cluster": "c", "provider": "vault", "config": {"x": 1e400}}', "a number that is none or has no end"),
        ('{"cluster": "c", "provider": "vault", "config": {"x": "\\u0000"}}', "NUL"),
        ('{"cluster": "c", "provider": "vault", "config": {"\\u0000": 1}}', "NUL"),
        ('{"cluster": "c", "provider": "vault", "scope": "\\ud800"}', "half a surrogate pair"),
        ('{"cluster": "c", "provider": "vault", "scope": {"labels": {"a": "\\udc00"}}}', "half a surrogate pair"),
        ('{"cluster": "c\\u0000", "provider": "vault", "scope": "\\ud800"}', "NUL, half a surrogate pair"),
        ('{"cluster": "c", "provider": "vault", "config": {"x": ' + "[" * 90 + "]" * 90 + "}}", "more than 64 levels"),
    ],
)
def test_what_postgresql_cannot_store_is_refused_with_one_line_a_target(entry: str, what: str) -> None:
    with pytest.raises(ValueError, match="target 2") as refused:
        parse(f'[{{"cluster": "a", "provider": "vault"}}, {entry}]')
    assert str(refused.value).splitlines() == [f"target 2: holds what PostgreSQL cannot store: {what}"]


def test_levels_without_end_are_no_list() -> None:
    with pytest.raises(ValueError, match="not JSON; accepted"):
        parse("[" * 100_000)


def many(number: int) -> DiscoverScheduler:
    return settings(*({"name": f"t{n:03}", "cluster": f"c{n:03}", "provider": "vault"} for n in range(number)))


def served(sql: Connection[Any]) -> list[str]:
    return column(sql, "SELECT DISTINCT payload ->> 'target_name' FROM sync_jobs ORDER BY 1")


def test_one_look_at_the_jobs_serves_many_targets(replica: Replica, sql: Connection[Any]) -> None:
    """Also in a run that has time for one statement only."""
    replica.runner.budget = timedelta(microseconds=1)
    assert replica.run(discover_scheduler, many(40)).changed == 40
    assert column(sql, "SELECT batches FROM secrets_bridge_worker.sweep_run") == [1]


def test_a_run_goes_on_where_the_one_before_had_no_more_time(replica: Replica, sql: Connection[Any]) -> None:
    replica.runner.budget = timedelta(microseconds=1)
    own, found = many(2 * MOST_ITEMS + 10), list[int]()
    for _ in range(3):
        replica.run(discover_scheduler, own)
        found.append(len(served(sql)))
        assert column(sql, "SELECT handed_over FROM secrets_bridge_worker.sweep_run") == [True]
        sql.execute("UPDATE sync_jobs SET status = 'succeeded'")
        sql.execute("DELETE FROM secrets_bridge_worker.sweep_run")
        next_slot(sql, replica)
    assert found == [MOST_ITEMS, 2 * MOST_ITEMS, 2 * MOST_ITEMS + 10]


def test_each_of_several_bad_targets_is_singled_out(replica: Replica, sql: Connection[Any]) -> None:
    sql.execute("ALTER TABLE sync_jobs ADD CHECK (payload ->> 'target_name' NOT IN ('t000', 't017', 't018', 't039'))")
    error = replica.fails(discover_scheduler, many(40))
    assert str(error) == "PartlyFailed"
    assert len(served(sql)) == 36
    (counts,) = column(sql, "SELECT counts FROM secrets_bridge_worker.sweep_run")
    assert counts["failed"] == 4
