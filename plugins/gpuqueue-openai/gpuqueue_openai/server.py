"""Sends requests to the server, applies the time limits to each part, and reads the pieces of a streamed answer.

Every request has its own connection. A cancelled request closes its connection, which makes the server stop.
"""

from __future__ import annotations

import asyncio
import functools
import json
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Protocol

import httpx

from gpuqueue.plugins import ExecutionError, RunnerCrashed
from gpuqueue_openai.failures import Failures, is_error
from gpuqueue_openai.settings import Settings

PROBE_S = 5.0


class _Reader(Protocol):
    """Takes an answer's bytes; `begun` after the first content, `done` once the answer is known to be complete."""

    begun: bool
    done: bool

    def feed(self, piece: bytes) -> bool:
        """Take some bytes; returns whether they show that the answer is continuing."""


class Server:
    """One server, used on the caller's event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.failures = Failures(settings)

    async def stream(self, path: str, body: Mapping[str, Any], take: Callable[[Mapping[str, Any]], bool]) -> None:
        """Send a request and pass each piece of its answer to `take`, which returns whether the content has begun.

        Limits, in seconds: connect_s; first_token_s until the content begins; gap_s between two pieces; total_s.
        Raises: ExecutionError, also if the stream ends without `[DONE]` or contains an error.
        """
        events = _Events(take, self.failures, str(body.get("model", "")))
        await self._post(path, body, events)
        if not events.done:
            events.feed(b"\n")  # ends a last line that has no line feed
        if not events.done:
            raise self.failures.crashed("ended its answer early: the stream has no [DONE]")

    async def ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request and return its answer, one JSON object; limits and errors as in `stream`."""
        whole = _Whole()
        await self._post(path, body, whole)
        try:
            found = json.loads(whole.data)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self.failures.crashed(f"did not answer with a JSON object: {_start(whole.data)}; {_CHECK}")
        if is_error(found):
            raise self.failures.refused_while_answering(found, str(body.get("model", "")))
        return found

    async def _post(self, path: str, body: Mapping[str, Any], reader: _Reader) -> None:
        settings, now = self.settings, asyncio.get_running_loop().time
        ends_s = now() + settings.total_s
        is_answering = is_over = False
        failure: BaseException | None = None
        try:
            async with (
                asyncio.timeout(min(settings.first_token_s, settings.total_s)) as limit,
                self._open(settings.connect_s) as http,
                http.stream("POST", settings.url + path, json=body) as response,
            ):
                is_answering = True
                if response.status_code != 200:
                    text = (await response.aread()).decode(errors="replace")
                    raise self.failures.refused(response.status_code, text, str(body.get("model", "")), response.headers)
                async for piece in response.aiter_bytes():
                    if is_over:
                        continue
                    try:
                        goes_on = reader.feed(piece)
                    except BaseException as error:  # also an interruption
                        failure = error
                    if failure is not None or reader.done:
                        # Leaving this loop would leave httpx's nested generators to the garbage collector, and a worker that
                        # stops has no event loop left to close them on. Cancelling the read ends them all.
                        is_over = True
                        limit.reschedule(now())
                    elif goes_on and reader.begun:
                        limit.reschedule(min(now() + settings.gap_s, ends_s))
        except TimeoutError as error:
            if not is_over:
                raise self._too_slow(reader, is_late=now() >= ends_s) from error
        except httpx.HTTPError as error:
            if not is_over:
                raise (await self._broken(error) if is_answering else self.failures.unreached(error)) from error
        if failure is not None:
            raise failure

    def _too_slow(self, reader: _Reader, *, is_late: bool) -> ExecutionError:
        settings = self.settings
        if is_late:
            return self.failures.crashed(
                f"had not finished its answer after {settings.total_s:g} s; limit the answer with max_tokens, "
                "or raise total in [openai]"
            )
        if reader.begun:
            return self.failures.crashed(
                f"stopped in the middle of its answer: it sent nothing for {settings.gap_s:g} s (gap in [openai])"
            )
        # The job has made no progress. A hung server and one with a long queue look the same, and neither is the job's fault.
        return self.failures.away(
            f"did not start its answer within {settings.first_token_s:g} s; raise first_token in [openai] if it is that slow"
        )

    async def _broken(self, error: httpx.HTTPError) -> ExecutionError:
        """Classify a connection lost in the middle of an answer: if the server is down now, the job is not at fault."""
        try:
            async with asyncio.timeout(PROBE_S), self._open(self.settings.connect_s) as http:
                answer = await http.get(f"{self.settings.url}/models")
        except (httpx.HTTPError, TimeoutError):
            return self.failures.away(f"dropped the connection in the middle of its answer ({error}), and no longer answers")
        if answer.status_code in (502, 503, 504):
            return self.failures.refused(answer.status_code, answer.text, "", answer.headers)
        return self.failures.crashed(f"dropped the connection in the middle of its answer ({error})")

    def _open(self, connect_s: float) -> httpx.AsyncClient:
        key = self.settings.api_key
        return httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            # `_post` applies the other limits, because it knows how much of the answer has arrived.
            timeout=httpx.Timeout(None, connect=connect_s),
            verify=_trust(httpx.URL(self.settings.url).scheme),
            # Proxies set in the environment are for the internet, and would break a request to 127.0.0.1.
            trust_env=False,
        )


class _Whole:
    """Collects an answer that is one object."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.begun = self.done = False

    def feed(self, piece: bytes) -> bool:
        self.data += piece
        self.begun = True
        return True


class _Events:
    """Reads the events of a stream, each one line of JSON; all other lines are comments and names."""

    def __init__(self, take: Callable[[Mapping[str, Any]], bool], failures: Failures, model: str) -> None:
        self._take = take
        self._failures = failures
        self._model = model
        self._rest = b""
        self._name = b""
        self.begun = self.done = False

    def feed(self, piece: bytes) -> bool:
        found = False
        for line in self._lines(piece):
            field, colon, value = line.partition(b":")
            value = value.strip()
            match field:
                case b"data" if value == b"[DONE]":
                    self.done = found = True
                    return found
                case b"data" | b"error":
                    event = self._parsed(value)
                    if field == b"error" or self._name == b"error" or is_error(event):
                        raise self._failures.refused_while_answering(event, self._model)
                    self.begun = self._take(event) or self.begun
                    found = True
                case b"event":
                    self._name = value
                case b"":  # a comment that keeps the connection open, or the end of an event
                    self._name = self._name if colon else b""
                case b"id" | b"retry":
                    pass
                case _:
                    raise self._not_a_stream(line)
        return found

    def _lines(self, piece: bytes) -> Iterator[bytes]:
        # Only a line feed ends a line: str.splitlines would also split JSON at a U+2028 inside it.
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r")

    def _parsed(self, value: bytes) -> dict[str, Any]:
        with suppress(ValueError):
            found = json.loads(value)
            if isinstance(found, dict):
                return found
        raise self._failures.crashed(f"sent a piece that is not a JSON object: {_start(value)}")

    def _not_a_stream(self, line: bytes) -> ExecutionError:
        with suppress(ValueError, RunnerCrashed):
            found = self._parsed(line)
            if is_error(found):
                return self._failures.refused_while_answering(found, self._model)
        return self._failures.crashed(f"did not answer with a stream of events: {_start(line)}; {_CHECK}")


_CHECK = "check that url in [openai] is the address of an OpenAI-compatible server"


def _start(data: bytes | bytearray) -> str:
    return repr(bytes(data[:80]).decode(errors="replace"))


@functools.cache
def _trust(scheme: str) -> ssl.SSLContext:
    # Reading the certificates takes 20 ms, and plain HTTP needs none. The bare context trusts no certificate.
    return httpx.create_ssl_context() if scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
