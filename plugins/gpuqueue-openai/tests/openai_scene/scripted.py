"""Serves answers with OpenAI's API as a test scripts them, to fail in every way; computes nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal


@dataclass(frozen=True)
class Reply:
    """One answer: its status and headers, its pieces, and what comes after them. A piece that is a function is called for it.

    After the last piece it is "whole", or the connection is "cut", or it is "mute" until the client leaves.
    """

    pieces: tuple[bytes | Callable[[], bytes], ...] = ()
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    then: Literal["whole", "cut", "mute"] = "whole"
    begins: bool = True  # false: not even the status is sent


def event(**values: Any) -> bytes:
    """Write an event of a stream."""
    return f"data: {json.dumps(values)}\n\n".encode()


def said(text: str, **choice: Any) -> bytes:
    """Write a piece of a chat's answer."""
    return event(model="scripted", choices=[{"index": 0, "delta": {"content": text}, **choice}])


DONE = b"data: [DONE]\n\n"


def streamed(*pieces: bytes | Callable[[], bytes], **how: Any) -> Reply:
    """Answer with these pieces of a stream, and nothing after them."""
    return Reply(pieces, headers={"Content-Type": "text/event-stream"}, **how)


def plain(value: Any, status: int = 200, **headers: str) -> Reply:
    """Answer with one JSON value."""
    shown = {name.replace("_", "-"): text for name, text in headers.items()}
    return Reply((json.dumps(value).encode(),), status, {"Content-Type": "application/json", **shown})


def refused(status: int, message: str, **headers: str) -> Reply:
    """Refuse as OpenAI does."""
    return plain({"error": {"message": message, "type": "some_error", "code": None}}, status, **headers)


@dataclass(frozen=True)
class Request:
    path: str
    headers: Mapping[str, str]
    body: Any


class Scripted:
    """Answers every POST with the first of the replies, and goes on to the next; the last one stays."""

    def __init__(self, *replies: Reply) -> None:
        self.requests: list[Request] = []
        self.left = threading.Event()  # a client went away from a mute answer
        self._replies = list(replies)
        self._lock = threading.Lock()
        scene = self

        class Handler(_Handler):
            scripted = scene

        self._http = _HTTP(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def next(self, request: Request) -> Reply:
        with self._lock:
            self.requests.append(request)
            return self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]

    def go_away(self) -> None:
        """Stop listening."""
        self._http.shutdown()  # a poll that goes on would keep the closed socket open
        self._http.server_close()

    def __enter__(self) -> Scripted:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _HTTP(ThreadingHTTPServer):
    request_queue_size = 100
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    scripted: Scripted
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def do_POST(self) -> None:
        self.close_connection = True
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        reply = self.scripted.next(Request(self.path, dict(self.headers), body))
        if reply.begins:
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
        with suppress(OSError):  # the client has left
            ready = b""  # sent at once, as a fast server's pieces come
            for given in reply.pieces:
                if callable(given):
                    self.wfile.write(ready)
                    ready = b""
                piece = given() if callable(given) else given
                ready += b"%x\r\n%s\r\n" % (len(piece), piece)
            self.wfile.write(ready)
            if reply.then == "mute":
                with suppress(ConnectionResetError):
                    self.connection.recv(1)
                self.scripted.left.set()
            elif reply.then == "whole":
                self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""
