"""Serves HTTP/1.1 in threads, notices a leaving client at once, and can vanish and return; knows no endpoint."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from io import BufferedReader

JSON_UTF8 = "application/json; charset=utf-8"
TEXT_UTF8 = "text/plain; charset=utf-8"
_LONGEST_LINE = 65_536
_JOIN_S = 5.0


class ClientGone(Exception):
    """The client left, or the server went away, before the exchange was over; no one reads the answer any more."""


class _Malformed(Exception):
    """The bytes are not an HTTP request."""


class Exchange:
    """One request and its answer. `gone` is set as soon as the client has left or the server has gone away.

    request: what the card's record calls it, "" while it needs no model. output_token_count: tokens said so far.
    """

    def __init__(self, connection: socket.socket, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body
        self.gone = threading.Event()
        self.status = 0
        self.request = ""
        self.output_token_count = 0
        self.keep_connection = headers.get("connection", "").lower() != "close"
        self._connection = connection
        self._streaming = False
        self._gone_callbacks: list[Callable[[], None]] = []

    @property
    def answered(self) -> bool:
        """Whether a status line was sent."""
        return self.status != 0

    def on_gone(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when `gone` is set, from the thread that set it."""
        self._gone_callbacks.append(callback)
        if self.gone.is_set():
            callback()

    def leave(self) -> None:
        """Mark the client as gone."""
        if not self.gone.is_set():
            self.gone.set()
            for callback in tuple(self._gone_callbacks):
                callback()

    def pause(self, real_s: float) -> None:
        """Wait `real_s` seconds.

        Raises: ClientGone as soon as the client leaves.
        """
        if self.gone.is_set() or (real_s > 0 and self.gone.wait(real_s)):
            raise ClientGone

    def wait_until_gone(self) -> None:
        """Send nothing more and wait until the client leaves.

        Raises: ClientGone, always.
        """
        self.gone.wait()
        raise ClientGone

    def send(self, status: int, content_type: str, body: bytes, *, chunked: bool = False) -> None:
        """Send a whole answer in one write.

        Raises: ClientGone.
        """
        if chunked:
            framed = b"" if self.method == "HEAD" else b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
            self._write(self._head(status, content_type, "Transfer-Encoding: chunked") + framed)
        else:
            shown = b"" if self.method == "HEAD" else body
            self._write(self._head(status, content_type, f"Content-Length: {len(body)}") + shown)

    def send_chunk(self, content_type: str, chunk: bytes) -> None:
        """Send one chunk of a stream in one write; the first brings status 200 and the headers along.

        Raises: ClientGone.
        """
        head = b"" if self._streaming else self._head(200, content_type, "Transfer-Encoding: chunked")
        self._streaming = True
        self._write(head + b"%x\r\n%s\r\n" % (len(chunk), chunk))

    def end_stream(self, content_type: str) -> None:
        """Send a stream's end; a stream without a chunk gets its headers here.

        Raises: ClientGone.
        """
        head = b"" if self._streaming else self._head(200, content_type, "Transfer-Encoding: chunked")
        self._write(head + b"0\r\n\r\n")

    def drop(self) -> None:
        """Close the connection without finishing the answer.

        Raises: ClientGone, always.
        """
        raise ClientGone

    def _head(self, status: int, content_type: str, length: str) -> bytes:
        self.status = status
        reason = HTTPStatus(status).phrase
        closing = "" if self.keep_connection else "Connection: close\r\n"
        date = formatdate(usegmt=True)
        head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\nDate: {date}\r\n{length}\r\n{closing}\r\n"
        return head.encode("latin-1")

    def _write(self, data: bytes) -> None:
        if self.gone.is_set():
            raise ClientGone
        try:
            self._connection.sendall(data)
        except OSError:
            self.leave()
            raise ClientGone from None


class HttpServer:
    """Serves `handle` in one thread for each connection; one more thread accepts and watches for clients that leave."""

    def __init__(self, handle: Callable[[Exchange], None], *, host: str, port: int, name: str) -> None:
        self._handle = handle
        self._host = host
        self._wanted_port = port
        self._name = name
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        self._listener: socket.socket | None = None
        self._placeholder: socket.socket | None = None
        self._connections: dict[socket.socket, Exchange | None] = {}
        self._threads: set[threading.Thread] = set()
        self._watcher: threading.Thread | None = None
        self._stopping = False
        self.port = 0

    def start(self) -> None:
        """Bind and listen. A server that was stopped is not started again.

        Raises: OSError if the address is not available.
        """
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        try:
            listener = self._bound(self._wanted_port)
        except OSError:
            self._close_watching()
            raise
        self.port = int(listener.getsockname()[1])
        self._listen(listener)
        self._watcher = threading.Thread(target=self._watch, name=f"{self._name}-watcher", daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """Refuse new connections, break the open ones and wait for every thread to end. Safe to call twice."""
        self.go_away()
        with self._lock:
            self._stopping = True
            placeholder, self._placeholder = self._placeholder, None
        if placeholder is not None:
            placeholder.close()
        if self._watcher is not None:
            self._waker.send(b"x")
            self._watcher.join(_JOIN_S)
            self._watcher = None
        self._close_watching()
        current = threading.current_thread()
        for thread in tuple(self._threads):
            if thread is not current:
                thread.join(_JOIN_S)

    def go_away(self) -> None:
        """Refuse new connections and break the open ones, keeping the port for `come_back`."""
        with self._lock:
            listener, self._listener = self._listener, None
            if listener is not None:
                with contextlib.suppress(KeyError):
                    self._selector.unregister(listener)
                listener.close()
                # A bound socket that does not listen refuses connections and keeps others off the port.
                self._placeholder = self._bound(self.port)
            open_now = dict(self._connections)
        for connection, exchange in open_now.items():
            if exchange is not None:
                exchange.leave()
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def come_back(self) -> None:
        """Listen again on the same port; does nothing if it already listens."""
        with self._lock:
            if self._stopping or self._listener is not None or self._placeholder is None:
                return
            listener, self._placeholder = self._placeholder, None
            self._listen(listener)
        self._waker.send(b"x")

    def _bound(self, port: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((self._host, port))
        except OSError:
            bound.close()
            raise
        return bound

    def _listen(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        listener.listen(1024)
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ)

    def _close_watching(self) -> None:
        self._selector.close()
        self._waker.close()
        self._woken.close()

    def _watch(self) -> None:
        while not self._stopping:
            for key, _ in self._selector.select():
                if key.fileobj is self._woken:
                    with contextlib.suppress(BlockingIOError):
                        self._woken.recv(4096)
                elif isinstance(key.data, Exchange):
                    self._look(key.data)
                else:
                    self._accept()

    def _accept(self) -> None:
        with self._lock:
            if self._listener is None:
                return
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setblocking(True)
            self._connections[connection] = None
            thread = threading.Thread(target=self._serve, args=(connection,), name=f"{self._name}-connection", daemon=True)
            self._threads.add(thread)
        thread.start()

    def _look(self, exchange: Exchange) -> None:
        try:
            left = exchange._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return
        except OSError:
            left = True
        # Bytes of a next request would wake the watcher forever.
        self._unwatch(exchange._connection)
        if left:
            exchange.leave()

    def _unwatch(self, connection: socket.socket) -> None:
        with self._lock, contextlib.suppress(KeyError, ValueError, OSError):
            self._selector.unregister(connection)

    def _serve(self, connection: socket.socket) -> None:
        reader = connection.makefile("rb")
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while self._serve_one(connection, reader):
                pass
        except (ClientGone, OSError):
            pass
        finally:
            self._unwatch(connection)
            with self._lock:
                self._connections.pop(connection, None)
            # The reader keeps the descriptor open until it is closed too.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            reader.close()
            connection.close()
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _serve_one(self, connection: socket.socket, reader: BufferedReader) -> bool:
        try:
            exchange = _read_exchange(connection, reader)
        except _Malformed:
            Exchange(connection, "GET", "/", {"connection": "close"}, b"").send(400, TEXT_UTF8, b"400 Bad Request")
            return False
        if exchange is None:
            return False
        with self._lock:
            if self._listener is None:
                return False
            self._connections[connection] = exchange
            self._selector.register(connection, selectors.EVENT_READ, exchange)
        try:
            self._handle(exchange)
        finally:
            self._unwatch(connection)
            with self._lock:
                self._connections[connection] = None
        return exchange.keep_connection and not exchange.gone.is_set()


def _read_exchange(connection: socket.socket, reader: BufferedReader) -> Exchange | None:
    line = reader.readline(_LONGEST_LINE)
    if not line.strip():
        return None
    words = line.decode("latin-1").split()
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise _Malformed
    headers: dict[str, str] = {}
    while (line := reader.readline(_LONGEST_LINE)) not in (b"\r\n", b"\n"):
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon:
            raise _Malformed
        headers[name.strip().lower()] = value.strip()
    if headers.get("expect", "").lower() == "100-continue":
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    if words[2] == "HTTP/1.0":
        headers.setdefault("connection", "close")
    return Exchange(connection, words[0], words[1].partition("?")[0], headers, _read_body(reader, headers))


def _read_body(reader: BufferedReader, headers: dict[str, str]) -> bytes:
    try:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = b""
            while size := int(reader.readline(_LONGEST_LINE).split(b";")[0], 16):
                body += reader.read(size)
                reader.readline(_LONGEST_LINE)
            while reader.readline(_LONGEST_LINE).strip():
                pass
            return body
        length = int(headers.get("content-length", "0"))
        body = reader.read(length)
    except ValueError:
        raise _Malformed from None
    if len(body) < length:
        raise ClientGone
    return body
