"""Owns talking to the server: one request, how long to wait for each of its parts, and the pieces of a streamed answer.

Knows no verb, and keeps nothing open. A cancelled request closes its connection, which makes the server stop.
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
    """Takes an answer's bytes; `begun` once something of the answer itself has come, `done` when it is known to be whole."""

    begun: bool
    done: bool

    def feed(self, piece: bytes) -> bool:
        """Take some bytes; returns whether there was something in them that shows that the answer goes on."""


class Server:
    """One server, on the event loop of whoever asks."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.failures = Failures(settings)

    async def stream(self, path: str, body: Mapping[str, Any], take: Callable[[Mapping[str, Any]], bool]) -> None:
        """Send a request and hand each piece of its answer to `take`, which returns whether the answer itself has begun.

        Limits, in seconds: connect_s; first_token_s until the answer has begun; gap_s between two pieces; total_s.
        Raises: ExecutionError, also where the stream ends without its `[DONE]`, or an error comes in it.
        """
        events = _Events(take, self.failures, str(body.get("model", "")))
        await self._post(path, body, events)
        if not events.done:
            events.feed(b"\n")  # of a last line without its own
        if not events.done:
            raise self.failures.crashed("ended its answer before it was complete: the stream has no [DONE]")

    async def ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request that has one object as its answer; limits and errors as in `stream`."""
        whole = _Whole()
        await self._post(path, body, whole)
        try:
            found = json.loads(whole.data)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self.failures.crashed(f"answered with something else than a JSON object: {_start(whole.data)}; {_CHECK}")
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
                        # Leaving this loop would leave httpx's generators, one in another, to the garbage collector, and a
                        # worker that stops has no event loop left to close them on. A read that is cancelled ends them all.
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
                f"was not done after {settings.total_s:g} s; limit the answer with max_tokens, or raise total in [openai]"
            )
        if reader.begun:
            return self.failures.crashed(f"stopped in its answer and sent nothing for {settings.gap_s:g} s (gap in [openai])")
        # Nothing of the job was done: a hung server and a long queue of its own look the same, and neither is the job's fault.
        return self.failures.away(
            f"did not begin to answer within {settings.first_token_s:g} s; raise first_token in [openai] if it is that slow"
        )

    async def _broken(self, error: httpx.HTTPError) -> ExecutionError:
        """Class a connection that was lost in the middle of an answer: when nobody answers now, the job is not at fault."""
        try:
            async with asyncio.timeout(PROBE_S), self._open(self.settings.connect_s) as http:
                answer = await http.get(f"{self.settings.url}/models")
        except (httpx.HTTPError, TimeoutError):
            return self.failures.away(f"dropped the connection in the middle of its answer ({error}), and answers no more")
        if answer.status_code in (502, 503, 504):
            return self.failures.refused(answer.status_code, answer.text, "", answer.headers)
        return self.failures.crashed(f"dropped the connection in the middle of its answer ({error})")

    def _open(self, connect_s: float) -> httpx.AsyncClient:
        key = self.settings.api_key
        return httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            # The other limits are those of `_post`, which know what of the answer has come.
            timeout=httpx.Timeout(None, connect=connect_s),
            verify=_trust(httpx.URL(self.settings.url).scheme),
            # Proxies of the environment are for the internet, and would break a request to 127.0.0.1.
            trust_env=False,
        )


class _Whole:
    """Gathers an answer that is one object."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.begun = self.done = False

    def feed(self, piece: bytes) -> bool:
        self.data += piece
        self.begun = True
        return True


class _Events:
    """Reads the events of a stream, of which each is one line of JSON; all other lines are comments and names."""

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
        # Only the line feed ends a line: text's own splitlines would also cut JSON at a U+2028 inside it.
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
        return self._failures.crashed(f"answered with something else than a stream of events: {_start(line)}; {_CHECK}")


_CHECK = "check that url in [openai] is that of a server with OpenAI's protocol"


def _start(data: bytes | bytearray) -> str:
    return repr(bytes(data[:80]).decode(errors="replace"))


@functools.cache
def _trust(scheme: str) -> ssl.SSLContext:
    # Reading the certificates takes 20 ms, and plain HTTP needs none; the bare context trusts nobody.
    return httpx.create_ssl_context() if scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
