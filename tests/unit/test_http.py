"""What a provider's answers become, told at the wire without a network."""

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from email.utils import formatdate
from urllib.parse import urlencode

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.addresses import AddressPolicy
from sessions.errors import (
    FileUnavailable,
    ProviderAddressRefused,
    ProviderAuthFailed,
    ProviderBadResponse,
    ProviderError,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
)
from sessions.http import (
    HttpLimits,
    ParamValue,
    ProviderHttp,
    Response,
    TransportProblem,
    UpstreamCall,
    _parse_cookies,
    deadline,
    patience,
)
from sessions.resilience import ResilienceTerms

BASE_URL = "https://kolibri.example:8443/prefix"
SOURCE = "kolibri.example:8443"
CANARY = "canary-7f3a"

Handler = Callable[[httpx.Request], httpx.Response]


class Learner(msgspec.Struct):
    id: str
    year: int


@asynccontextmanager
async def pretend(
    handler: Handler | httpx.AsyncBaseTransport, *, limits: HttpLimits | None = None
) -> AsyncIterator[ProviderHttp]:
    """HTTP to a provider that answers as the handler says."""
    transport = (
        handler if isinstance(handler, httpx.AsyncBaseTransport) else httpx.MockTransport(handler)
    )
    async with ProviderHttp.open(
        BASE_URL,
        provider_id="1",
        policy=AddressPolicy(),
        limits=limits or HttpLimits(),
        transport=transport,
    ) as http:
        yield http


def answering(*replies: httpx.Response | Exception) -> tuple[Handler, list[httpx.Request]]:
    """Give a handler that answers in turn, the last reply for ever, and what it was asked."""
    asked: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        reply = replies[min(len(asked), len(replies)) - 1]
        if isinstance(reply, Exception):
            raise reply
        return httpx.Response(reply.status_code, headers=reply.headers, content=reply.content)

    return handler, asked


# What is sent


async def test_a_request_carries_what_was_asked_for_and_the_usual_headers() -> None:
    handler, asked = answering(httpx.Response(200, json=[]))

    async with pretend(handler) as http:
        await http.request(
            "GET",
            "/api/user",
            params={"page": 2, "active": True, "role": ["coach", "admin"], "search": None},
            headers={"X-CSRFToken": "token"},
            cookies={"sessionid": "one", "csrf": "two"},
            if_none_match='"v1"',
        )

    assert str(asked[0].url) == (
        "https://kolibri.example:8443/prefix/api/user?page=2&active=true&role=coach&role=admin"
    )
    assert dict(asked[0].headers) == {
        "accept": "application/json, */*;q=0.5",
        "accept-encoding": "gzip",
        "cookie": "sessionid=one; csrf=two",
        "host": "kolibri.example:8443",
        "if-none-match": '"v1"',
        "user-agent": "learning-gateway",
        "x-csrftoken": "token",
    }


async def test_a_body_is_json_or_a_form() -> None:
    handler, asked = answering(httpx.Response(200))

    async with pretend(handler) as http:
        await http.request("POST", "/login", json={"name": "Zoë", "active": False})
        await http.request("POST", "/token", form={"grant": "a b&c", "scope": ["x", "y"]})

    assert asked[0].content == '{"name":"Zoë","active":false}'.encode()
    assert asked[0].headers["content-type"] == "application/json"
    assert asked[1].content == b"grant=a+b%26c&scope=x&scope=y"
    assert asked[1].headers["content-type"] == "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("/api", "https://kolibri.example:8443/prefix/api"),
        ("api", "https://kolibri.example:8443/prefix/api"),
        ("", "https://kolibri.example:8443/prefix/"),
        ("/a?next=/../x", "https://kolibri.example:8443/prefix/a?next=/../x"),
        ("/a#part", "https://kolibri.example:8443/prefix/a"),
        ("/bücher", "https://kolibri.example:8443/prefix/b%C3%BCcher"),
        ("/a b\\c", "https://kolibri.example:8443/prefix/a%20b%5Cc"),
        (
            "https://kolibri.example:8443/icons/a b.png",
            "https://kolibri.example:8443/icons/a%20b.png",
        ),
        ("HTTPS://KOLIBRI.example:8443/x?y", "https://kolibri.example:8443/x?y"),
    ],
)
async def test_a_path_stays_with_the_provider(path: str, url: str) -> None:
    handler, asked = answering(httpx.Response(200))

    async with pretend(handler) as http:
        await http.request("GET", path)

    assert [str(request.url) for request in asked] == [url]


async def test_parameters_join_the_query_of_the_path() -> None:
    handler, asked = answering(httpx.Response(200))

    async with pretend(handler) as http:
        await http.request("GET", "/a?cursor=2", params=[("size", 10)])

    assert asked[0].url.query == b"cursor=2&size=10"


@pytest.mark.parametrize(
    "path",
    [
        "https://evil.example/",
        "http://kolibri.example:8443/",
        "https://kolibri.example/",
        "https://kolibri.example:8443@evil.example/",
        "https://kolibri.example:8443\\@evil.example/",
        "//evil.example/",
        "/\\evil.example/",
        "\\\\evil.example/",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "file:///etc/passwd",
        "/../admin",
        "/a/%2e%2E/admin",
        "/a\x00b",
    ],
)
async def test_a_path_that_leads_elsewhere_is_not_followed(path: str) -> None:
    handler, asked = answering(httpx.Response(200))

    async with pretend(handler) as http:
        with pytest.raises(ProviderAddressRefused) as refusal:
            await http.request("GET", path, headers={"authorization": CANARY})

    assert asked == []
    assert refusal.value.provider_id == "1"


@given(st.text(max_size=60))
def test_no_path_whatever_reaches_another_host(path: str) -> None:
    handler, asked = answering(httpx.Response(200))

    async def ask() -> None:
        async with pretend(handler) as http:
            await http.request("GET", path)

    try:
        asyncio.run(ask())
    except ProviderAddressRefused:
        assert asked == []
        return

    assert [(request.url.scheme, request.url.netloc) for request in asked] == [
        ("https", b"kolibri.example:8443")
    ]


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\n", "a\x00", "schlüssel"])
async def test_credentials_that_cannot_be_sent_are_named_but_not_shown(value: str) -> None:
    handler, asked = answering(httpx.Response(200))

    async with pretend(handler) as http:
        with pytest.raises(ProviderAuthFailed) as refusal:
            await http.request("GET", "/", headers={"Authorization": f"Bearer {value}"})

    assert asked == []
    assert refusal.value.message == (
        "The value for the header authorization holds characters that HTTP cannot carry: "
        "look for a line break or a special character in the credentials"
    )


@pytest.mark.parametrize("part", ["path", "query", "params", "json", "form"])
async def test_what_is_no_unicode_text_is_not_sent(part: str) -> None:
    text = "half a pair \ud800"
    handler, asked = answering(httpx.Response(200))

    async with pretend(handler) as http:
        with pytest.raises(ProviderAddressRefused) as refusal:
            await http.request(
                "PUT",
                {"path": f"/{text}", "query": f"/?{text}"}.get(part, "/"),
                params={"a": text} if part == "params" else None,
                json={"a": text} if part == "json" else None,
                form={"a": text} if part == "form" else None,
            )

    assert asked == []
    assert refusal.value.code == "BAD_INPUT"


async def test_a_provider_whose_url_is_not_allowed_is_not_opened() -> None:
    with pytest.raises(ProviderAddressRefused) as refusal:
        async with ProviderHttp.open("http://10.0.0.1", provider_id="1", policy=AddressPolicy()):
            pass

    assert refusal.value.provider_id == "1"


async def test_nothing_is_sent_after_the_end() -> None:
    handler, asked = answering(httpx.Response(200))
    async with pretend(handler) as http:
        pass

    with pytest.raises(ProviderUnavailable, match=r"^kolibri.example:8443 is no longer in use$"):
        await http.request("GET", "/")

    assert asked == []
    assert http.calls == 0


async def test_an_ipv6_host_is_told_in_brackets() -> None:
    handler, _ = answering(httpx.Response(500))

    async with ProviderHttp.open(
        "http://[2606:4700::1111]",
        provider_id="1",
        policy=AddressPolicy(),
        transport=httpx.MockTransport(handler),
    ) as http:
        with pytest.raises(ProviderUnavailable, match=r"^\[2606:4700::1111\]:80 answered"):
            await http.request("POST", "/")


# What statuses mean


@pytest.mark.parametrize("status", [200, 201, 204, 304, 400, 401, 403, 404, 409, 418])
async def test_a_status_under_500_is_an_answer(status: int) -> None:
    handler, asked = answering(httpx.Response(status))

    async with pretend(handler) as http:
        response = await http.request("GET", "/")

    assert response.status == status
    assert len(asked) == 1


async def test_429_says_how_long_to_wait() -> None:
    handler, asked = answering(httpx.Response(429, headers={"Retry-After": "120"}))

    async with pretend(handler) as http:
        with pytest.raises(ProviderRateLimited) as error:
            await http.request("GET", "/")

    assert error.value.retry_after_seconds == 120
    assert error.value.message == f"{SOURCE} asks for fewer calls (status 429)"
    assert len(asked) == 1  # two minutes is more than a call may wait


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        ("999999999", 86400),
        (formatdate(0, usegmt=True), 0),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("٣", None),
        (None, None),
    ],
)
async def test_retry_after_is_read_in_all_its_forms(value: str | None, seconds: int | None) -> None:
    headers = [] if value is None else [(b"Retry-After", value.encode())]
    handler, _ = answering(httpx.Response(429, headers=headers))

    async with pretend(handler) as http:
        with pytest.raises(ProviderRateLimited) as error:
            await http.request("POST", "/")

    assert error.value.retry_after_seconds == seconds


async def test_retry_after_may_be_a_date() -> None:
    later = formatdate(time.time() + 100, usegmt=True)
    handler, _ = answering(httpx.Response(503, headers={"Retry-After": later}))

    async with pretend(handler) as http:
        with pytest.raises(ProviderUnavailable) as error:
            await http.request("POST", "/")

    assert error.value.retry_after_seconds in range(98, 102)


async def test_an_expected_status_is_an_answer_whatever_it_is() -> None:
    handler, _ = answering(httpx.Response(503, text="warming up"))

    async with pretend(handler) as http:
        response = await http.request("GET", "/", expected={503})

    assert (response.status, response.text()) == (503, "warming up")


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        (f"https://login.example/sso?token={CANARY}", "https://login.example"),
        (f"//login.example/{CANARY}", "https://login.example"),
        (f"/login?{CANARY}", "https://kolibri.example:8443"),
        (f"http://{CANARY}@login.example/", "an address that is not readable"),
        (f"javascript:{CANARY}", "an address that is not readable"),
    ],
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_and_only_its_host_is_told(
    status: int, location: str, shown: str
) -> None:
    handler, asked = answering(httpx.Response(status, headers={"Location": location}))

    async with pretend(handler) as http:
        with pytest.raises(ProviderBadResponse) as error:
            await http.request("GET", "/", cookies={"sessionid": "secret"})

    assert len(asked) == 1
    assert error.value.message == (
        f"{SOURCE} answered with a redirect to {shown} (status {status})"
    )


# Trying again


HASTY = HttpLimits(backoff_seconds=0.001)


@pytest.mark.parametrize(
    ("method", "idempotent", "sent"),
    [
        ("GET", False, 3),
        ("HEAD", False, 3),
        ("PUT", True, 3),
        ("PUT", False, 1),
        ("POST", True, 3),
        ("POST", False, 1),
        ("PATCH", False, 1),
        ("DELETE", False, 1),
    ],
)
async def test_only_what_may_be_repeated_is_tried_again(
    method: str, *, idempotent: bool, sent: int
) -> None:
    handler, asked = answering(httpx.Response(503))

    async with pretend(handler, limits=HASTY) as http:
        with pytest.raises(ProviderUnavailable):
            await http.request(method, "/", idempotent=idempotent)

    assert len(asked) == http.calls == sent


@pytest.mark.parametrize(
    ("failure", "sent"),
    [
        (httpx.Response(500), 2),
        (httpx.Response(429), 2),
        (httpx.Response(501), 1),
        (httpx.ConnectError("refused"), 2),
        (httpx.ReadError("reset"), 2),
        (httpx.ReadTimeout("late"), 1),
        (httpx.ConnectTimeout("late"), 1),
    ],
)
async def test_a_failure_that_may_pass_is_tried_again(
    failure: httpx.Response | Exception, sent: int
) -> None:
    handler, asked = answering(failure, httpx.Response(200))

    async with pretend(handler, limits=HASTY) as http:
        try:
            response = await http.request("GET", "/")
        except ProviderError:
            response = None

    assert len(asked) == sent
    assert (response is not None) == (sent == 2)


async def test_a_short_wait_the_provider_asks_for_is_kept() -> None:
    handler, asked = answering(
        httpx.Response(429, headers={"Retry-After": "1"}), httpx.Response(200)
    )
    started_at = time.monotonic()

    async with pretend(handler) as http:
        response = await http.request("GET", "/")

    assert response.status == 200
    assert len(asked) == 2
    assert time.monotonic() - started_at >= 1


async def test_no_retry_is_begun_that_the_deadline_would_cut() -> None:
    handler, asked = answering(httpx.Response(429, headers={"Retry-After": "1"}))
    started_at = time.monotonic()

    async with pretend(handler) as http:
        with pytest.raises(ProviderRateLimited):
            await http.request("GET", "/", total_seconds=0.9)

    assert len(asked) == 1
    assert time.monotonic() - started_at < 0.5


async def test_no_retry_is_begun_that_nobody_has_the_patience_for() -> None:
    handler, asked = answering(httpx.Response(429, headers={"Retry-After": "2"}))

    async with pretend(handler) as http:
        with patience(1), pytest.raises(ProviderRateLimited) as error:
            await http.request("GET", "/")

    assert len(asked) == 1
    assert error.value.retry_after_seconds == 2


async def test_an_answer_may_come_later_than_patience_lasts() -> None:
    async def answer_late(_request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.05)
        return httpx.Response(200)

    async with pretend(httpx.MockTransport(answer_late)) as http:
        with patience(0.01):
            response = await http.request("GET", "/")

    assert response.status == 200


async def test_retries_never_add_more_than_a_tenth_and_a_floor() -> None:
    handler, asked = answering(httpx.Response(503))
    never_opening = ResilienceTerms(failures_in_a_row=10_000, min_calls=10_000)

    async with pretend(handler, limits=replace(HASTY, resilience=never_opening)) as http:
        for _ in range(200):
            with pytest.raises(ProviderUnavailable):
                await http.request("GET", "/")

    assert 200 < len(asked) <= 200 + 3 + 20 + 1


# Deadlines


class Silent(httpx.AsyncBaseTransport):
    """A provider that takes every request and answers none."""

    def __init__(self) -> None:
        self.open = 0
        self.most = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await asyncio.Event().wait()
        finally:
            self.open -= 1
        raise AssertionError(request)


async def test_a_call_ends_with_its_own_limit() -> None:
    async with pretend(Silent()) as http:
        with pytest.raises(ProviderTimeout) as error:
            await http.request("GET", f"/?{CANARY}", total_seconds=0.05)

    assert error.value.message == f"{SOURCE} did not answer within 0.05 seconds"
    assert error.value.code == "PROVIDER_TIMEOUT"


async def test_of_nested_deadlines_the_nearest_holds() -> None:
    started_at = time.monotonic()

    async with pretend(Silent()) as http:
        with deadline(0.05), deadline(20), pytest.raises(ProviderTimeout):
            await http.request("GET", "/")

    assert time.monotonic() - started_at < 2


async def test_a_lifted_deadline_no_longer_holds_inside_and_holds_again_after() -> None:
    handler, asked = answering(httpx.Response(200))

    async with pretend(handler) as http:
        with deadline(0):
            with deadline(None):
                await http.request("GET", "/")
            with pytest.raises(ProviderTimeout) as error:
                await http.request("GET", "/")

    assert len(asked) == 1
    assert error.value.message == f"No time was left to ask {SOURCE}"


async def test_waiting_for_a_turn_counts_against_the_deadline() -> None:
    silent = Silent()

    async with pretend(silent, limits=HttpLimits(concurrency=2, total_seconds=0.1)) as http:
        outcomes = await asyncio.gather(
            *(http.request("GET", "/") for _ in range(6)), return_exceptions=True
        )

    assert [type(outcome) for outcome in outcomes] == [ProviderTimeout] * 6
    assert silent.most == 2
    assert silent.open == 0


async def test_a_cancelled_call_is_cancelled_and_frees_its_turn() -> None:
    silent = Silent()

    async with pretend(silent, limits=HttpLimits(concurrency=1)) as http:
        call = asyncio.create_task(http.request("GET", "/"))
        await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    assert silent.open == 0
    assert http.health().calls_now == 0


# Files on other hosts


async def test_a_file_is_asked_for_as_a_stranger_wherever_redirects_lead() -> None:
    handler, asked = answering(
        httpx.Response(302, headers={"Location": "https://cdn.example/a?sig=1"}),
        httpx.Response(301, headers={"Location": "/b#top"}),
        httpx.Response(200, content=b"image"),
    )

    async with pretend(handler) as http:
        found = await http.download("http://images.example/x?verifier=2", max_body_bytes=10)

    assert found.body == b"image"
    assert [str(request.url) for request in asked] == [
        "http://images.example/x?verifier=2",
        "https://cdn.example/a?sig=1",
        "https://cdn.example/b",
    ]
    assert not [request for request in asked if {"authorization", "cookie"} & set(request.headers)]


@pytest.mark.parametrize(
    ("location", "calls"),
    [("https://loop.example/x", 4), ("http://169.254.169.254/x", 1), ("javascript:x", 1)],
)
async def test_a_file_that_leads_nowhere_good_is_refused(location: str, calls: int) -> None:
    handler, asked = answering(httpx.Response(302, headers={"Location": location}))

    async with pretend(handler) as http:
        with pytest.raises((ProviderBadResponse, ProviderAddressRefused)) as refused:
            await http.download(f"https://images.example/{CANARY}", max_body_bytes=10)

    assert len(asked) == calls
    assert CANARY not in refused.value.message


@pytest.mark.parametrize(
    "reply",
    [
        httpx.Response(503),
        httpx.Response(429, headers={"Retry-After": "60"}),
        httpx.ConnectError("no such host"),
        httpx.ReadTimeout("late"),
    ],
)
async def test_a_file_whose_host_fails_is_no_outage_of_the_provider(
    reply: httpx.Response | Exception,
) -> None:
    handler, _ = answering(reply)

    async with pretend(handler, limits=HttpLimits(backoff_seconds=0)) as http:
        with pytest.raises(FileUnavailable) as failed:
            await http.download("https://images.example/x?verifier=2", max_body_bytes=10)

    assert not isinstance(failed.value, ProviderUnavailable)
    assert failed.value.message == "A file at https://images.example cannot be had now"


@pytest.mark.parametrize("reply", [httpx.Response(404), httpx.Response(200, content=b"x" * 11)])
async def test_a_file_that_is_not_there_or_too_large_is_told(reply: httpx.Response) -> None:
    handler, _ = answering(reply)

    async with pretend(handler) as http:
        with pytest.raises(ProviderBadResponse):
            await http.download("https://images.example/x", max_body_bytes=10)


# Bodies


async def test_gzip_of_several_members_is_read_whole() -> None:
    content = gzip.compress(b"one ") + gzip.compress(b"") + gzip.compress(b"two")

    async with pretend(_stream_of(_pieces(content, 3), encoding="gzip")) as http:
        response = await http.request("GET", "/")

    assert response.body == b"one two"


@given(st.binary(max_size=3000), st.integers(1, 400), st.integers(0, 4000))
def test_any_body_in_any_pieces_is_read_whole_or_refused_for_its_size(
    body: bytes, piece_size: int, max_bytes: int
) -> None:
    wire = gzip.compress(body)

    async def ask() -> bytes:
        async with pretend(_stream_of(_pieces(wire, piece_size), encoding="GZip")) as http:
            return (await http.request("GET", "/", max_body_bytes=max_bytes)).body

    if max_bytes < max(len(body), len(wire)):
        with pytest.raises(ProviderBadResponse, match="more than"):
            asyncio.run(ask())
    else:
        assert asyncio.run(ask()) == body


@pytest.mark.parametrize(
    ("wire", "encoding", "problem"),
    [
        (b"not gzip", "gzip", "answered with broken gzip"),
        (gzip.compress(b"x" * 1000, mtime=0)[:-9], "gzip", "cut its answer short"),
        (gzip.compress(b"x", mtime=0) + b"more", "gzip", "answered with broken gzip"),
        (b"", "gzip", None),
        (b"x", "identity", None),
        (b"x", "br", "answered in an encoding it was not asked for"),
        (b"x", "gzip, gzip", "answered in an encoding it was not asked for"),
    ],
)
async def test_a_body_is_encoded_as_asked_or_refused(
    wire: bytes, encoding: str, problem: str | None
) -> None:
    async with pretend(_stream_of([wire], encoding=encoding)) as http:
        try:
            message = None
            await http.request("GET", "/")
        except ProviderBadResponse as error:
            message = error.message

    assert message == (problem and f"{SOURCE} {problem}")


async def test_the_size_of_a_body_is_limited_as_it_comes() -> None:
    endless = _Endless()

    async with pretend(lambda _: httpx.Response(200, stream=endless)) as http:
        with pytest.raises(ProviderBadResponse) as error:
            await http.request("GET", "/", max_body_bytes=10_000)

    assert error.value.message == f"{SOURCE} answered with more than 10000 bytes"
    assert endless.given == 11


async def test_a_transport_that_blocks_is_a_mistake_of_ours() -> None:
    class Blocking(httpx.SyncByteStream):
        pass

    async with pretend(lambda _: httpx.Response(200, stream=Blocking())) as http:
        with pytest.raises(RuntimeError, match="sync stream"):
            await http.request("GET", "/")


async def test_the_body_of_a_head_is_not_waited_for() -> None:
    handler, _ = answering(httpx.Response(200, headers={"Content-Length": "99999999999"}))

    async with pretend(handler) as http:
        response = await http.request("HEAD", "/")

    assert response.headers["content-length"] == "99999999999"
    assert response.body == b""


# JSON


async def test_json_is_decoded_into_the_asked_type() -> None:
    handler, _ = answering(httpx.Response(200, json=[{"id": "a", "year": 3, "more": 1}]))

    async with pretend(handler) as http:
        response = await http.request("GET", "/")

    assert response.decode(list[Learner]) == [Learner(id="a", year=3)]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (
            b'[{"id":"a","year":"x"}]',
            "answered JSON of another form: Expected `int`, got `str` at $[0].year",
        ),
        (
            b'[{"year":1}]',
            "answered JSON of another form: Object missing required field `id` at $[0]",
        ),
        (b"{}", "answered JSON of another form: Expected `array`, got `object` at $"),
        (b"", "answered nothing, not JSON"),
        (b"  <!doctype html><title>Log in</title>", "answered HTML, not JSON"),
        (b"[{", "answered something that is not JSON"),
        (b'[{"id":"\xff","year":1}]', "answered something that is not JSON"),
    ],
)
def test_json_of_another_form_is_described_by_its_path(body: bytes, problem: str) -> None:
    response = Response(status=200, body=body, provider_id="1", source=SOURCE)

    with pytest.raises(ProviderBadResponse) as error:
        response.decode(list[Learner])

    assert error.value.message == f"{SOURCE} {problem} (status 200)"
    assert error.value.provider_id == "1"


def test_html_is_told_by_its_media_type_too() -> None:
    response = Response(status=502, headers={"content-type": "text/html; charset=x"}, body=b"Oops")

    with pytest.raises(
        ProviderBadResponse, match=r"^The provider answered HTML, not JSON \(status"
    ):
        response.decode(dict)


def test_a_value_that_does_not_fit_is_not_quoted() -> None:
    class Dated(msgspec.Struct, forbid_unknown_fields=True):
        kind: str

    response = Response(status=200, body=json.dumps({"kind": "a", CANARY: 1}).encode())

    with pytest.raises(ProviderBadResponse) as error:
        response.decode(Dated)

    assert error.value.message == (
        "The provider answered JSON of another form: a value that is not allowed at $ (status 200)"
    )


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_json_is_decoded_or_refused(value: object) -> None:
    response = Response(status=200, body=json.dumps(value).encode())

    try:
        decoded = response.decode(list[Learner])
    except ProviderBadResponse:
        return

    assert all(isinstance(learner, Learner) for learner in decoded)


def test_text_survives_bytes_that_are_none() -> None:
    assert Response(status=200, body=b"a\xffb").text() == "a\ufffdb"


# Cookies


@pytest.mark.parametrize(
    ("headers", "cookies", "deleted"),
    [
        (["sessionid=abc; HttpOnly; Path=/; SameSite=Lax"], {"sessionid": "abc"}, set()),
        (["a=1; Partitioned; Priority=High", "b=2; Secure"], {"a": "1", "b": "2"}, set()),
        (["a=1; Max-Age=0"], {}, {"a"}),
        (["a=1; max-age=-5"], {}, {"a"}),
        (["a=1; Max-Age=00"], {}, {"a"}),
        (["a="], {}, {"a"}),
        (['a=""; expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0'], {}, {"a"}),
        (["a=1; Expires=Thu, 01 Jan 1970 00:00:00 GMT"], {}, {"a"}),
        (["a=1; Expires=Thu, 01-Jan-1970 00:00:00 GMT"], {}, {"a"}),
        (["a=1; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=60"], {"a": "1"}, set()),
        (["a=1; Expires=whenever"], {"a": "1"}, set()),
        (["a=1; Expires=Fri, 31 Dec 9999 23:59:59 GMT"], {"a": "1"}, set()),
        (["a=1", "a=; Max-Age=0"], {}, {"a"}),
        (["a=; Max-Age=0", "a=2"], {"a": "2"}, set()),
        (['a="quoted value"'], {"a": '"quoted value"'}, set()),
        (["a=b=c=="], {"a": "b=c=="}, set()),
        (["no equals sign", "=nameless", "sp ace=1", "a=\x01", "é=1", ""], {}, set()),
    ],
)
def test_cookies_are_read_as_browsers_read_them(
    headers: list[str], cookies: dict[str, str], deleted: set[str]
) -> None:
    assert _parse_cookies(headers) == (cookies, frozenset(deleted))


@given(st.lists(st.text(max_size=40), max_size=4))
def test_any_cookies_are_read_and_can_be_sent_back(headers: list[str]) -> None:
    cookies, deleted = _parse_cookies(headers)

    assert not deleted & cookies.keys()
    assert all(f"{name}={value}".isascii() for name, value in cookies.items())
    assert all(f"{name}={value}".isprintable() for name, value in cookies.items())


async def test_cookies_and_headers_of_an_answer_are_told_apart() -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        return httpx.Response(
            200,
            headers=[
                ("Set-Cookie", "a=1"),
                ("Vary", "Cookie"),
                ("Set-Cookie", "b="),
                ("Vary", "X"),
            ],
        )

    async with pretend(handler) as http:
        response = await http.request("GET", "/")
        second = await http.request("GET", "/")

    assert response.cookies == {"a": "1"}
    assert response.deleted_cookies == {"b"}
    assert response.headers == {"vary": "Cookie, X"}
    assert second.status == 200


async def test_no_cookie_is_remembered() -> None:
    handler, asked = answering(httpx.Response(200, headers={"Set-Cookie": "a=1"}))

    async with pretend(handler) as http:
        await http.request("GET", "/")
        await http.request("GET", "/")

    assert ["cookie" in request.headers for request in asked] == [False, False]


# What may be told


async def test_neither_answers_nor_errors_show_secrets() -> None:
    secret_answer = httpx.Response(
        500, headers={"Set-Cookie": f"s={CANARY}", "X-Key": CANARY}, text=CANARY
    )
    error_handler, _ = answering(httpx.ReadError(f"lost {CANARY}"))
    handler, _ = answering(secret_answer)

    async with pretend(error_handler) as http:
        with pytest.raises(ProviderUnavailable) as lost:
            await http.request("POST", f"/{CANARY}?{CANARY}", headers={"x-key": CANARY})
    async with pretend(handler) as http:
        with pytest.raises(ProviderUnavailable) as failed:
            await http.request("POST", "/")
        response = await http.request("POST", "/", expected={500})

    assert lost.value.message == f"{SOURCE} cut the connection"
    assert isinstance(lost.value.__cause__, TransportProblem)
    assert str(lost.value.__cause__) == "httpx.ReadError"
    assert failed.value.message == f"{SOURCE} answered with an error of its own (status 500)"
    assert CANARY in response.text()
    assert CANARY not in repr(response)


async def test_every_request_is_observed_once() -> None:
    observed: list[UpstreamCall] = []
    handler, _ = answering(
        httpx.Response(503), httpx.Response(200, text="12345"), httpx.Response(404, text="no")
    )

    async with ProviderHttp.open(
        BASE_URL,
        provider_id="1",
        policy=AddressPolicy(),
        observer=observed.append,
        transport=httpx.MockTransport(handler),
    ) as http:
        await http.request("GET", "/api/user/0123456789abcdef0123456789abcdef/?key=secret")
        await http.request("PUT", "/api/course/17", template="/api/course/{number}")

    assert http.calls == len(observed) == 3
    assert [(call.method, call.path, call.status, call.error) for call in observed] == [
        ("GET", "/prefix/api/user/{id}/", 503, "PROVIDER_UNAVAILABLE"),
        ("GET", "/prefix/api/user/{id}/", 200, None),
        ("PUT", "/api/course/{number}", 404, None),
    ]
    assert [call.body_bytes for call in observed] == [0, 5, 2]
    assert all(call.provider_id == "1" and 0 <= call.seconds < 5 for call in observed)


async def test_a_cancelled_request_is_observed_as_cancelled() -> None:
    observed: list[UpstreamCall] = []

    async with ProviderHttp.open(
        BASE_URL,
        provider_id=None,
        policy=AddressPolicy(),
        observer=observed.append,
        transport=Silent(),
    ) as http:
        with pytest.raises(ProviderTimeout):
            await http.request("GET", "/", total_seconds=0.02)

    assert [(call.status, call.error) for call in observed] == [(None, "CANCELLED")]


@given(
    st.dictionaries(
        st.text(min_size=1),
        st.one_of(st.text(), st.text("ab9-,."), st.integers(), st.booleans()),
    )
)
def test_any_parameters_arrive_as_they_were_given(params: dict[str, ParamValue]) -> None:
    handler, asked = answering(httpx.Response(200))

    async def ask() -> None:
        async with pretend(handler) as http:
            await http.request("GET", "/", params=params)

    asyncio.run(ask())

    expected = {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in params.items()
    }
    assert dict(asked[0].url.params) == expected
    assert asked[0].url.query.decode() == urlencode(expected)


class _Pieces(httpx.AsyncByteStream):
    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


class _Endless(httpx.AsyncByteStream):
    """A body without end, in pieces of 1 000 bytes."""

    def __init__(self) -> None:
        self.given = 0

    def __aiter__(self) -> "_Endless":
        return self

    async def __anext__(self) -> bytes:
        self.given += 1
        return bytes(1000)


def _pieces(content: bytes, size: int) -> list[bytes]:
    return [content[start : start + size] for start in range(0, len(content), size)]


def _stream_of(pieces: Iterable[bytes], *, encoding: str) -> Handler:
    headers = {"Content-Encoding": encoding} if encoding else {}
    return lambda _: httpx.Response(200, headers=headers, stream=_Pieces(pieces))
