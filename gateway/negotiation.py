"""What a caller takes: which form of answer an ``Accept`` header asks for.

Source:
    https://www.rfc-editor.org/rfc/rfc9110#section-12.5.1
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

JSON: Final = "application/json"
GRAPHQL_RESPONSE: Final = "application/graphql-response+json"
EVENTS: Final = "text/event-stream"
MULTIPART: Final = "multipart/mixed"
HTML: Final = "text/html"

_MAX_KNOWN_CHARACTERS: Final = 300
_INCREMENTAL: Final = "v0.2"
_SUBSCRIPTION: Final = frozenset({"1", "1.0"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Forms:
    """The media types a caller is answered in; ``None`` for what cannot be told in any it takes.

    Attributes:
        refusal: What goes wrong before there is an answer.
        whole: An answer that is one piece.
        parts: What ``@defer`` and ``@stream`` put off, piece by piece.
        events: A subscription.
    """

    refusal: str
    whole: str | None
    parts: str | None
    events: str | None


def forms_of(accept: str) -> Forms | None:
    """Return how to answer; ``None`` when the caller takes nothing that can be had.

    The highest quality wins, then what is named first. Streams are for those who name them, not
    for those who take anything; and an answer that is one piece is only streamed to those who
    prefer that by quality, as many clients name every type they know.
    """
    return _known_forms(accept) if len(accept) <= _MAX_KNOWN_CHARACTERS else _forms_of(accept)


def _forms_of(accept: str) -> Forms | None:
    ranges = _ranges(accept or "*/*")
    whole = _best(ranges, (JSON, GRAPHQL_RESPONSE))
    events = _named(ranges, EVENTS, lambda _parameters: True)
    parts = _named(ranges, MULTIPART, _takes_incremental)
    subscription = _named(ranges, MULTIPART, _takes_subscription)
    given = (form for form in (whole, events) if form is not None)
    single = max(given, key=lambda form: form.quality, default=parts)
    forms = Forms(
        refusal=JSON if whole is None else whole.media_type,
        whole=_type_of(single),
        parts=_type_of(_first(parts, events)),
        events=_type_of(_first(subscription, events)),
    )
    return None if forms.whole is None and forms.events is None else forms


_known_forms: Final = lru_cache(maxsize=256)(_forms_of)  # a client sends the same each time


def prefers_page(accept: str) -> bool:
    """Whether a caller would rather see a page than JSON."""
    best = _best(_ranges(accept), (JSON, GRAPHQL_RESPONSE, HTML))
    return best is not None and best.media_type == HTML


class _Range(NamedTuple):
    """A range of media types and how much it is liked, by its place in the header."""

    name: str
    parameters: Mapping[str, str]
    quality: float
    place: int


class _Form(NamedTuple):
    media_type: str
    quality: float
    place: int


def _ranges(accept: str) -> Sequence[_Range]:
    return [_range(part, place) for place, part in enumerate(accept.lower().split(","))]


def _range(part: str, place: int) -> _Range:
    name, *pieces = part.split(";")
    pairs = (piece.partition("=") for piece in pieces)
    parameters = {key.strip(): value.strip().strip('"') for key, _, value in pairs}
    return _Range(name.strip(), parameters, _number(parameters.pop("q", "1")), place)


def _number(text: str) -> float:
    try:
        quality = float(text)
    except ValueError:
        return 0.0
    return quality if 0 <= quality <= 1 else float(quality > 1)


def _best(ranges: Sequence[_Range], offered: Sequence[str]) -> _Form | None:
    """Return the best liked of some types; the first offered where they are liked alike."""
    forms = [form for name in offered if (form := _form(ranges, name)) is not None]
    return max(forms, key=lambda form: (form.quality, -form.place), default=None)


def _form(ranges: Sequence[_Range], media_type: str) -> _Form | None:
    """Return how a type is liked, by the most exact range that covers it."""
    ranks = {"*/*": 0, f"{media_type.partition('/')[0]}/*": 1, media_type: 2}
    covering = [one for one in ranges if one.name in ranks]
    best = max(covering, key=lambda one: (ranks[one.name], one.quality, -one.place), default=None)
    if best is None or best.quality == 0:
        return None
    return _Form(media_type, best.quality, best.place)


def _named(
    ranges: Sequence[_Range], media_type: str, suits: Callable[[Mapping[str, str]], bool]
) -> _Form | None:
    """Return how a type is liked that is named, with parameters that suit."""
    named = [one for one in ranges if one.name == media_type and suits(one.parameters)]
    best = max(named, key=lambda one: (one.quality, -one.place), default=None)
    if best is None or best.quality == 0:
        return None
    return _Form(media_type, best.quality, best.place)


def _takes_incremental(parameters: Mapping[str, str]) -> bool:
    """Whether the form of parts is ours; ``deferSpec`` asks for one that is no longer made."""
    if "subscriptionspec" in parameters or "deferspec" in parameters:
        return False
    return parameters.get("incrementalspec", _INCREMENTAL) == _INCREMENTAL


def _takes_subscription(parameters: Mapping[str, str]) -> bool:
    return parameters.get("subscriptionspec") in _SUBSCRIPTION


def _first(*forms: _Form | None) -> _Form | None:
    given = (form for form in forms if form is not None)
    return max(given, key=lambda form: (form.quality, -form.place), default=None)


def _type_of(form: _Form | None) -> str | None:
    return None if form is None else form.media_type
