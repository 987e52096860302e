"""What differs between releases of Canvas, as switches; three profiles bundle them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
        refresh_lifetime_seconds: How long a refresh token of a confidential client lives after
            its code was redeemed; None for ever, as no source read ends it.
        grants_charged_to: Whose bucket a call to the token endpoint fills: that of the caller's
            address, or of the OAuth client it names.
        drops_state_on_denial: Whether `state` is missing from redirects that carry an error.
        graphql_default_page: Rows of a connection without `first`; None for all of them.
        graphql_courses_by_ids: Whether `courses(ids:)` exists.
        graphql_courses_serve_admins: Whether `courses(ids:)` shows an administrator courses they
            are not enrolled in; not known of any release.
        graphql_newer_fields: Whether enrollments and courses tell when they were made and
            changed, `enrollmentState`, `userId`, `courseSectionId`, `htmlUrl`, `account`.
        graphql_user_fields: Whether users tell `firstName`, `lastName`, `loginId`, `sisId`,
            `integrationId` and `uuid`.
        students_read_roster: Whether students may see who else is in their course.
        activity_per_enrollment: Whether `total_activity_time` is of one enrollment, or all
            enrollments of a user in a course show the same.
        graphql_enforces_aliases: Whether more than 20 aliases are refused.
        repeats_enrollments: Whether enrolling somebody again, in the same section and role,
            makes another row; else the one there is used again.
        shows_deleted_users: Whether a deleted user is answered with `workflow_state`, and with
            `merged_into_user_id` if merged; else it is not found.
        analytics: Whether the analytics resources exist; some installations switch them off.
        progress_resources: Whether `bulk_user_progress` and `users/:id/progress` of a course
            exist; their age is not known.
        sorted_users_pages: How many pages a list of an account's users has when it is not
            sorted by id, the documentation warns of 50; None for all of them.
        image_url_seconds: How long the URL of a stored course image is good; None for ever.
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
    refresh_lifetime_seconds: float | None = None
    grants_charged_to: Literal["address", "client"] = "address"
    drops_state_on_denial: bool = False
    graphql_default_page: int | None = 20
    graphql_courses_by_ids: bool = True
    graphql_courses_serve_admins: bool = True
    graphql_newer_fields: bool = True
    graphql_user_fields: bool = True
    students_read_roster: bool = True
    activity_per_enrollment: bool = True
    graphql_enforces_aliases: bool = True
    repeats_enrollments: bool = False
    shows_deleted_users: bool = False
    analytics: bool = True
    progress_resources: bool = True
    sorted_users_pages: int | None = None
    image_url_seconds: float | None = 7 * 86_400.0
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
    graphql_newer_fields=False,
    graphql_user_fields=False,
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
    graphql_user_fields=False,
)
HOSTED_NOW = Profile(name="hosted-now")
PROFILES = {profile.name: profile for profile in (OSS_2019, OSS_2024, HOSTED_NOW)}
