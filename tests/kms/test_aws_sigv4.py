"""Signatures against the published test suite of AWS Signature Version 4."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from app.kms.aws_sigv4 import Credentials, sign

SUITE = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
WHEN = datetime(2015, 8, 30, 12, 36, tzinfo=UTC)
SIGNED = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "


@pytest.mark.parametrize(
    ("method", "query", "headers", "body", "names", "signature"),
    [
        ("GET", "", {}, b"", "host;x-amz-date", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        ("POST", "", {}, b"", "host;x-amz-date", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
        (
            "GET",
            "?Param2=value2&Param1=value1",
            {},
            b"",
            "host;x-amz-date",
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        ),
        (
            "POST",
            "",
            {"My-Header1": "value1"},
            b"",
            "host;my-header1;x-amz-date",
            "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c",
        ),
        (
            "POST",
            "",
            {"Content-Type": "application/x-www-form-urlencoded"},
            b"Param1=value1",
            "content-type;host;x-amz-date",
            "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
        ),
    ],
    ids=[
        "get-vanilla",
        "post-vanilla",
        "get-vanilla-query-order-key-case",
        "post-header-key-sort",
        "post-x-www-form-urlencoded",
    ],
)
def test_a_request_of_the_suite_gets_its_published_signature(  # noqa: PLR0913, PLR0917
    method: str, query: str, headers: dict[str, str], body: bytes, names: str, signature: str
) -> None:
    url = f"https://example.amazonaws.com/{query}"
    sent = sign(method, url, headers, body, credentials=SUITE, region="us-east-1", service="service", now=WHEN)
    assert sent["Authorization"] == f"{SIGNED}SignedHeaders={names}, Signature={signature}"


def test_a_session_token_is_sent_and_signed() -> None:
    own = Credentials("AKIDEXAMPLE", "secret", "session")
    sent = sign("POST", "https://k/", {}, b"", credentials=own, region="us-east-1", service="kms", now=WHEN)
    assert sent["X-Amz-Security-Token"] == "session"
    assert "SignedHeaders=host;x-amz-date;x-amz-security-token," in sent["Authorization"]


def test_credentials_show_no_secret() -> None:
    assert "secret" not in repr(Credentials("AKID", "secret-key", "secret-token"))
