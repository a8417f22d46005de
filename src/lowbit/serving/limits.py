"""What stands before the application: the key, the size of a body, clients that are slow or gone.

A request is read whole before anything is done with it. While it is worked on, a client that leaves
ends it.
"""

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from lowbit.serving.metrics import Metrics
from lowbit.serving.problem import ProblemError
from lowbit.serving.settings import Settings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
OPEN = ("/health", "/metrics")  # without a key, as those who watch a service expect


class Limits:
    """An ASGI application around another. known: paths that metrics name; others are one."""

    def __init__(self, app: Any, settings: Settings, metrics: Metrics, known: set[str]) -> None:
        self.app, self.settings, self.metrics, self.known = app, settings, metrics, known

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = Answer(send, self.settings.slow)
        endpoint = scope["path"] if scope["path"] in self.known else "other"
        started = time.monotonic()
        try:
            self._check_key(scope)
            body = await self._body(scope, receive)
            if not await self._while_connected(scope, body, receive, answer):
                self.metrics.gone.inc()
        except ProblemError as problem:
            await answer.problem(problem)
        except (ClientGoneError, TimeoutError):
            self.metrics.gone.inc()
        finally:
            self.metrics.requests.labels(endpoint, str(answer.status)).inc()
            self.metrics.seconds.labels(endpoint).observe(time.monotonic() - started)

    def _check_key(self, scope: Message) -> None:
        key = self.settings.api_key
        if key is None or scope["path"] in OPEN:
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(given, b"Bearer " + key.encode()):
            raise ProblemError(401, "the API key is missing or wrong")

    async def _body(self, scope: Message, receive: Receive) -> bytes:
        """All of it. Raises ProblemError: 413 for one that is too large, 408 for one that takes too
        long; ClientGoneError."""
        most = self.settings.body
        told = dict(scope["headers"]).get(b"content-length", b"0")
        too_large = ProblemError(413, f"a request may have {most:,} bytes")
        if told.isdigit() and int(told) > most:
            raise too_large
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.settings.slow):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    part = message.get("body", b"")
                    size += len(part)
                    if size > most:
                        raise too_large
                    parts.append(part)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise ProblemError(
                408, f"the request did not arrive within {self.settings.slow:g} seconds"
            ) from None

    async def _while_connected(
        self, scope: Message, body: bytes, receive: Receive, send: Send
    ) -> bool:
        """Run the application; False if the client left first, and it was cancelled."""
        given = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            if given:
                return given.pop()
            await asyncio.Event().wait()
            raise AssertionError

        running = asyncio.ensure_future(self.app(scope, replay, send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({running, gone}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
                return True
            return False
        finally:
            for task in (running, gone):
                task.cancel()
            await asyncio.gather(running, gone, return_exceptions=True)


class ClientGoneError(Exception):
    """The client closed the connection before its request was read."""


class Answer:
    """Sends an answer, and remembers its status. A client that does not take it is cut off."""

    def __init__(self, send: Send, slow: float) -> None:
        self.send, self.slow = send, slow
        self.status = 499  # of a client that has left

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        async with asyncio.timeout(self.slow):
            await self.send(message)

    async def problem(self, problem: ProblemError) -> None:
        content = json.dumps(problem.body()).encode()
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            # What is left of the request is not read.
            "Connection": "close",
            **problem.headers,
        }
        pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        start = {"type": "http.response.start", "status": problem.status, "headers": pairs}
        with suppress(TimeoutError):
            await self(start)
            await self({"type": "http.response.body", "body": content, "more_body": False})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def guarded(slow: float) -> type[H11Protocol]:
    """uvicorn's protocol, which closes connections whose headers take longer than `slow` seconds:
    a client that sends a byte now and then would hold one for ever."""

    class Guarded(H11Protocol):
        waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:
                self._stop()
            elif self.cycle is None or self.cycle.response_complete:
                self._wait()

        def connection_lost(self, error: Exception | None) -> None:
            self._stop()
            super().connection_lost(error)

        def _wait(self) -> None:
            if self.waiting is None:
                self.waiting = self.loop.call_later(slow, self._close)

        def _stop(self) -> None:
            if self.waiting is not None:
                self.waiting.cancel()
                self.waiting = None

        def _close(self) -> None:
            self.waiting = None
            self.transport.close()

    return Guarded
