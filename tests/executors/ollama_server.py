"""A server that answers each connection word for word what a test says, for tests of the client of Ollama."""

from __future__ import annotations

import gc
import json
import socket
import threading
from collections.abc import Callable
from typing import Any

from gpuqueue.testing.waiting import DEADLINE_S

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


class Server:
    """Answers each connection with the next script, and keeps what it was asked."""

    def __init__(self, *scripts: bytes | Callable[[socket.socket], None]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.connections = -1  # the one that ends the loop is not counted
        self.hung_up = threading.Event()  # the client closed a connection that the server was holding
        self.scripts = list(scripts)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)

    def hold(self, connection: socket.socket) -> None:
        """Say nothing more until the client hangs up."""
        connection.settimeout(10)
        if connection.recv(1) == b"":
            self.hung_up.set()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            self.connections += 1
            with connection:
                asked = self._request(connection)
                if asked is None:
                    continue
                if asked["at"] == "END /":
                    return
                self.requests.append(asked)
                script = self.scripts.pop(0) if self.scripts else plain(200, {"models": []})
                if isinstance(script, bytes):
                    connection.sendall(script)
                else:
                    script(connection)

    @staticmethod
    def _request(connection: socket.socket) -> dict[str, Any] | None:
        with connection.makefile("rb") as sent:
            first = sent.readline()
            if not first:
                return None
            headers = dict(line.decode().lower().split(": ", 1) for line in iter(lambda: sent.readline().strip(), b""))
            body = sent.read(int(headers.get("content-length", 0)))
        return {"at": first.decode().rsplit(" ", 1)[0], "headers": headers, **(json.loads(body) if body else {})}

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        with socket.create_connection(self._listener.getsockname()) as last:
            last.sendall(b"END / HTTP/1.1\r\n\r\n")
        self._thread.join(timeout=DEADLINE_S)
        self._listener.close()
        # A socket left open by the code under test fails its own test.
        gc.collect()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def line(**fields: Any) -> bytes:
    return chunk(json.dumps(fields).encode() + b"\n")


def plain(status: int, body: Any) -> bytes:
    text = json.dumps(body).encode() if not isinstance(body, bytes) else body
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (status, len(text), text)
