"""Serves /metrics and /healthz over HTTP, each answered by a function that the caller passes."""

from __future__ import annotations

import errno
import json
import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder

from gpuqueue_prometheus.address import Address

REQUEST_S = 10.0  # a client that sends nothing for this long is disconnected
JSON, TEXT = "application/json; charset=utf-8", "text/plain; charset=utf-8"
logger = logging.getLogger("gpuqueue.prometheus")


class CannotListen(Exception):
    """The address could not be opened; the message says why and what to do."""


class Answer(NamedTuple):
    """A page's response."""

    status: int
    content_type: str
    body: bytes


class Pages:
    """The two pages: `collect` returns the metrics, `check` whether all is well and the report."""

    def __init__(self, collect: Callable[[], Iterable[Metric]], check: Callable[[], tuple[bool, Mapping[str, Any]]]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Collector(collect))
        self._check = check

    def answer(self, path: str, accept: str) -> Answer:
        """Answer a request; an error is answered with status 503."""
        page = {"/metrics": self._metrics, "/healthz": self._healthz}.get(path.partition("?")[0])
        if page is None:
            return Answer(404, TEXT, b"Not found; use /metrics or /healthz.\n")
        try:
            return page(accept)
        except Exception as error:
            logger.exception("could not answer %s", path)
            return Answer(503, TEXT, f"{type(error).__name__}: {error}\n".encode())

    def _metrics(self, accept: str) -> Answer:
        encode, content_type = choose_encoder(accept)
        return Answer(200, content_type, encode(self._registry))

    def _healthz(self, _accept: str) -> Answer:
        is_well, told = self._check()
        return Answer(200 if is_well else 503, JSON, f"{json.dumps(told, ensure_ascii=False, indent=2)}\n".encode())


class Server:
    """Listens from its creation until `close`."""

    def __init__(self, address: Address, pages: Pages) -> None:
        """Raises: CannotListen."""
        try:
            self._server = _Server(address, pages)
        except OSError as error:
            raise CannotListen(_why(address, error)) from None
        self.url = f"http://{Address(address.host, self._server.server_address[1])}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="gpuqueue-prometheus-http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, without waiting for requests in progress."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Collector:
    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def describe(self) -> Iterable[Metric]:
        return []  # otherwise registering would collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: Address, pages: Pages) -> None:
        self.pages = pages
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        super().__init__((address.host, address.port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own version looks up a name in the DNS, which may be slow and is not needed here.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a request from %s was interrupted", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_S
    server_version = "gpuqueue-prometheus"
    sys_version = ""

    def do_GET(self) -> None:
        answer = self.server.pages.answer(self.path, self.headers.get("Accept", ""))
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


def _why(address: Address, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            advice = "stop the program that uses the port, or set another port in [prometheus] listen"
        case errno.EACCES:
            advice = "set a port above 1023 in [prometheus] listen"
        case _:
            advice = "set an address of this machine in [prometheus] listen"
    return f"cannot listen on {address}: {error.strerror or error}; {advice}. Trying again every second"
