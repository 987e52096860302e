"""HTTP to providers over real sockets: what a hostile, broken or dying server can do to us."""

import asyncio
import datetime as dt
import gzip
import socket
import ssl
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sessions.addresses import LOCAL_NETWORKS, AddressPolicy
from sessions.errors import (
    ProviderAddressRefused,
    ProviderBadResponse,
    ProviderError,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
)
from sessions.http import (
    HttpLimits,
    Lookup,
    ProviderHttp,
    Response,
    _AddressDenied,
    _Network,
    _Request,
)
from sessions.resilience import BreakerState, ResilienceTerms
from simulators.moving_time import moving_time

LOCAL = AddressPolicy(allowed_networks=LOCAL_NETWORKS)
PUBLIC_ONLY = AddressPolicy()
CANARY = "canary-51c2"
EMPTY_LIST = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request, and what is needed to answer it."""

    head: str
    writer: asyncio.StreamWriter
    reader: asyncio.StreamReader

    async def say_no_more_than(self, start: bytes) -> None:
        self.writer.write(start)
        await self.writer.drain()
        await self.reader.read()  # until the other side closes


Answer = Callable[[Asked], Awaitable[None]]


class Upstream:
    """A server on this machine, and what reached it."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.accepted = 0
        self.open = 0
        self.heads: list[str] = []

    async def start(self, *, tls: ssl.SSLContext | None = None) -> asyncio.Server:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=tls)
        self.port = int(server.sockets[0].getsockname()[1])
        return server

    async def stop(self, server: asyncio.Server) -> None:
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.open += 1
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head.decode())
                await self._answer(Asked(head=self.heads[-1], writer=writer, reader=reader))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self.open -= 1
            writer.transport.abort()


@asynccontextmanager
async def upstream(
    answer: Answer | bytes, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Upstream]:
    async def same(asked: Asked) -> None:
        asked.writer.write(answer if isinstance(answer, bytes) else b"")

    running = Upstream(same if isinstance(answer, bytes) else answer)
    server = await running.start(tls=tls)
    try:
        yield running
    finally:
        await running.stop(server)


@asynccontextmanager
async def http_to(
    server: Upstream,
    *,
    host: str = "127.0.0.1",
    policy: AddressPolicy = LOCAL,
    limits: HttpLimits | None = None,
    lookup: Lookup | None = None,
) -> AsyncIterator[ProviderHttp]:
    async with ProviderHttp.open(
        f"http://{host}:{server.port}",
        provider_id="1",
        policy=policy,
        limits=limits or HttpLimits(),
        lookup=lookup,
    ) as http:
        yield http


def names(*answers: Sequence[str]) -> tuple[Lookup, list[str]]:
    """A resolver that answers in turn, the last answer for ever, and what it was asked."""
    asked: list[str] = []

    async def lookup(host: str) -> Sequence[str]:
        asked.append(host)
        return answers[min(len(asked), len(answers)) - 1]

    return lookup, asked


# The ordinary case


async def test_requests_share_a_connection_and_carry_no_more_than_asked() -> None:
    async with upstream(EMPTY_LIST) as server, http_to(server) as http:
        for _ in range(5):
            response = await http.request("GET", "/api/user", params={"name": "a b&c=ü"})

    assert response.decode(list) == []
    assert server.accepted == 1
    assert len(server.heads) == http.calls == 5
    assert sorted(server.heads[0].split("\r\n")) == sorted(
        [
            "GET /api/user?name=a+b%26c%3D%C3%BC HTTP/1.1",
            "accept: application/json, */*;q=0.5",
            "accept-encoding: gzip",
            "user-agent: learning-gateway",
            f"Host: 127.0.0.1:{server.port}",
            "",
            "",
        ]
    )


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/api/user", "/api/user"),
        ("/api/us%C3%A9r/1?a=b%2Fc", "/api/us%C3%A9r/1?a=b%2Fc"),
        ("/api/usér/a b", "/api/us%C3%A9r/a%20b"),
        ("/a?filter[x]=1|2", "/a?filter%5Bx%5D=1%7C2"),
        ("/a?half=%zz", "/a?half=%25zz"),
    ],
)
async def test_what_needs_quoting_is_quoted_and_all_else_is_sent_as_it_is(
    path: str, sent: str
) -> None:
    async with upstream(EMPTY_LIST) as server, http_to(server) as http:
        await http.request("GET", path)

    assert server.heads[0].partition(" HTTP/1.1\r\n")[0] == f"GET {sent}"


@pytest.mark.parametrize(
    ("raw", "read"), [(b"caf\xc3\xa9", "café"), (b"caf\xe9", "café"), (b"plain", "plain")]
)
async def test_headers_that_are_not_ascii_are_read_as_what_they_likely_are(
    raw: bytes, read: str
) -> None:
    answer = EMPTY_LIST.replace(b"\r\n\r\n", b"\r\nX-School: " + raw + b"\r\n\r\n")
    async with upstream(answer) as server, http_to(server) as http:
        response = await http.request("GET", "/")

    assert response.headers["x-school"] == read


async def test_no_environment_and_no_cookie_jar_has_a_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login admin password {CANARY}")
    monkeypatch.setenv("NETRC", str(netrc))
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    setting = EMPTY_LIST.replace(b"\r\n\r\n", b"\r\nSet-Cookie: s=1\r\n\r\n")

    async with upstream(setting) as server, http_to(server) as http:
        first = await http.request("GET", "/")
        await http.request("GET", "/")

    assert first.cookies == {"s": "1"}
    assert not any("cookie:" in head.lower() or CANARY in head for head in server.heads)


async def test_a_gzip_answer_is_read() -> None:
    body = gzip.compress(b'{"a": 1}')
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)

    async with upstream(head + body) as server, http_to(server) as http:
        response = await http.request("GET", "/")

    assert response.decode(dict[str, int]) == {"a": 1}


async def test_a_redirect_is_not_followed() -> None:
    async with upstream(EMPTY_LIST) as other:
        redirect = (
            f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{other.port}/?{CANARY}\r\n"
            "Content-Length: 0\r\n\r\n"
        )
        async with upstream(redirect.encode()) as server, http_to(server) as http:
            with pytest.raises(ProviderBadResponse) as error:
                await http.request("GET", "/", headers={"authorization": "secret"})

    assert other.accepted == 0
    assert error.value.message == (
        f"127.0.0.1:{server.port} answered with a redirect to http://127.0.0.1:{other.port} "
        "(status 302)"
    )


# Too much


async def test_a_gzip_bomb_is_refused_without_being_unpacked() -> None:
    bomb = gzip.compress(bytes(200 * 1024 * 1024), compresslevel=1)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    started_at = time.process_time()

    async with upstream(head + bomb) as server, http_to(server) as http:
        with pytest.raises(ProviderBadResponse) as error:
            await http.request("GET", "/", max_body_bytes=2 * 1024 * 1024)

    assert error.value.message == f"127.0.0.1:{server.port} answered with more than 2097152 bytes"
    assert time.process_time() - started_at < 0.5  # all of it would take far longer


async def test_two_gigabytes_are_refused_before_they_come() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 2147483648\r\n\r\n"

    async def answer(asked: Asked) -> None:
        await asked.say_no_more_than(head)

    async with upstream(answer) as server, http_to(server) as http:
        with pytest.raises(ProviderBadResponse, match="more than 33554432 bytes"):
            await http.request("GET", "/")


async def test_an_answer_that_comes_at_once_and_does_not_say_how_long_it_is_is_measured() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b"64\r\n" + bytes(100) + b"\r\n0\r\n\r\n"

    async with upstream(head + body) as server, http_to(server) as http:
        fits = await http.request("GET", "/", max_body_bytes=100)
        with pytest.raises(ProviderBadResponse, match="more than 99 bytes"):
            await http.request("GET", "/", max_body_bytes=99)

    assert fits.body == bytes(100)


async def test_an_endless_answer_is_cut_at_the_limit() -> None:
    sent = 0

    async def answer(asked: Asked) -> None:
        nonlocal sent
        asked.writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            asked.writer.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
            await asked.writer.drain()
            sent += 0x10000

    async with upstream(answer) as server, http_to(server) as http:
        with pytest.raises(ProviderBadResponse, match="more than 1048576 bytes"):
            await http.request("GET", "/", max_body_bytes=1024 * 1024)
        await _until(lambda: server.open == 0)

    assert sent < 32 * 1024 * 1024  # what the sockets buffered


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-Filler: " + b"x" * 20000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(500)) + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        f"{CANARY} HTTP/1.1\r\n\r\n".encode(),
    ],
)
async def test_what_is_not_http_is_refused_and_not_quoted(answer: bytes) -> None:
    async with upstream(answer) as server, http_to(server) as http:
        with pytest.raises(ProviderBadResponse) as error:
            await http.request("GET", f"/?token={CANARY}")

    assert error.value.message == f"127.0.0.1:{server.port} did not answer in proper HTTP"
    assert CANARY not in "".join(traceback.format_exception(error.value))


# Too slow, or gone


async def test_a_server_that_never_answers_is_given_up() -> None:
    async def answer(asked: Asked) -> None:
        await asked.say_no_more_than(b"")

    limits = HttpLimits(read_seconds=0.1)
    async with upstream(answer) as server, http_to(server, limits=limits) as http:
        with pytest.raises(ProviderTimeout) as error:
            await http.request("GET", f"/?token={CANARY}")
        await _until(lambda: server.open == 0)

    assert http.calls == 1
    assert error.value.message == f"127.0.0.1:{server.port} stopped answering"
    assert CANARY not in "".join(traceback.format_exception(error.value))


async def test_a_server_that_drips_is_given_up_at_the_deadline() -> None:
    async def answer(asked: Asked) -> None:
        asked.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            asked.writer.write(b"x")
            await asked.writer.drain()
            await asyncio.sleep(0.02)

    started_at = time.monotonic()
    async with upstream(answer) as server, http_to(server) as http:
        with pytest.raises(ProviderTimeout, match=r"did not answer within 0\.2 seconds"):
            await http.request("GET", "/", total_seconds=0.2)
        await _until(lambda: server.open == 0)

    assert time.monotonic() - started_at < 2


async def test_a_host_that_accepts_no_connection_is_given_up() -> None:
    with socket.socket() as full:  # a backlog nobody empties makes the kernel drop what comes
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        try:
            for one in waiting:
                one.setblocking(False)
                one.connect_ex(full.getsockname())
            await asyncio.sleep(0.05)
            async with ProviderHttp.open(
                f"http://127.0.0.1:{full.getsockname()[1]}",
                provider_id="1",
                policy=LOCAL,
                limits=HttpLimits(connect_seconds=0.2),
            ) as http:
                with pytest.raises(
                    ProviderTimeout, match="could not be connected to in time"
                ) as error:
                    await http.request("GET", f"/?token={CANARY}")
        finally:
            for one in waiting:
                one.close()

    assert http.calls == 1
    assert CANARY not in "".join(traceback.format_exception(error.value))


async def test_a_name_that_takes_for_ever_to_resolve_is_given_up() -> None:
    async def lookup(host: str) -> Sequence[str]:
        await asyncio.Event().wait()
        raise AssertionError(host)

    limits = HttpLimits(connect_seconds=0.1, pool_seconds=0.1)
    async with (
        upstream(EMPTY_LIST) as server,
        http_to(server, host="slow.example", limits=limits, lookup=lookup) as http,
    ):
        with pytest.raises(ProviderTimeout, match=r"^slow\.example:\d+ could not be connected"):
            await http.request("GET", "/")

    assert server.accepted == 0


@pytest.mark.parametrize("found", [None, []])
async def test_a_name_that_does_not_exist_is_told_so(found: Sequence[str] | None) -> None:
    async def lookup(_: str) -> Sequence[str]:
        if found is None:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return found

    async with (
        upstream(EMPTY_LIST) as server,
        http_to(server, host="gone.example", lookup=lookup) as http,
    ):
        with pytest.raises(ProviderUnavailable) as error:
            await http.request("POST", "/")

    assert error.value.message == (
        f"gone.example:{server.port} was not found: its host name does not resolve"
    )


async def test_nobody_listening_is_told_so_and_tried_again() -> None:
    async with upstream(EMPTY_LIST) as server:
        pass

    async with http_to(server) as http:
        with pytest.raises(ProviderUnavailable) as error:
            await http.request("GET", "/")

    assert http.calls == 3
    assert error.value.message == (
        f"127.0.0.1:{server.port} could not be connected to (Connection refused)"
    )


@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE"])
async def test_a_cut_connection_is_never_answered_by_sending_again_unseen(method: str) -> None:
    async def answer(asked: Asked) -> None:
        asked.writer.transport.abort()

    async with upstream(answer) as server, http_to(server) as http:
        with pytest.raises(ProviderUnavailable) as error:
            await http.request(method, "/")

    assert error.value.message == f"127.0.0.1:{server.port} cut the connection"
    assert len(server.heads) == http.calls == (3 if method == "GET" else 1)


async def test_an_answer_cut_short_is_an_outage_and_not_an_answer() -> None:
    async def answer(asked: Asked) -> None:
        asked.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n[1,2]")
        await asked.writer.drain()
        asked.writer.close()

    async with upstream(answer) as server, http_to(server) as http:
        with pytest.raises(ProviderUnavailable, match="cut the connection"):
            await http.request("POST", "/")


async def test_a_retry_cures_a_passing_failure() -> None:
    failing = True

    async def answer(asked: Asked) -> None:
        nonlocal failing
        if failing:
            failing = False
            asked.writer.transport.abort()
        else:
            asked.writer.write(EMPTY_LIST)

    async with upstream(answer) as server, http_to(server) as http:
        response = await http.request("GET", "/")

    assert response.status == 200
    assert http.calls == 2


async def test_a_certificate_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    async with (
        upstream(EMPTY_LIST, tls=_self_signed(tmp_path)) as server,
        ProviderHttp.open(
            f"https://localhost:{server.port}", provider_id="1", policy=LOCAL
        ) as http,
    ):
        with pytest.raises(ProviderUnavailable) as error:
            await http.request("GET", "/", headers={"authorization": CANARY})

    assert server.heads == []
    assert http.calls == 1
    assert error.value.message == (
        f"localhost:{server.port} shows a certificate that is not valid (self-signed certificate)"
    )


async def test_tls_to_a_server_without_it_is_told_so() -> None:
    async with (
        upstream(b"HTTP/1.1 400 Bad Request\r\n\r\n") as server,
        ProviderHttp.open(
            f"https://127.0.0.1:{server.port}",
            provider_id="1",
            policy=LOCAL,
            limits=HttpLimits(connect_seconds=0.5),
        ) as http,
    ):
        with pytest.raises(ProviderError) as error:
            await http.request("GET", "/")

    assert isinstance(error.value, ProviderUnavailable)


# Addresses


@pytest.mark.parametrize("chosen", range(30))
async def test_no_spelling_of_this_machine_reaches_it(chosen: int) -> None:
    spelling = [
        "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1",
        "017700000001", "0x7F.0x0.0x0.0x1", "127.0.0.1.", "\uff11\uff12\uff17.0.0.1",
        "127\u30020\u30020\u30021", "localhost", "LOCALHOST", "localhost.", "a.localhost", "[::1]",
        "[::127.0.0.1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:0:127.0.0.1]",
        "[64:ff9b::127.0.0.1]", "[64:ff9b:1::127.0.0.1]", "[2002:7f00:1::]", "0", "0.0.0.0",
        "[::]", "user@127.0.0.1", "example.org@127.0.0.1", "example.org\\@127.0.0.1",
    ][chosen]  # fmt: skip

    async with upstream(EMPTY_LIST) as server:
        with pytest.raises(ProviderAddressRefused):
            async with http_to(server, host=spelling, policy=PUBLIC_ONLY) as http:
                await http.request("GET", "/", headers={"authorization": CANARY})

    assert server.accepted == 0


@pytest.mark.parametrize(
    "answers",
    [
        ["127.0.0.1"],
        ["8.8.8.8", "127.0.0.1"],
        ["127.0.0.1", "8.8.8.8"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["169.254.169.254"],
        ["10.0.0.1"],
        ["fe80::1%lo"],
        ["0.0.0.0"],
        ["not an address"],
    ],
)
async def test_a_name_is_judged_by_every_address_it_has(answers: list[str]) -> None:
    lookup, asked = names(answers)

    async with (
        upstream(EMPTY_LIST) as server,
        http_to(server, host="school.example", policy=PUBLIC_ONLY, lookup=lookup) as http,
    ):
        with pytest.raises(ProviderAddressRefused) as error:
            await http.request("GET", "/")

    assert server.accepted == 0
    assert asked == ["school.example"]  # and it was not tried again
    assert error.value.provider_id == "1"
    assert http.calls == 1


async def test_a_name_that_moves_to_a_forbidden_address_is_not_followed_there() -> None:
    lookup, asked = names(["127.0.0.1"], ["169.254.169.254"])
    async with (
        upstream(EMPTY_LIST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) as server,
        http_to(server, host="school.example", lookup=lookup) as http,
    ):
        response = await http.request("GET", "/")
        http._carrier.connector.clear_dns_cache()  # type: ignore[attr-defined] # ten seconds later
        with pytest.raises(ProviderAddressRefused, match=r"169\.254\.169\.254 is a link-local"):
            await http.request("GET", "/")

    assert response.status == 200
    assert asked == ["school.example", "school.example"]
    assert server.accepted == 1


async def test_the_address_connected_to_is_judged_even_where_nothing_was_resolved() -> None:
    async with upstream(EMPTY_LIST) as server:
        network = _Network(PUBLIC_ONLY, limits=HttpLimits(), lookup=None)
        url = f"http://127.0.0.1:{server.port}/"
        request = _Request(method="GET", url=url, headers={}, content=None)
        try:
            with pytest.raises(aiohttp.ClientConnectorError) as error:
                async with network.send(request):
                    pass
        finally:
            await network.aclose()

    assert server.accepted == 0
    assert isinstance(error.value.os_error, _AddressDenied)


async def test_a_name_on_an_allowed_network_is_reached() -> None:
    lookup, _ = names(["127.0.0.1"])

    async with (
        upstream(EMPTY_LIST) as server,
        http_to(server, host="kolibri.school.example", lookup=lookup) as http,
    ):
        response = await http.request("GET", "/")

    assert response.status == 200
    assert f"Host: kolibri.school.example:{server.port}" in server.heads[0]


async def test_the_system_resolves_names_by_default() -> None:
    async with upstream(EMPTY_LIST) as server, http_to(server, host="localhost") as http:
        response = await http.request("GET", "/")

    assert response.status == 200


# Many at once


async def test_after_a_storm_of_cancelled_requests_healthy_ones_succeed() -> None:
    closing = EMPTY_LIST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")

    async def answer(asked: Asked) -> None:
        if "storm" in asked.head:
            await asyncio.sleep(0.02)
        asked.writer.write(closing)
        await asked.writer.drain()
        asked.writer.close()

    limits = HttpLimits(max_connections=20, concurrency=100)
    async with upstream(answer) as server, http_to(server, limits=limits) as http:
        cancelled = 0
        for wave in range(20):
            storm = [asyncio.create_task(http.request("GET", "/storm")) for _ in range(100)]
            await asyncio.sleep(0.001 * (wave % 5))
            for request in storm:
                request.cancel()
            outcomes = await asyncio.gather(*storm, return_exceptions=True)
            cancelled += sum(isinstance(one, asyncio.CancelledError) for one in outcomes)
        responses = await asyncio.gather(
            *(http.request("GET", "/", total_seconds=5) for _ in range(10))
        )

    assert cancelled == 2000
    assert http.calls > 1000
    assert [response.status for response in responses] == [200] * 10
    assert (http.health().calls_now, http.health().waiting) == (0, 0)


async def test_no_more_than_the_allowed_number_run_at_once() -> None:
    busy = most = 0

    async def answer(asked: Asked) -> None:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await asyncio.sleep(0.005)
        busy -= 1
        asked.writer.write(EMPTY_LIST)

    limits = HttpLimits(concurrency=4)
    async with upstream(answer) as server, http_to(server, limits=limits) as http:
        await asyncio.gather(*(http.request("GET", "/") for _ in range(60)))

    assert most == 4
    assert server.accepted == 4
    assert http.calls == 60


async def test_closing_ends_what_is_under_way() -> None:
    async def answer(asked: Asked) -> None:
        await asked.say_no_more_than(b"")

    async with upstream(answer) as server:
        async with http_to(server) as http:
            call = asyncio.create_task(http.request("GET", "/"))
            await _until(lambda: len(server.heads) == 1)
        with pytest.raises(ProviderUnavailable):
            await asyncio.wait_for(call, 5)
        await _until(lambda: server.open == 0)

    assert http.calls == 1


# Providers that fail

TERMS = ResilienceTerms(jitter=0, cut_seconds=0.05)
ONCE = HttpLimits(max_retries=0, resilience=TERMS)
IMPATIENT = replace(ONCE, resilience=replace(TERMS, slow_seconds=0.05))


def saying(status: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def cut(asked: Asked) -> None:
    asked.writer.transport.abort()


async def hang(asked: Asked) -> None:
    await asked.say_no_more_than(b"")


async def dawdle(asked: Asked) -> None:
    await asyncio.sleep(0.35)
    asked.writer.write(EMPTY_LIST)


async def call(http: ProviderHttp, *, seconds: float = 5, max_body_bytes: int = 100) -> str:
    """Ask for JSON and return how that went."""
    try:
        answer = await http.request(
            "GET", "/", total_seconds=seconds, max_body_bytes=max_body_bytes
        )
        if answer.status < 400:
            answer.decode(list)
    except ProviderError as error:
        return error.code
    return "OK"


FAILING: list[tuple[str, Answer | bytes, str, float]] = [
    ("killed", cut, "PROVIDER_UNAVAILABLE", 5),
    ("hung", hang, "PROVIDER_TIMEOUT", 0.1),
    ("slow", dawdle, "OK", 5),
    ("an error of its own", saying("500 No"), "PROVIDER_UNAVAILABLE", 5),
    ("throttling", saying("429 Slow down"), "PROVIDER_RATE_LIMITED", 5),
    ("a redirect", saying("302 Away", "Location: /login"), "PROVIDER_BAD_RESPONSE", 5),
    (
        "a web page",
        saying("200 OK", "Content-Type: text/html", body=b"<p>"),
        "PROVIDER_BAD_RESPONSE",
        5,
    ),
    ("nothing", saying("200 OK"), "PROVIDER_BAD_RESPONSE", 5),
    ("half of its JSON", saying("200 OK", body=b'[{"a": '), "PROVIDER_BAD_RESPONSE", 5),
    (
        "broken gzip",
        saying("200 OK", "Content-Encoding: gzip", body=b"\x1f\x8bno"),
        "PROVIDER_BAD_RESPONSE",
        5,
    ),
    ("no HTTP", b"SSH-2.0-OpenSSH_9.9\r\n", "PROVIDER_BAD_RESPONSE", 5),
]


@pytest.mark.parametrize(
    ("answer", "code", "seconds"),
    [each[1:] for each in FAILING],
    ids=[each[0] for each in FAILING],
)
async def test_after_five_failures_of_whatever_kind_nothing_is_sent_but_a_probe(
    answer: Answer | bytes, code: str, seconds: float
) -> None:
    limits = IMPATIENT if answer is dawdle else ONCE

    with moving_time() as clock:
        async with upstream(answer) as server, http_to(server, limits=limits) as http:
            failed = [await call(http, seconds=seconds) for _ in range(5)]
            refused = [await call(http, seconds=seconds) for _ in range(50)]
            reached, health = len(server.heads), http.health()
            clock.advance(30)
            probe = await call(http, seconds=seconds)
            refused += [await call(http, seconds=seconds) for _ in range(50)]

    assert failed == [code] * 5
    assert (reached, health.state) == (5, BreakerState.OPEN)
    assert probe == code
    assert refused == ["PROVIDER_UNAVAILABLE"] * 100
    assert len(server.heads) == http.calls == 6


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (saying("404 Not found"), "OK"),
        (saying("401 Who are you"), "OK"),
        (saying("200 OK", body=b"[" + b" " * 200 + b"]"), "PROVIDER_BAD_RESPONSE"),  # too large
        (saying("200 OK", body=b"{}"), "PROVIDER_BAD_RESPONSE"),  # of another form
    ],
)
async def test_an_answer_is_no_failure_though_the_caller_cannot_use_it(
    answer: bytes, outcome: str
) -> None:
    async with upstream(answer) as server, http_to(server, limits=ONCE) as http:
        outcomes = [await call(http) for _ in range(30)]
        health = http.health()

    assert outcomes == [outcome] * 30
    assert len(server.heads) == 30
    assert (health.state, health.success_rate) == (BreakerState.CLOSED, 1.0)


async def test_an_address_that_is_not_allowed_is_no_failure_of_the_provider() -> None:
    lookup, _ = names(["10.0.0.1"])

    async with (
        upstream(EMPTY_LIST) as server,
        http_to(server, host="p.example", policy=PUBLIC_ONLY, lookup=lookup, limits=ONCE) as http,
    ):
        outcomes = [await call(http) for _ in range(20)]
        health = http.health()

    assert outcomes == ["BAD_INPUT"] * 20
    assert (health.state, health.consecutive_failures) == (BreakerState.CLOSED, 0)


async def test_a_provider_that_is_back_is_called_by_all_after_one_probe() -> None:
    replies = [saying("503 Down")] * 5

    async def answer(asked: Asked) -> None:
        asked.writer.write(replies.pop() if replies else EMPTY_LIST)

    with moving_time() as clock:
        async with upstream(answer) as server, http_to(server, limits=ONCE) as http:
            outcomes = [await call(http) for _ in range(10)]
            clock.advance(30)
            outcomes += await asyncio.gather(*(call(http) for _ in range(5)))
            outcomes += await asyncio.gather(*(call(http) for _ in range(5)))
            health = http.health()

    refused = ["PROVIDER_UNAVAILABLE"]
    assert outcomes == refused * 10 + ["OK"] + refused * 4 + ["OK"] * 5
    assert len(server.heads) == 5 + 1 + 5
    assert (health.state, health.consecutive_failures) == (BreakerState.CLOSED, 0)


async def test_retries_end_with_their_own_error_when_they_open_the_breaker() -> None:
    limits = HttpLimits(backoff_seconds=0)

    async with upstream(saying("503 Down")) as server, http_to(server, limits=limits) as http:
        for _ in range(2):
            with pytest.raises(ProviderUnavailable, match="answered with an error of its own"):
                await http.request("GET", "/")
        with pytest.raises(ProviderUnavailable, match=r"^The provider failed before and is tried"):
            await http.request("GET", "/")

    assert len(server.heads) == 3 + 2


async def test_a_healthy_sibling_is_never_repeated_for_a_failing_one() -> None:
    async def answer(asked: Asked) -> None:
        failing = asked.head.startswith("GET /failing")
        asked.writer.write(saying("503 Down") if failing else EMPTY_LIST)

    limits = HttpLimits(backoff_seconds=0.01)
    async with upstream(answer) as server, http_to(server, limits=limits) as http:
        failed, *healthy = await asyncio.gather(
            http.request("GET", "/failing"),
            *(http.request("GET", f"/healthy/{number}") for number in range(4)),
            return_exceptions=True,
        )

    assert isinstance(failed, ProviderUnavailable)
    assert [isinstance(answer, Response) for answer in healthy] == [True] * 4
    asked = Counter(head.split(" ")[1] for head in server.heads)
    assert asked == {"/failing": 3} | {f"/healthy/{number}": 1 for number in range(4)}


async def test_a_provider_that_asks_for_a_rest_gets_it_from_every_caller() -> None:
    async with (
        upstream(saying("429 Slow down", "Retry-After: 60")) as server,
        http_to(server) as http,
    ):
        outcomes = await asyncio.gather(
            *(http.request("GET", f"/{number}") for number in range(3)), return_exceptions=True
        )
        outcomes += [
            (await asyncio.gather(http.request("POST", "/"), return_exceptions=True))[0]
            for _ in range(20)
        ]

    assert {type(outcome) for outcome in outcomes} == {ProviderRateLimited}
    assert len(server.heads) == 3


async def test_a_platforms_own_throttle_is_an_answer_that_counts() -> None:
    async with (
        upstream(saying("403 Forbidden", body=b"Rate Limit Exceeded")) as server,
        http_to(server, limits=replace(ONCE, concurrency=8)) as http,
    ):
        answers = [
            await http.request("GET", "/", is_throttle=lambda answer: b"Rate" in answer.body)
            for _ in range(2)
        ]
        health = http.health()

    assert [answer.status for answer in answers] == [403, 403]
    assert (health.consecutive_failures, health.last_error_code) == (2, "PROVIDER_RATE_LIMITED")
    assert health.calls_limit == 2
    assert len(server.heads) == 2


async def test_one_slow_provider_cannot_gather_callers_without_end() -> None:
    limits = HttpLimits(concurrency=2, resilience=ResilienceTerms(waiting_per_call=5))

    async with upstream(hang) as server, http_to(server, limits=limits) as http:
        calls = [asyncio.create_task(call(http)) for _ in range(100)]
        await _until(lambda: sum(each.done() for each in calls) == 88)
        health = http.health()
        for each in calls:
            each.cancel()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)

    assert (health.calls_now, health.waiting) == (2, 10)
    assert outcomes.count("PROVIDER_UNAVAILABLE") == 88
    assert http.calls == 2


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110 - the server sets no event for its socket
            await asyncio.sleep(0.005)


def _self_signed(folder: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem")
    return context
