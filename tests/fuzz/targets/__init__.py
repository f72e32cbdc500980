"""Every target, by what its inputs come from: configuration, answers of others, what is stored."""

from __future__ import annotations

from typing import Any

from tests.fuzz.target import Target
from tests.fuzz.targets.answered.argocd import argocd_answers, argocd_documents, argocd_trees
from tests.fuzz.targets.answered.http import http_answers, http_pieces
from tests.fuzz.targets.answered.key_services import envelopes, key_services
from tests.fuzz.targets.answered.mail import smtp_answers, starttls_answers
from tests.fuzz.targets.answered.probes import probe_requests
from tests.fuzz.targets.answered.sinks import sink_answers
from tests.fuzz.targets.answered.waits import times
from tests.fuzz.targets.configured.commands import arguments, command_lines
from tests.fuzz.targets.configured.environment import environment_
from tests.fuzz.targets.configured.files import files
from tests.fuzz.targets.configured.targets_json import discover_targets
from tests.fuzz.targets.configured.urls import postgres_url, redis_url
from tests.fuzz.targets.configured.values import values
from tests.fuzz.targets.stored.messages import message_bodies, message_queue
from tests.fuzz.targets.stored.rows import our_rows
from tests.fuzz.targets.stored.told import told

TARGETS: tuple[Target[Any], ...] = (
    *(values, environment_, postgres_url, redis_url, discover_targets, files, arguments, command_lines),
    *(
        http_answers,
        http_pieces,
        sink_answers,
        smtp_answers,
        starttls_answers,
        argocd_documents,
        argocd_trees,
        argocd_answers,
    ),
    *(times, key_services, envelopes, probe_requests),
    *(message_bodies, message_queue, told, our_rows),
)
