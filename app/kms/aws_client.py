"""Requests to AWS's services: signed, by a clock that their answers correct, and again as AWS's own clients would."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from app.kms.aws_config import AwsConfig
from app.kms.aws_sigv4 import Credentials, sign
from app.kms.transport import KeyServiceTransport, Policy, Reply, Request, Retry

#: By how much a clock may be wrong before a refused signature is taken for its fault, as in AWS's clients.
_SKEW = timedelta(minutes=4)
_RETRIED_STATUS = frozenset(
    {
        HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)  # fmt: skip
#: Errors that pass by themselves. The last two are STS's: it asks the issuer of a web identity's token for its keys.
_PASSING = frozenset({"RequestTimeout", "RequestTimeoutException", "IDPCommunicationError", "InvalidIdentityToken"})
#: Errors that ask for patience.
THROTTLING = frozenset(
    {
        "BandwidthLimitExceeded", "EC2ThrottledException", "LimitExceededException", "PriorRequestNotComplete",
        "ProvisionedThroughputExceededException", "RequestLimitExceeded", "RequestThrottled",
        "RequestThrottledException", "SlowDown", "ThrottledException", "Throttling", "ThrottlingException",
        "TooManyRequestsException", "TransactionInProgressException",
    }
)  # fmt: skip
_BY_THE_CLOCK = frozenset(
    {
        "AccessDeniedException", "AuthFailure", "InvalidSignatureException", "RequestExpired", "RequestInTheFuture",
        "RequestTimeTooSkewed", "SignatureDoesNotMatch",
    }
)  # fmt: skip
#: Errors that are reported by name; any other is reported by its HTTP status.
_KNOWN = _PASSING | THROTTLING | _BY_THE_CLOCK | {
    "AccessDenied", "DependencyTimeoutException", "DisabledException", "ExpiredToken", "ExpiredTokenException",
    "IDPRejectedClaim", "IncompleteSignature", "IncorrectKeyException", "InternalFailure", "InvalidArnException",
    "InvalidCiphertextException", "InvalidClientTokenId", "InvalidKeyUsageException", "KMSInternalException",
    "KMSInvalidStateException", "KeyUnavailableException", "MalformedPolicyDocument", "MissingAuthenticationToken",
    "MissingAuthenticationTokenException", "NotFoundException", "OptInRequired", "PackedPolicyTooLarge",
    "RegionDisabledException", "ServiceUnavailable", "UnrecognizedClientException", "ValidationError",
    "ValidationException",
}  # fmt: skip


class AwsClient:
    """Sends to AWS's services in a region. Kept as long as its process, because it learns how wrong the clock is."""

    def __init__(self, config: AwsConfig, clock: Callable[[], datetime]) -> None:
        self._region = config.region
        self._clock = clock
        self._ahead = timedelta()
        self.policy = Policy(config.retries, self._judge)

    def now(self) -> datetime:
        """Return AWS's time, as far as it is known."""
        return self._clock() + self._ahead

    async def post(  # noqa: PLR0913 - what a request is
        self,
        transport: KeyServiceTransport,
        source: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        service: str,
        credentials: Credentials | None,
    ) -> Reply:
        """Send a request, signed when there are `credentials`. `source` names the service in errors."""

        def make() -> Request:
            if credentials is None:
                return Request("POST", url, headers, body)
            signed = sign(
                "POST",
                url,
                headers,
                body,
                credentials=credentials,
                region=self._region,
                service=service,
                now=self.now(),
            )
            return Request("POST", url, signed, body)

        return await transport.send(source, make, self.policy)

    def _judge(self, reply: Reply) -> Retry:
        error = _name(reply)
        if error in THROTTLING or reply.status == HTTPStatus.TOO_MANY_REQUESTS:
            return Retry.WAIT
        if reply.status in _RETRIED_STATUS or error in _PASSING:
            return Retry.FAILED
        return Retry.FAILED if error in _BY_THE_CLOCK and self._set_clock(reply) else Retry.NO

    def _set_clock(self, reply: Reply) -> bool:
        """Take over the time of an answer; return whether ours was wrong by more than a signature may be."""
        try:
            ahead = parsedate_to_datetime(reply.headers["Date"]).astimezone(UTC) - self._clock()
        except Exception:  # noqa: BLE001 - no date, or one of those that raise any class
            return False
        wrong = abs(ahead - self._ahead) > _SKEW
        if wrong:
            self._ahead = ahead
        return wrong


def error_of(reply: Reply) -> str:
    """Return an error's name if it is a known one, else the HTTP status; empty for an answer without an error."""
    if reply.status == HTTPStatus.OK:
        return ""
    name = _name(reply)
    return name if name in _KNOWN else f"HTTP {reply.status}"


def _name(reply: Reply) -> str:
    """Return what an answer calls its error: KMS in a header or in JSON, STS in XML."""
    if reply.status == HTTPStatus.OK:
        return ""
    name = reply.headers.get("X-Amzn-ErrorType", "")
    if not name:
        content = reply.content()
        name = str(content.get("__type") or content.get("code") or "")
    if not name and (match := re.search(r"<Code>\s*([A-Za-z.]{1,64})\s*</Code>", reply.text())):
        name = match[1]
    return name.rpartition("#")[2].partition(":")[0]
