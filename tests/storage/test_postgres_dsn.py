"""The edges of DATABASE_URL; what comes out is read by libpq itself."""

from __future__ import annotations

import pytest
from psycopg.conninfo import conninfo_to_dict

from app.storage.postgres_dsn import parse_database_url

CANARY = "hunter2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgres://[::1]:1,[::2]:2/d", {"host": "::1,::2", "port": "1,2"}),
        ("postgres://a,[::1]:2/d", {"host": "a,::1", "port": ",2"}),
        ("postgres://a:1,b:2/d?target_session_attrs=read-write", {"target_session_attrs": "read-write"}),
        ("postgres://u@%2Frun%2Fpg/d", {"user": "u", "host": "/run/pg"}),
        ("postgres:///d?host=/run/pg", {"host": "/run/pg", "dbname": "d"}),
        ("postgres://h", {"host": "h"}),
        ("postgres://h/d?application_name=a+b%2Bc", {"application_name": "a b+c"}),
        ("host=h password=a://b", {"password": "a://b"}),
        ("host=h password=a'b", {"password": "a'b"}),
        ("host=h password=a\u00a0b", {"password": "a\u00a0b"}),
        (r"password='a\'b\\c' host=h", {"password": r"a'b\c"}),
        ("host=h password=a\\ ", {"password": "a "}),
        ("user='u'host='h'", {"host": "h", "user": "u"}),
        (" host=h\n user=u ", {"host": "h", "user": "u"}),
    ],
)
def test_libpq_reads_what_was_written(text: str, expected: dict[str, str]) -> None:
    assert expected.items() <= conninfo_to_dict(parse_database_url(text).conninfo).items()


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("postgres://h/d?work_mem=4%20MB", r"-c work_mem=4\ MB"),
        ("postgres://h/d?search_path=a%5Cb", r"-c search_path=a\\b"),
        ("host=h search_path='a,\tb'", "-c search_path=a,\\\tb"),
        ("host=h options='-c x.y=1' statement_timeout=5s", "-c x.y=1 -c statement_timeout=5s"),
    ],
)
def test_server_settings_keep_their_blanks_and_backslashes(text: str, options: str) -> None:
    assert conninfo_to_dict(parse_database_url(text).conninfo)["options"] == options


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        f"postgres://u:12#{CANARY}@h/d",
        f"postgres://u:{CANARY}%zz@h/d",
        f"postgres://u:{CANARY}%00@h/d",
        f"postgres://u:p@h/d?application_name={CANARY}%ff",
        f"postgres://u:p@h/d?application_name={CANARY}%",
        f"postgres://u:{CANARY}\n@h/d",
        f"postgres://[{CANARY}/d",
        f"host=h password='{CANARY}",
        f"host=h password={CANARY}\0",
        f"host=h {CANARY}",
        f"host=h a-b={CANARY}",
    ],
)
def test_refuses_broken_texts_and_does_not_show_them(text: str) -> None:
    with pytest.raises(ValueError, match="not a PostgreSQL URL; accepted: postgres://") as refused:
        parse_database_url(text)
    assert CANARY not in str(refused.value)


def test_a_home_that_is_closed_to_this_process_is_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """To root none is closed; but no file can have such a name."""
    monkeypatch.setenv("HOME", "/" + "x" * 300)
    assert parse_database_url("postgres://u@h/d")
    with pytest.raises(ValueError, match="sslrootcert names a file that cannot be read"):
        parse_database_url(f"postgres://u@h/d?sslmode=verify-full&sslrootcert=/{'x' * 300}")
