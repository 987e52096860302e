"""What differs between releases of Canvas, as switches; three profiles bundle them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One release's answers to the questions on which releases differ.

    Attributes:
        name: How tests and the command line call this bundle.
        max_page: The most rows a page holds, whatever `per_page` asks.
        search_minimum: The shortest `search_term` accepted.
        denied_status: Status of "not permitted": 401 without `WWW-Authenticate`, or 403.
        throttled_status: Status of a throttled call: 403 or 429, both in plain text.
        retry_after: Whether a throttled reply says `Retry-After`; no source read does.
        names_dead_tokens: Whether expired and revoked tokens are told from invalid ones.
        keys_expire: Whether OAuth access tokens live one hour; else `expires_in` is absent.
        pkce: Whether a code challenge protects the code; older releases ignore it.
        redirects_token_errors: Whether the token endpoint answers an error with a redirect
            to `redirect_uri` when one was sent.
        refresh_guard_seconds: A second refresh within this time changes nothing and answers
            `access_token: null`; 0 switches the guard off.
        drops_state_on_denial: Whether `state` is missing from redirects that carry an error.
        graphql_default_page: Rows of a connection without `first`; None for all of them.
        graphql_courses_by_ids: Whether `courses(ids:)` exists.
        graphql_enforces_aliases: Whether more than 20 aliases are refused.
        link_header: How the `Link` header's name is written.
    """

    name: str
    max_page: int = 100
    search_minimum: int = 2
    denied_status: int = 403
    throttled_status: int = 429
    retry_after: bool = False
    names_dead_tokens: bool = True
    keys_expire: bool = True
    pkce: bool = True
    redirects_token_errors: bool = False
    refresh_guard_seconds: float = 0.0
    drops_state_on_denial: bool = False
    graphql_default_page: int | None = 20
    graphql_courses_by_ids: bool = True
    graphql_enforces_aliases: bool = True
    link_header: str = "Link"


OSS_2019 = Profile(
    name="oss-2019",
    max_page=50,
    search_minimum=3,
    denied_status=401,
    throttled_status=403,
    names_dead_tokens=False,
    pkce=False,
    redirects_token_errors=True,
    drops_state_on_denial=True,
    graphql_default_page=None,
    graphql_courses_by_ids=False,
    graphql_enforces_aliases=False,
    link_header="link",
)
OSS_2024 = Profile(
    name="oss-2024",
    denied_status=401,
    throttled_status=403,
    names_dead_tokens=False,
    refresh_guard_seconds=5.0,
    graphql_default_page=None,
)
HOSTED_NOW = Profile(name="hosted-now")
PROFILES = {profile.name: profile for profile in (OSS_2019, OSS_2024, HOSTED_NOW)}
