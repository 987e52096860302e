"""Structured logs: one line an event, with the request's id, and no secret in any of them."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from contextvars import Token
from typing import Any, Final, TextIO

import structlog

from sessions.tracing import current_span

_TRACEBACKS: Final = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)  # they may hold secrets
)
_HIDDEN: Final = "***"
_SECRET_NAMES: Final = frozenset(
    {
        "api_key",
        "authorization",
        "cookie",
        "credentials",
        "csrf",
        "nonce",
        "password",
        "secret",
        "set-cookie",
        "signature",
        "token",
        "x-csrftoken",
        "x-registration-nonce",
        "x-registration-signature",
    }
)
_KEY_IN_TEXT: Final = re.compile(r"gw_[a-z0-9]{8}_[A-Za-z0-9_-]{20,}|(?i:bearer) +\S{8,}")
_URL_CREDENTIALS: Final = re.compile(r"(https?://)[^/\s@?#]+@")
_URL_QUERY: Final = re.compile(r"(https?://[^\s?]+)\?\S+")


def configure_logs(*, level: str, form: str, stream: TextIO | None = None) -> None:
    """Write every log of this process as asked: ``form`` is ``json`` or ``console``.

    The standard library's loggers, which uvicorn and SQLAlchemy use, go the same way.
    """
    stream = stream or sys.stderr
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        add_trace,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    last: list[Any] = (
        [_TRACEBACKS, redact, structlog.processors.JSONRenderer()]
        if form == "json"
        else [
            structlog.processors.format_exc_info,
            redact,
            structlog.dev.ConsoleRenderer(colors=stream.isatty()),
        ]
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "alembic"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    # Ours says more, and no query. Without handlers, uvicorn does not even put a line together.
    logging.getLogger("uvicorn.access").handlers = []
    logging.getLogger("uvicorn.access").propagate = False
    logging.getLogger("alembic").setLevel(logging.WARNING)


class NamedInLogs:
    """Has every line of a block, in this task and those it starts, name the request it is of.

    Made by hand because it is on the path of every request, as ``sessions.inside.Inside``.
    """

    __slots__ = ("_request_id", "_tokens")

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._tokens: Mapping[str, Token[Any]] = {}

    def __enter__(self) -> None:
        """Begin."""
        self._tokens = structlog.contextvars.bind_contextvars(request_id=self._request_id)

    def __exit__(self, *_error: object) -> None:
        structlog.contextvars.reset_contextvars(**self._tokens)


def add_trace(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Add the ids of the span that an event belongs to, if it is traced."""
    for name, value in traced().items():
        event.setdefault(name, value)
    return event


def traced() -> Mapping[str, str]:
    """Return the ids of the current span, as log lines have them."""
    span = current_span()
    return {} if span is None else {"trace_id": span.trace_id, "span_id": span.span_id}


def redact(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Hide what has a secret's name, and what looks like one inside a text."""
    return {name: _redacted(name, value) for name, value in event.items()}


def _redacted(name: str, value: Any) -> Any:
    if name.lower() in _SECRET_NAMES:
        return _HIDDEN
    if isinstance(value, str):
        return _without_secrets(value)
    if isinstance(value, Mapping):
        return {str(key): _redacted(str(key), part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted("", part) for part in value]
    return value


def _without_secrets(text: str) -> str:
    """Hide what looks like a secret; most texts hold none of the marks, which is seen sooner."""
    if "gw_" in text or "bearer" in text.lower():
        text = _KEY_IN_TEXT.sub(_HIDDEN, text)
    if "://" not in text:
        return text
    return _URL_QUERY.sub(rf"\1?{_HIDDEN}", _URL_CREDENTIALS.sub(rf"\1{_HIDDEN}@", text))
