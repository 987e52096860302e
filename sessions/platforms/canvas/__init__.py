"""Canvas, by Instructure: hosted or run by oneself.

A package, as it answers several questions: how Canvas is called (``wire``), what its answers mean
(``rows``), which calls answer a question (``reading``, and ``graph`` for GraphQL), how something is
changed (``writing``), how a user authorises the gateway (``oauth``), and what all of that is to the
rest of the gateway (``session``).

Everything said here about Canvas comes from its public documentation and source
(https://github.com/instructure/canvas-lms), and was tried on a simulator.
"""

from __future__ import annotations

from typing import Final

from sessions.base import (
    ACT_AS,
    MASQUERADE,
    Capability,
    CredentialField,
    Platform,
    SubjectKind,
)
from sessions.platforms.canvas.oauth import GRANT_BUCKET, SCOPES
from sessions.platforms.canvas.reading import SORTED_COURSES
from sessions.platforms.canvas.rows import ROLES
from sessions.platforms.canvas.session import GRAPHQL, NEVER, CanvasSession
from sessions.platforms.canvas.wire import LINK_ORIGIN, PAGE

__all__ = ["PLATFORM", "CanvasSession"]

_OPTIONS: Final = {
    ACT_AS: f"How a user is acted for: oauth (default) with their consent, {MASQUERADE} with the "
    "service's token, which needs the permission Users - act as",
    GRAPHQL: f"auto (default) uses GraphQL where it takes fewer calls, {NEVER} keeps to REST",
    SCOPES: "OAuth scopes users are asked for, separated by spaces; without it, all of the key's",
    LINK_ORIGIN: "Scheme and host that Canvas writes into its links, if a proxy changes them",
}

PLATFORM = Platform(
    name="canvas",
    title="Canvas",
    session=CanvasSession,
    credential_fields=(
        CredentialField(
            name="api_key",
            label="Access token of an admin, made at Account, Settings, New Access Token",
            secret=True,
        ),
        CredentialField(
            name="client_id",
            label="Id of the developer key that users authorise the gateway with, made at Admin, "
            "Developer Keys",
            required=False,
        ),
        CredentialField(
            name="client_secret",
            label="Secret of the developer key",
            required=False,
            secret=True,
        ),
        CredentialField(
            name="account_id",
            label="Account id, the number after /accounts/; without it, the token's own",
            required=False,
        ),
    ),
    capabilities=frozenset(Capability),
    heartbeat_seconds=None,
    page_size=PAGE,
    concurrency=16,
    option_names=_OPTIONS
    | {
        f"role.{type_}": f"The role of a {type_}, instead of {value}"
        for type_, value in ROLES.items()
    },
    versions="releases of 2019, 2024 and 2025, simulated",
    subjects=frozenset(SubjectKind),
    user_terms=("client_id",),
    grant_bucket=GRANT_BUCKET,
    progress_by_call=True,
    sorted_lists=frozenset(SORTED_COURSES),
)
