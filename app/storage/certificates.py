"""What is wrong with a server's certificate. Of PostgreSQL's libpq says only that it does not verify."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Mapping
from contextlib import suppress

from app.core.bounded_input import copied

#: X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED of OpenSSL.
OUT_OF_DATE = (9, 10)
#: X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH.
OTHER_NAME = (62, 64)
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)


def is_out_of_date(conninfo: Mapping[str, str | int | None], seconds: float) -> bool:
    """Return whether the first server that shows a certificate shows one that is out of date.

    Asks each host once more, for so many seconds at most, as far as its certificate.
    """
    hosts, ports = (str(conninfo.get(name) or default).split(",") for name, default in (("host", ""), ("port", "5432")))
    for number, host in enumerate(hosts):
        with suppress(OSError, ValueError, IndexError):
            try:
                _shake_hands(conninfo, host, int((ports if len(ports) > 1 else ports * len(hosts))[number]), seconds)
            except ssl.SSLCertVerificationError as error:
                return error.verify_code in OUT_OF_DATE
    return False


def _shake_hands(conninfo: Mapping[str, str | int | None], host: str, port: int, seconds: float) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    with copied(str(conninfo["sslrootcert"])) as roots:
        context.load_verify_locations(cafile=roots)
    with socket.create_connection((host, port), timeout=seconds) as plain:
        if conninfo.get("sslnegotiation") == "direct":
            context.set_alpn_protocols(["postgresql"])
        else:
            plain.sendall(_SSL_REQUEST)
            if plain.recv(1) != b"S":
                return
        context.wrap_socket(plain, server_hostname=host).close()
