"""Serving the application: one process by itself, or several that share the port."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Mapping
from types import FrameType
from typing import Any, Final

import structlog
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.supervisors import Multiprocess

from gateway.settings import Settings

_APPLICATION: Final = "gateway.app:create_app"  # each worker reads the environment for itself
_MAX_HEAD_BYTES: Final = 64 * 1024
_KEEP_ALIVE_SECONDS: Final = 65  # longer than load balancers keep a connection they may use again
_WORKER_SECONDS: Final = 60  # a busy machine is no reason to kill who starts, and to begin again
_PING_SECONDS: Final = 20.0  # proxies cut off what is silent for longer, some after 30

_log = structlog.get_logger(__name__)


def serve(settings: Settings) -> bool:
    """Serve until asked to stop; ``False`` when the start failed, and the log says why.

    The first SIGTERM or SIGINT makes ``/ready`` say no; ``drain_seconds`` later (at once where
    several workers share the port) no connection is taken any more, and requests in flight may
    end within ``shutdown_seconds``.
    """
    config = uvicorn.Config(
        _APPLICATION,
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        http=_BoundedProtocol,
        **socket_options(max_bytes=settings.max_body_bytes),
        lifespan="on",
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_worker_healthcheck=_WORKER_SECONDS,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)),
    )
    server = _DrainingServer(config, drain_seconds=settings.drain_seconds)
    try:
        if settings.workers > 1:
            Multiprocess(config, sockets=[config.bind_socket()]).run()
            return True
        server.run()
    except SystemExit as error:  # uvicorn ends so when the port is taken
        return not error.code
    return server.started


def socket_options(*, max_bytes: int) -> Mapping[str, Any]:
    """Return the arguments of ``uvicorn.Config`` that say how websockets are served.

    Args:
        max_bytes: The largest message; a larger one closes the socket with 1009.
    """
    return {
        "ws": _Socket,
        "ws_max_size": max_bytes,
        "ws_per_message_deflate": False,
        "ws_ping_interval": _PING_SECONDS,
        "ws_ping_timeout": _PING_SECONDS,
    }


class _BoundedProtocol(HttpToolsProtocol):
    """Breaks off a connection whose request line and headers are longer than any sane ones.

    The parser itself has no limit, and keeps what it is sent.
    """

    _head_size = 0
    _in_head = True
    _moved_on = False

    def data_received(self, data: bytes) -> None:
        """Parse more of the request, and count what comes as long as no head or body ends in it."""
        self._moved_on = False
        super().data_received(data)
        if self._moved_on or not self._in_head:
            self._head_size = 0
            return
        self._head_size += len(data)
        if self._head_size > _MAX_HEAD_BYTES and not self.transport.is_closing():
            _log.warning("request_head_too_large", limit_bytes=_MAX_HEAD_BYTES)
            self.transport.abort()

    def on_headers_complete(self) -> None:
        """Note that the head is over."""
        self._in_head = False
        self._moved_on = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that another head may follow."""
        self._in_head = True
        self._moved_on = True
        super().on_message_complete()


class _Socket(WebSocketsSansIOProtocol):
    """A websocket that waits for nobody who does not read, and that the application closes.

    It logs nothing by itself: it would write query strings and, when debugging, keys.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.logger = logging.getLogger("gateway.sockets")
        self.logger.setLevel(logging.CRITICAL + 1)
        self.conn.logger = self.logger
        self.conn.debug = False

    def shutdown(self) -> None:
        """Leave closing to the application, which sees to it once it knows."""
        if not self.handshake_complete or self.close_sent:
            super().shutdown()
        elif isinstance(self.config.loaded_app, Starlette):
            self.config.loaded_app.state.draining = True
        if not self.writable.is_set():
            self.transport.abort()

    def keepalive_timeout(self) -> None:
        """Break off a connection whose client is gone; what is still to be sent with it."""
        super().keepalive_timeout()
        self.transport.abort()

    async def send(self, message: Any) -> None:
        """Send, and break off a connection whose client does not answer its closing."""
        await super().send(message)
        if self.close_timer is not None:
            self.close_timer.cancel()
            self.close_timer = self.loop.call_later(self.close_timeout, self.transport.abort)


class _DrainingServer(uvicorn.Server):
    """Says for a while that it will stop before it does, and then ends without an error."""

    def __init__(self, config: uvicorn.Config, *, drain_seconds: float) -> None:
        super().__init__(config)
        self._drain_seconds = drain_seconds
        self._draining = False

    def handle_exit(self, sig: int, _frame: FrameType | None) -> None:
        """Begin to drain at the first signal, stop at the second, at once at a later Ctrl-C."""
        if self.should_exit:
            self.force_exit = sig == signal.SIGINT
        elif self._draining or self._drain_seconds == 0:
            self.should_exit = True
        else:
            _log.info("draining", seconds=self._drain_seconds, signal=signal.Signals(sig).name)
            asyncio.get_running_loop().call_later(self._drain_seconds, self._stop)
        self._draining = True
        if isinstance(self.config.loaded_app, Starlette):
            self.config.loaded_app.state.draining = True

    def _stop(self) -> None:
        self.should_exit = True
