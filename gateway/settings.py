"""Settings: read once from the environment, each with a name, a form and a default.

``SETTINGS`` is the only list there is; ``docs/configuration.md`` is compared with it by a test.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from sessions.addresses import LOCAL_NETWORKS
from storage.credentials import KeyRing, Secret
from storage.errors import StorageError

PREFIX: Final = "GATEWAY_"
_TEST_PREFIX: Final = "GATEWAY_TEST_"
_MIN_TOKEN_LENGTH: Final = 16
_LEARNER_SCOPES: Final = ("read:users", "read:courses", "read:enrollments", "introspect")
_LOOPBACK_HOSTS: Final = frozenset({"127.0.0.1", "::1", "localhost"})

_OTEL_CHOICES: Final = {
    "OTEL_TRACES_EXPORTER": ("otlp", "none"),
    "OTEL_EXPORTER_OTLP_PROTOCOL": ("http/protobuf",),
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": ("http/protobuf",),
}


class SettingsError(Exception):
    """A setting is wrong; the message names it, what is wrong and the form it should have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the operator decided; see ``SETTINGS`` for the meaning of each."""

    host: str
    port: int
    public_url: str
    data_folder: Path
    database_url: str = field(repr=False)  # it may hold a password
    media_folder: Path
    token: Secret[str] | None
    keys: KeyRing | None
    jwt_keys: str | None
    jwt_issuer: str | None
    jwt_audience: str | None
    jwt_accounts_claim: str
    jwt_scopes: frozenset[str]
    product_callback_url: str | None
    callback_seconds: float
    callback_pause_seconds: float
    nonce_seconds: float
    registration_secret: Secret[str] | None
    allowed_provider_urls: tuple[str, ...]
    allowed_networks: tuple[str, ...]
    allowed_ports: frozenset[int] | None
    max_page_size: int
    max_collected_rows: int
    max_nested_rows: int
    cursor_seconds: float
    max_body_bytes: int
    max_document_tokens: int
    max_cost: int
    max_key_cost: int
    max_key_operations: int
    max_requests: int
    queue_seconds: float
    max_subscriptions: int
    deadline_seconds: float
    provider_seconds: float
    max_upstream_calls: int
    max_age_seconds: float
    cache_mib: int
    answers_mib: int
    stream_seconds: float
    documents: str
    heartbeat_seconds: float | None
    import_hours: int
    changes_days: int
    match_link_above: float | None
    match_bulk_from: int
    audit_days: int
    new_statuses: bool
    cors_origins: tuple[str, ...]
    graphiql: bool
    dev: bool
    public_metrics: bool
    log_level: str
    log_format: str
    slow_seconds: float
    tracing: str
    workers: int
    drain_seconds: float
    shutdown_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting.

    Attributes:
        name: Of the environment variable.
        field: Of ``Settings``.
        meaning: One sentence for the operator.
        form: What a value looks like.
        default: As it would be written; ``None`` when there is none, or it is derived, as
            ``meaning`` then says.
        read: Makes the value; raises ``ValueError`` with what is wrong.
        secret: Whether its value is never shown.
    """

    name: str
    field: str
    meaning: str
    form: str
    default: str | None
    read: Callable[[str], Any]
    secret: bool = False


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Return the settings of this environment; empty values count as not set.

    Raises:
        SettingsError: One is wrong, or a variable that starts with GATEWAY_ is not known.
    """
    _refuse_unknown(environment)
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        given = environment.get(setting.name, "").strip() or setting.default
        values[setting.field] = None if given is None else _value(setting, given)
    values["allowed_provider_urls"] = values["allowed_provider_urls"] or ()
    values["cors_origins"] = values["cors_origins"] or ()
    folder: Path = values["data_folder"]
    values["database_url"] = values["database_url"] or f"sqlite:///{folder.resolve()}/gateway.db"
    values["media_folder"] = values["media_folder"] or folder / "media"
    values["public_url"] = values["public_url"] or _own_url(values["host"], values["port"])
    if values["tracing"] != "off":
        values["tracing"] = _checked_tracing(values["tracing"], environment)
    settings = Settings(**values)
    if settings.dev and settings.host not in _LOOPBACK_HOSTS:
        raise SettingsError(
            f"GATEWAY_DEV opens the API to everyone who reaches {settings.host}: "
            "expected GATEWAY_HOST=127.0.0.1 with it, or GATEWAY_DEV=off"
        )
    _check_jwt(settings)
    return settings


def describe(settings: Settings) -> Mapping[str, str]:
    """Return every setting's name and value as an operator may see them, secrets as ``***``."""
    return {setting.name: _shown(setting, getattr(settings, setting.field)) for setting in SETTINGS}


def _check_jwt(settings: Settings) -> None:
    """Let learners' tokens be set up altogether or not at all."""
    given = {
        "GATEWAY_JWT_KEYS": settings.jwt_keys,
        "GATEWAY_JWT_ISSUER": settings.jwt_issuer,
        "GATEWAY_JWT_AUDIENCE": settings.jwt_audience,
    }
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise SettingsError(
            f"{missing[0]} is missing, without which no token would be believed: expected all of "
            f"{', '.join(given)}, or none"
        )


def _value(setting: Setting, given: str) -> Any:
    try:
        return setting.read(given)
    except (ValueError, StorageError) as error:
        shown = "" if setting.secret else f" {given!r}"
        raise SettingsError(f"{setting.name}{shown} {error}: expected {setting.form}") from (
            None if setting.secret else error
        )


def _shown(setting: Setting, value: Any) -> str:
    if value is None:
        return ""
    if setting.secret:
        return "***"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, frozenset):
        value = tuple(sorted(value))
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _checked_tracing(mode: str, environment: Mapping[str, str]) -> str:
    """Return how much is traced, once it is sure that it can be.

    Raises:
        SettingsError: OpenTelemetry is not installed, or is to send in a way we do not know.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return "off"
    for name, known in _OTEL_CHOICES.items():
        if environment.get(name, "").strip() not in {"", *known}:
            raise SettingsError(f"{name} is not one of those there are here: {' or '.join(known)}")
    try:
        import_module("gateway.tracing")
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"GATEWAY_TRACING is {mode}, and OpenTelemetry is not installed here ({error.name} is"
            " missing): pip install 'learning-gateway[otel]'"
        ) from error
    return mode


def _refuse_unknown(environment: Mapping[str, str]) -> None:
    known = [setting.name for setting in SETTINGS]
    for name in sorted(environment):
        if name.startswith(PREFIX) and not name.startswith(_TEST_PREFIX) and name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise SettingsError(f"{name} is not a setting; the nearest is {nearest[0]}")


def _own_url(host: str, port: int) -> str:
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104 - compared only
    return f"http://{name}:{port}"


def _text(value: str) -> str:
    return value


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", value):
            raise ValueError("is not a whole number")
        if not least <= int(value) <= most:
            raise ValueError("is out of range")
        return int(value)

    return read


def _share(least: float, most: float) -> Callable[[str], float]:
    def read(value: str) -> float:
        if not re.fullmatch(r"[0-9](\.[0-9]{1,6})?", value):
            raise ValueError("is not a number")
        if not least <= float(value) <= most:
            raise ValueError("is out of range")
        return float(value)

    return read


def _seconds(least: float, most: float) -> Callable[[str], float]:
    def read(value: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", value):
            raise ValueError("is not a number of seconds")
        if not least <= float(value) <= most:
            raise ValueError("is out of range")
        return float(value)

    return read


def _switch(value: str) -> bool:
    if value.lower() not in {"on", "off"}:
        raise ValueError("is neither on nor off")
    return value.lower() == "on"


def _one_of(*words: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value.lower() not in words:
            raise ValueError("is not one of them")
        return value.lower()

    return read


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("is not an http or https URL")
    if parts.username or parts.password:
        raise ValueError("holds credentials")
    if parts.query or parts.fragment:
        raise ValueError("has a query or a fragment")
    return value.rstrip("/")


def _http_urls(value: str) -> tuple[str, ...]:
    return tuple(_http_url(part.strip()) for part in value.split(",") if part.strip())


def _origins(value: str) -> tuple[str, ...]:
    origins = _http_urls(value)
    if any(urlsplit(origin).path for origin in origins):
        raise ValueError("has a path, which no origin has")
    return tuple(origin.lower() for origin in origins)


def _token(value: str) -> Secret[str]:
    if len(value) < _MIN_TOKEN_LENGTH:
        raise ValueError("is too short")
    if not value.isascii() or any(character.isspace() for character in value):
        raise ValueError("holds characters that a header cannot carry")
    return Secret(value)


def _networks(value: str) -> tuple[str, ...]:
    networks = [part.strip() for part in value.split(",") if part.strip()]
    if networks == ["none"]:
        return ()
    for network in networks:
        ipaddress.ip_network(network)
    return tuple(networks)


def _key_set(value: str) -> str:
    return _http_url(value) if "://" in value else value


def _learner_scopes(value: str) -> frozenset[str]:
    scopes = frozenset(part.strip() for part in value.split(",") if part.strip())
    for scope in sorted(scopes):
        if scope not in _LEARNER_SCOPES:
            raise ValueError(f"holds {scope}, which learners cannot have")
    return scopes


def _ports(value: str) -> frozenset[int]:
    return frozenset(_whole(1, 65_535)(part.strip()) for part in value.split(","))


SETTINGS: Final = (
    Setting(
        name="GATEWAY_HOST",
        field="host",
        meaning="The address to listen on.",
        form="an IP address or host name",
        default="127.0.0.1",
        read=_text,
    ),
    Setting(
        name="GATEWAY_PORT",
        field="port",
        meaning="The port to listen on.",
        form="a whole number from 1 to 65535",
        default="8080",
        read=_whole(1, 65_535),
    ),
    Setting(
        name="GATEWAY_PUBLIC_URL",
        field="public_url",
        meaning="What callers reach the gateway by; media URLs begin with it, and so does the "
        "address users come back to after signing in at a provider (see oauth). "
        "Made of host and port when not set.",
        form="an http or https URL without credentials, such as https://learn.example.org",
        default=None,
        read=_http_url,
    ),
    Setting(
        name="GATEWAY_DATA_FOLDER",
        field="data_folder",
        meaning="Where the database, the media, the key file and the generated token are kept.",
        form="a path; it is made when missing",
        default="learning-gateway-data",
        read=Path,
    ),
    Setting(
        name="GATEWAY_DATABASE_URL",
        field="database_url",
        meaning="The database. An SQLite file in the data folder when not set.",
        form="sqlite:////path/gateway.db or postgresql://user:password@host/name",
        default=None,
        read=_text,
        secret=True,
    ),
    Setting(
        name="GATEWAY_MEDIA_FOLDER",
        field="media_folder",
        meaning="Where images are kept. The folder media in the data folder when not set.",
        form="a path; it is made when missing",
        default=None,
        read=Path,
    ),
    Setting(
        name="GATEWAY_TOKEN",
        field="token",
        meaning="The bootstrap key, which has every scope. Generated into the file token of the "
        "data folder when not set.",
        form="at least 16 ASCII characters without spaces",
        default=None,
        read=_token,
        secret=True,
    ),
    Setting(
        name="GATEWAY_KEYS",
        field="keys",
        meaning="The keys that seal credentials: the first seals, all open. Generated into the "
        "file keys of the data folder when not set.",
        form="k2:BASE64,k1:BASE64 with 32 bytes each, newest first",
        default=None,
        read=KeyRing.parse,
        secret=True,
    ),
    Setting(
        name="GATEWAY_JWT_KEYS",
        field="jwt_keys",
        meaning="Where the public keys are that learners' tokens are signed with (see access). "
        "Learners have no tokens when not set.",
        form="an http or https URL of a JSON Web Key Set, or the path of a file that holds one",
        default=None,
        read=_key_set,
    ),
    Setting(
        name="GATEWAY_JWT_ISSUER",
        field="jwt_issuer",
        meaning="Who signs learners' tokens: what their claim iss must be, exactly.",
        form="a text, such as https://login.example.org/",
        default=None,
        read=_text,
    ),
    Setting(
        name="GATEWAY_JWT_AUDIENCE",
        field="jwt_audience",
        meaning="Whom learners' tokens are for: what their claim aud must be, or hold.",
        form="a text, such as learning-gateway",
        default=None,
        read=_text,
    ),
    Setting(
        name="GATEWAY_JWT_ACCOUNTS_CLAIM",
        field="jwt_accounts_claim",
        meaning="The claim of a learner's token that names the learner's accounts: an object of "
        "the provider's id and the learner's external id there.",
        form="a claim's name",
        default="learning_accounts",
        read=_text,
    ),
    Setting(
        name="GATEWAY_JWT_SCOPES",
        field="jwt_scopes",
        meaning="What learners may read of their own.",
        form=f"some of {', '.join(_LEARNER_SCOPES)}, separated by commas",
        default="read:users,read:courses,read:enrollments",
        read=_learner_scopes,
    ),
    Setting(
        name="GATEWAY_PRODUCT_CALLBACK_URL",
        field="product_callback_url",
        meaning="Where the product is asked for the details of an unknown provider id. "
        "Without it unknown ids are simply not found.",
        form="an http or https URL without credentials",
        default=None,
        read=_http_url,
    ),
    Setting(
        name="GATEWAY_CALLBACK_SECONDS",
        field="callback_seconds",
        meaning="How long a request for an unknown provider waits for the product to register it.",
        form="a number of seconds from 0.1 to 120",
        default="15",
        read=_seconds(0.1, 120),
    ),
    Setting(
        name="GATEWAY_CALLBACK_PAUSE_SECONDS",
        field="callback_pause_seconds",
        meaning="How long an id the product did not register is not asked about again.",
        form="a number of seconds from 0 to 3600",
        default="5",
        read=_seconds(0, 3600),
    ),
    Setting(
        name="GATEWAY_NONCE_SECONDS",
        field="nonce_seconds",
        meaning="How long the one-time nonce of a callback is good for registering its provider; "
        "a later registration is refused.",
        form="a number of seconds from 0.1 to 86400",
        default="600",
        read=_seconds(0.1, 86_400),
    ),
    Setting(
        name="GATEWAY_REGISTRATION_SECRET",
        field="registration_secret",
        meaning="When set, registrations that answer a callback must be signed with it "
        "(see operations, Registration).",
        form="at least 16 ASCII characters without spaces",
        default=None,
        read=_token,
        secret=True,
    ),
    Setting(
        name="GATEWAY_ALLOWED_PROVIDER_URLS",
        field="allowed_provider_urls",
        meaning="The only base URLs at which, or below which, providers may be registered. "
        "Any that networks and ports allow when not set.",
        form="http or https URLs separated by commas",
        default=None,
        read=_http_urls,
    ),
    Setting(
        name="GATEWAY_ALLOWED_NETWORKS",
        field="allowed_networks",
        meaning="Networks that are not public and where providers may be. Link-local, metadata "
        "and multicast addresses are refused whatever is written here.",
        form="networks in CIDR form, separated by commas, or none",
        default=",".join(str(network) for network in LOCAL_NETWORKS),
        read=_networks,
    ),
    Setting(
        name="GATEWAY_ALLOWED_PORTS",
        field="allowed_ports",
        meaning="The only ports at which providers may be called. Any port when not set.",
        form="port numbers separated by commas, such as 80,443,8080",
        default=None,
        read=_ports,
    ),
    Setting(
        name="GATEWAY_MAX_PAGE_SIZE",
        field="max_page_size",
        meaning="The largest value of the argument first.",
        form="a whole number from 1 to 10000",
        default="1000",
        read=_whole(1, 10_000),
    ),
    Setting(
        name="GATEWAY_MAX_COLLECTED_ROWS",
        field="max_collected_rows",
        meaning="How many rows of a provider a filtered or sorted list may read to find its own.",
        form="a whole number from 1000 to 1000000",
        default="20000",
        read=_whole(1000, 1_000_000),
    ),
    Setting(
        name="GATEWAY_MAX_NESTED_ROWS",
        field="max_nested_rows",
        meaning=(
            "How many rows lists inside lists may hold in one answer, all together; where there"
            " are more, the field is null, with an error."
        ),
        form="a whole number from 1 to 1000000",
        default="20000",
        read=_whole(1, 1_000_000),
    ),
    Setting(
        name="GATEWAY_CURSOR_SECONDS",
        field="cursor_seconds",
        meaning="How long a cursor is good, counted from the first page of its walk.",
        form="a number of seconds from 60 to 31536000",
        default="604800",
        read=_seconds(60, 31_536_000),
    ),
    Setting(
        name="GATEWAY_MAX_BODY_BYTES",
        field="max_body_bytes",
        meaning="The largest body of a GraphQL request.",
        form="a whole number from 1000 to 10000000",
        default="100000",
        read=_whole(1000, 10_000_000),
    ),
    Setting(
        name="GATEWAY_MAX_DOCUMENT_TOKENS",
        field="max_document_tokens",
        meaning="How many names, values and marks a GraphQL document may hold. Refusing the "
        "costliest document takes time in proportion: 10 milliseconds at the default (see limits).",
        form="a whole number from 200 to 20000",
        default="800",
        read=_whole(200, 20_000),
    ),
    Setting(
        name="GATEWAY_MAX_COST",
        field="max_cost",
        meaning="What one GraphQL operation may be estimated to cost: the fields and list items "
        "that its answer can hold at most (see limits). 0 for any.",
        form="a whole number from 0 to 1000000000",
        default="6000000",
        read=_whole(0, 1_000_000_000),
    ),
    Setting(
        name="GATEWAY_MAX_KEY_COST",
        field="max_key_cost",
        meaning="What one key may use in a minute, of GraphQL and of whole lists over REST, in "
        "each process; what is above is refused with 429. 0 for any.",
        form="a whole number from 0 to 1000000000",
        default="60000000",
        read=_whole(0, 1_000_000_000),
    ),
    Setting(
        name="GATEWAY_MAX_KEY_OPERATIONS",
        field="max_key_operations",
        meaning="How many GraphQL operations, and whole lists over REST, one key may have under "
        "way at once in each process; more are refused with 429. 0 for as many as its share of "
        "GATEWAY_MAX_REQUESTS.",
        form="a whole number from 0 to 10000",
        default="0",
        read=_whole(0, 10_000),
    ),
    Setting(
        name="GATEWAY_MAX_REQUESTS",
        field="max_requests",
        meaning="How many requests one process works on at once, and how many wait; one key has at "
        "most three quarters of either. Fewer, while the process is too busy to keep up; the "
        "others are refused with 503 (see operations, Overload).",
        form="a whole number from 1 to 10000",
        default="500",
        read=_whole(1, 10_000),
    ),
    Setting(
        name="GATEWAY_QUEUE_SECONDS",
        field="queue_seconds",
        meaning="How long a request may wait for its turn while more come than can be served; "
        "after that it is answered 503.",
        form="a number of seconds from 0.1 to 60",
        default="1",
        read=_seconds(0.1, 60),
    ),
    Setting(
        name="GATEWAY_MAX_SUBSCRIPTIONS",
        field="max_subscriptions",
        meaning="How many streams of events one process keeps open, which are not counted among "
        "the requests it works on; one key has at most three quarters of them. A websocket counts "
        "as one, and each subscription on it as one more.",
        form="a whole number from 1 to 100000",
        default="1000",
        read=_whole(1, 100_000),
    ),
    Setting(
        name="GATEWAY_DEADLINE_SECONDS",
        field="deadline_seconds",
        meaning="How long one GraphQL request may wait for providers.",
        form="a number of seconds from 1 to 300",
        default="30",
        read=_seconds(1, 300),
    ),
    Setting(
        name="GATEWAY_PROVIDER_SECONDS",
        field="provider_seconds",
        meaning="How long one GraphQL request waits for one provider, over all it reads there. "
        "What comes later is kept for the next request; this one is answered with what is kept, "
        "marked stale, or without the provider.",
        form="a number of seconds from 0.1 to 300",
        default="10",
        read=_seconds(0.1, 300),
    ),
    Setting(
        name="GATEWAY_MAX_UPSTREAM_CALLS",
        field="max_upstream_calls",
        meaning="How many calls one GraphQL request may make to providers, retries included. A "
        "field that would need more is null, with an error; what was had is answered.",
        form="a whole number from 10 to 1000000",
        default="2000",
        read=_whole(10, 1_000_000),
    ),
    Setting(
        name="GATEWAY_MAX_AGE_SECONDS",
        field="max_age_seconds",
        meaning="How old kept answers may be that GraphQL queries without maxAge are served; up "
        "to twice as old while they are read anew. 0 reads everything live. The option max_age of "
        "a provider goes before.",
        form="a number of seconds from 0 to 86400",
        default="60",
        read=_seconds(0, 86_400),
    ),
    Setting(
        name="GATEWAY_CACHE_MIB",
        field="cache_mib",
        meaning="How much memory kept answers may take in each process. What does not fit is read "
        "from the database.",
        form="a whole number of mebibytes from 1 to 65536",
        default="64",
        read=_whole(1, 65_536),
    ),
    Setting(
        name="GATEWAY_ANSWERS_MIB",
        field="answers_mib",
        meaning="How much memory of each process whole answers may take that are given again as "
        "they were: to the same GraphQL query with the same rights, while every record they were "
        "made from is still kept and fresh, for a minute at most. 0 makes each answer anew.",
        form="a whole number of mebibytes from 0 to 4096",
        default="32",
        read=_whole(0, 4096),
    ),
    Setting(
        name="GATEWAY_STREAM_SECONDS",
        field="stream_seconds",
        meaning="How long one streamed answer, such as GET /api/users, may take, the caller's "
        "reading included.",
        form="a number of seconds from 1 to 3600",
        default="300",
        read=_seconds(1, 3600),
    ),
    Setting(
        name="GATEWAY_DOCUMENTS",
        field="documents",
        meaning="Which GraphQL documents are served: any, or only those that are registered (see "
        "trusted-documents). Keys with the scope admin may always send any.",
        form="any or trusted",
        default="any",
        read=_one_of("any", "trusted"),
    ),
    Setting(
        name="GATEWAY_HEARTBEAT_SECONDS",
        field="heartbeat_seconds",
        meaning="How often idle sessions are kept alive. Each platform's own interval when not "
        "set.",
        form="a number of seconds from 0.5 to 86400",
        default=None,
        read=_seconds(0.5, 86_400),
    ),
    Setting(
        name="GATEWAY_IMPORT_HOURS",
        field="import_hours",
        meaning="How often each provider is imported, at a second of its own that a hash of its id "
        "names; a new one not within its first hour. 0 for only when it is asked for (see "
        "imports).",
        form="a whole number from 0 to 720",
        default="24",
        read=_whole(0, 720),
    ),
    Setting(
        name="GATEWAY_CHANGES_DAYS",
        field="changes_days",
        meaning="How long changes that imports found can be read.",
        form="a whole number from 1 to 3650",
        default="30",
        read=_whole(1, 3650),
    ),
    Setting(
        name="GATEWAY_MATCH_LINK_ABOVE",
        field="match_link_above",
        meaning="How probable it is at least that two accounts are one person's for match runs to "
        "link them unasked. Nothing is linked unasked when not set (see people).",
        form="a number from 0.5 to 1",
        default=None,
        read=_share(0.5, 1),
    ),
    Setting(
        name="GATEWAY_MATCH_BULK_FROM",
        field="match_bulk_from",
        meaning="More accounts of two providers together than so many are compared on disk instead "
        "of in memory, which needs the extra bulk (see people).",
        form="a whole number from 0 to 100000000",
        default="2500000",
        read=_whole(0, 100_000_000),
    ),
    Setting(
        name="GATEWAY_AUDIT_DAYS",
        field="audit_days",
        meaning="How long it is kept who changed what (see access).",
        form="a whole number from 1 to 3650",
        default="365",
        read=_whole(1, 3650),
    ),
    Setting(
        name="GATEWAY_NEW_STATUSES",
        field="new_statuses",
        meaning="Whether application/graphql-response+json is answered with the statuses of the "
        "newest draft: 422 for what can be read and not executed, 294 for data with errors. Off: "
        "400 and 200, which every client knows (see graphql-over-http, Statuses).",
        form="on or off",
        default="off",
        read=_switch,
    ),
    Setting(
        name="GATEWAY_CORS_ORIGINS",
        field="cors_origins",
        meaning="Origins of web pages that may use the API from a browser. Only pages of the "
        "gateway's own when not set (see graphql-over-http, Browsers).",
        form="origins separated by commas, such as https://app.example.org,http://localhost:3000",
        default=None,
        read=_origins,
    ),
    Setting(
        name="GATEWAY_GRAPHIQL",
        field="graphiql",
        meaning="Whether /graphql shows GraphiQL to browsers; queries still need a key.",
        form="on or off",
        default="on",
        read=_switch,
    ),
    Setting(
        name="GATEWAY_DEV",
        field="dev",
        meaning="Whether requests without a key have every scope, for work on one's own machine; "
        "refused unless the gateway listens on loopback.",
        form="on or off",
        default="off",
        read=_switch,
    ),
    Setting(
        name="GATEWAY_PUBLIC_METRICS",
        field="public_metrics",
        meaning="Whether /metrics is answered without a key.",
        form="on or off",
        default="off",
        read=_switch,
    ),
    Setting(
        name="GATEWAY_LOG_LEVEL",
        field="log_level",
        meaning="The least level that is logged.",
        form="debug, info, warning or error",
        default="info",
        read=_one_of("debug", "info", "warning", "error"),
    ),
    Setting(
        name="GATEWAY_LOG_FORMAT",
        field="log_format",
        meaning="One JSON object a line for machines, or lines for a person.",
        form="json or console",
        default="json",
        read=_one_of("json", "console"),
    ),
    Setting(
        name="GATEWAY_SLOW_SECONDS",
        field="slow_seconds",
        meaning="GraphQL operations that take at least this long have a log line of their own, "
        "slow_operation, which says where the time went. 0 for none.",
        form="a number of seconds from 0 to 3600",
        default="1",
        read=_seconds(0, 3600),
    ),
    Setting(
        name="GATEWAY_TRACING",
        field="tracing",
        meaning="Whether OpenTelemetry spans are sent, to where the OTEL_ variables say (see "
        "operations); upstream also passes the trace context on to providers, which are others' "
        "systems as a rule. Needs the extra otel.",
        form="off, on or upstream",
        default="off",
        read=_one_of("off", "on", "upstream"),
    ),
    Setting(
        name="GATEWAY_WORKERS",
        field="workers",
        meaning="How many processes serve; all share the database, and still one session "
        "per provider.",
        form="a whole number from 1 to 16",
        default="1",
        read=_whole(1, 16),
    ),
    Setting(
        name="GATEWAY_DRAIN_SECONDS",
        field="drain_seconds",
        meaning="How long /ready says no, while requests are still served, before a shutdown "
        "begins; for load balancers that look only now and then. One worker only.",
        form="a number of seconds from 0 to 300",
        default="0",
        read=_seconds(0, 300),
    ),
    Setting(
        name="GATEWAY_SHUTDOWN_SECONDS",
        field="shutdown_seconds",
        meaning="How long requests and logins in flight may take to end at a shutdown.",
        form="a number of seconds from 1 to 300",
        default="20",
        read=_seconds(1, 300),
    ),
)
