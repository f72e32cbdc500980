"""The document around a page's content: its head, its style, and what a browser is told that it may do with it."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from app.overview.model import Verdict
from app.page.markup import Child, Html, join, raw, tag

#: How often a page asks for itself anew.
REFRESH_SECONDS = 5
NAME = "secrets-bridge worker"
STYLE = raw(Path(__file__).with_name("style.css").read_text(encoding="utf-8"))
_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
#: No script, no request to anywhere, no frame, no form; the style is the one of this file.
_POLICY = {
    "default-src": "'none'",
    "style-src": f"'sha256-{_HASH}'",
    "img-src": "data:",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
HEADERS = (
    ("Content-Security-Policy", "; ".join(f"{name} {value}" for name, value in _POLICY.items())),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
)
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Cpath fill='%23{colour}' d='{shape}'/%3E%3C/svg%3E"
)
_DISC, _TRIANGLE = "M8 1a7 7 0 100 14A7 7 0 008 1z", "M8 1l8 14H0z"
_ICONS = {
    Verdict.FINE: _ICON.format(colour="1f9d61", shape=_DISC),
    Verdict.DEGRADED: _ICON.format(colour="d63a33", shape=_TRIANGLE),
    Verdict.UNKNOWN: _ICON.format(colour="8a94a3", shape=_DISC),
}


def document(title: str, verdict: Verdict, *content: Child, refresh: bool) -> bytes:
    """Return a whole page. One that refreshes itself keeps its place: to a browser it is the same page, loaded anew."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="robots", content="noindex"),
        tag("meta", http_equiv="refresh", content=REFRESH_SECONDS) if refresh else None,
        tag("title", title),
        _icon(verdict),
        tag("style", STYLE),
    )
    return join(raw("<!doctype html>\n"), tag("html", head, tag("body", *content), lang="en")).encode()


def _icon(verdict: Verdict) -> Html:
    """Return the tab's mark; its address is longer than a text may be."""
    return raw(f'<link rel="icon" href="{_ICONS[verdict]}">')
