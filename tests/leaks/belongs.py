"""Where a canary belongs: where the protocol wants the credential, or the docs say that it is shown. Nowhere else.

Each line is used by the test of the whole deployment, or it fails: what belongs somewhere is found there, by the same
search that must find nothing anywhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from tests.leaks.forms import Find

#: Patterns of a canary's name and of a place.
BELONGS = (
    # The requests of each receiver, key service and ArgoCD: its own URL, and the header that is its credential.
    ("webhook path", "request to webhook: its path"),
    ("webhook query", "request to webhook: its path"),
    ("webhook header", "request to webhook: its header x-token"),
    ("slack path", "request to slack: its path"),
    ("slack token", "request to slack: its header authorization"),
    ("pagerduty path", "request to pagerduty: its path"),
    ("pagerduty routing key", "request to pagerduty: its body"),
    ("teams path", "request to teams: its path"),
    ("teams query", "request to teams: its path"),
    ("discord path", "request to discord: its path"),
    ("apprise path", "request to apprise: its path"),
    ("apprise header", "request to apprise: its header x-token"),
    ("apprise user", "request to apprise: its header authorization"),
    ("apprise password", "request to apprise: its header authorization"),
    ("heartbeat path", "request to heartbeat: its path"),
    ("mail recipient", "mail"),
    ("collector header", "header authorization to the collector"),
    ("Vault token", "request to vault: its header x-vault-token"),
    ("Vault header", "request to vault: its header x-token"),
    ("ArgoCD * wrapped key", "request to vault: its body"),
    ("ArgoCD * path", "request to argocd: its path"),
    ("ArgoCD path", "request to argocd: its path"),
    ("ArgoCD * token", "request to argocd: its header authorization"),
    ("row gitops_observations.application_name", "request to argocd: its path"),
    ("ArgoCD * wrapped key", "request to aws: its body"),
    ("AWS key id", "request to aws: its body"),
    ("AWS access key", "request to aws: its header authorization"),
    ("AWS session token", "request to aws: its header x-amz-security-token"),
    ("AWS endpoint path", "request to aws: its path"),
    ("Vault role", "request to vault: its body"),
    ("service account's token", "request to vault: its body"),
    # What ArgoCD said of an observation goes into its row, and the path that failed: by a parameter of a statement.
    ("ArgoCD answer", "statements to PostgreSQL"),
    ("row gitops_observations.application_name", "statements to PostgreSQL"),
    # An operator's reason is for whoever asks: the pages, `status` and `notify explain`, and the table that keeps it.
    ("reason of a *", "page / of the worker"),
    ("reason of a *", "page /still of the worker"),
    ("reason of a *", "page /status.json of the worker"),
    ("reason of a *", "output of sb-worker status"),
    ("reason of a mute", "output of sb-worker notify explain"),
    ("reason of a *", "statements to PostgreSQL"),
    ("reason of a pause", "table sweeper_pause"),
    ("reason of a mute", "table notification_target"),
    # `sb-worker config` shows what is no secret: who gets mail, and the bases of two APIs.
    ("mail *recipient", "output of sb-worker config"),
    ("slack path", "output of sb-worker config"),
    ("pagerduty path", "output of sb-worker config"),
    # Apprise's process leads https:// through the proxy itself.
    ("proxy *", "environment of Apprise's process"),
    # Messages of somebody else's: they were put into Redis with it, and are put aside there as they are.
    ("message", "Redis"),
    ("message", "commands to Redis"),
)


def belongs(find: Find) -> tuple[str, str] | None:
    """Return the line by which a find is where it belongs."""
    fitting = (line for line in BELONGS if fnmatchcase(find.canary, line[0]) and fnmatchcase(find.place, line[1]))
    return next(fitting, None)


def strays(finds: Iterable[Find]) -> list[Find]:
    """Return those that are where they do not belong."""
    return [find for find in finds if belongs(find) is None]
