"""Calls Ollama over HTTP: its requests, their timeouts, and the class of every failure; runs no job itself."""

from __future__ import annotations

import functools
import json
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, suppress
from types import TracebackType
from typing import Any

import httpx

from gpuqueue.contract.executor import AttemptContext, AttemptInterrupted
from gpuqueue.domain.device import Resident
from gpuqueue.domain.endpoints import shown_url
from gpuqueue.domain.errors import BackendUnavailable, CallerFault, ConfigurationError, ExecutionError, OutOfMemory, RunnerCrashed
from gpuqueue.domain.settings import BackendSettings
from gpuqueue.executors.replies import reason_in, was_refused

QUERY_S = 5.0  # for the calls that Ollama answers from memory

_OUT_OF_MEMORY = re.compile(
    r"out of memory|cudaMalloc failed|requires more system memory|insufficient (v?ram|memory)|"
    r"failed to allocate|unable to allocate|ErrorMemoryAllocation|ERROR_OUT_OF_(DEVICE_)?MEMORY",
    re.IGNORECASE,
)
_FILE = re.compile(r"^FROM (/.*/sha256-[0-9a-f]{64})$", re.MULTILINE)
_CALLERS_500 = re.compile(r'^option "[^"]*" must be of type|^invalid format:')
_BUSY = (408, 429, 502, 503, 504)  # 502 and 504 come from a proxy in front of an unavailable Ollama


class ConnectionRefused(BackendUnavailable):
    """Nothing listens at the backend's URL: the server has ended, and with it its child processes, the runners."""


class OllamaClient:
    """One Ollama, over HTTP; every method can be called from any thread, and keeps no connection open."""

    def __init__(self, settings: BackendSettings) -> None:
        try:
            self._url = httpx.URL(settings.url)
        except httpx.InvalidURL as error:
            raise ConfigurationError(f"backend {settings.name!r}: invalid url {settings.url!r}: {error}") from error
        if self._url.scheme not in ("http", "https") or not self._url.host:
            raise ConfigurationError(f"backend {settings.name!r}: url must be like http://127.0.0.1:11434, not {settings.url!r}")
        self.settings = settings
        self.shown_url = shown_url(str(self._url)).rstrip("/")

    def probe(self, timeout_s: float | None = None) -> str:
        """Check whether Ollama answers, by default within connect_s.

        Returns: its version, "" if it is too old to report one. Raises: BackendUnavailable.
        """
        timeout_s = self.settings.connect_s if timeout_s is None else timeout_s
        response = self._query("GET", "/api/version", timeout_s=timeout_s)
        if response.status_code == 200:
            with suppress(ValueError, AttributeError):
                return str(response.json().get("version", ""))
        response = self._query("GET", "/", timeout_s=timeout_s)
        if response.status_code == 200 and "ollama" in response.text.lower():
            return ""
        raise self._unavailable(f"answered GET / with status {response.status_code}; it is busy or not an Ollama. Check the url")

    def residents(self, timeout_s: float = QUERY_S) -> tuple[Resident, ...]:
        """List the loaded models, by their names with tags.

        Raises: BackendUnavailable, or another ExecutionError if Ollama refuses.
        """
        found = self._listed("/api/ps", timeout_s)
        return tuple(
            Resident(str(item.get("name", "")), int(item.get("size") or 0), int(item.get("size_vram") or 0)) for item in found
        )

    def models(self, timeout_s: float = QUERY_S) -> dict[str, int]:
        """List the models on Ollama's disk: {name with tag: bytes there}."""
        return {str(item.get("name", "")): int(item.get("size") or 0) for item in self._listed("/api/tags", timeout_s)}

    def description(self, model: str, timeout_s: float = QUERY_S) -> dict[str, Any]:
        """Return what Ollama says of a model: its family, capabilities, layers, heads and lengths, as `/api/show` does.

        Raises: ExecutionError, also for an unknown model.
        """
        return self._shown(model, timeout_s)

    def files(self, model: str, timeout_s: float = QUERY_S) -> list[str]:
        """Return the paths of a model's files on Ollama's machine. Raises: ExecutionError, also for an unknown model."""
        return _FILE.findall(str(self._shown(model, timeout_s).get("modelfile") or ""))

    def unload(self, model: str, timeout_s: float = QUERY_S) -> None:
        """Request to unload a model; Ollama answers at once and unloads later, when the model's requests have ended."""
        # Generate unloads embedding models too; /api/embed has no way to.
        response = self._query("POST", "/api/generate", timeout_s=timeout_s, body={"model": model, "keep_alive": 0})
        if response.status_code != 200:
            raise self._refusal(response.status_code, response.text, model)

    def stream(self, path: str, body: Mapping[str, Any], context: AttemptContext) -> Generator[dict[str, Any]]:
        """Send a generating request and yield the lines of its answer; the last one has `done` true.

        The connection is closed as soon as the attempt is interrupted, which makes Ollama stop in any phase. Limits, in
        seconds: connect_s; first_token_s until the answer starts, loading included; gap_s between two pieces; total_s and the
        attempt's deadline, checked with each piece.
        Raises: AttemptInterrupted, or an ExecutionError that classifies the failure.
        """
        with closing(self._objects(path, {**body, "stream": True}, context)) as lines:
            for line in lines:
                yield line
                if line.get("done") is True:
                    return
        raise RunnerCrashed(f"{self._of(body)} ended its answer before it was done. Check Ollama's log")

    def answer(self, path: str, body: Mapping[str, Any], context: AttemptContext) -> dict[str, Any]:
        """Send a request with one object as its answer; limits and errors as in `stream`."""
        with closing(self._objects(path, body, context)) as lines:
            for line in lines:
                return line
        raise RunnerCrashed(f"{self._of(body)} sent an empty answer. Check Ollama's log")

    def can_think(self, model: str, context: AttemptContext) -> bool:
        """Return whether a model thinks before it answers, unless it is told not to. Limits and errors as in `stream`."""
        return "thinking" in (self.answer("/api/show", {"model": model}, context).get("capabilities") or ())

    def rendered(self, path: str, body: Mapping[str, Any], context: AttemptContext) -> str | None:
        """Load a generating request's model, and return the prompt that the model would get; None if Ollama cannot tell.

        Limits and errors as in `stream`.
        """
        # An Ollama that does not know the field answers the request instead, but with one token.
        once = {**(body.get("options") or {}), "num_predict": 1}
        found = self.answer(path, {**body, "options": once, "stream": False, "_debug_render_only": True}, context)
        shown = found.get("_debug_info")
        prompt = shown.get("rendered_template") if isinstance(shown, dict) else None
        return prompt if isinstance(prompt, str) else None

    def _listed(self, path: str, timeout_s: float) -> list[dict[str, Any]]:
        response = self._query("GET", path, timeout_s=timeout_s)
        if response.status_code != 200:
            raise self._refusal(response.status_code, response.text, "")
        with suppress(ValueError, AttributeError):
            return list(response.json().get("models") or ())
        raise self._unavailable(f"did not answer GET {path} with a list of models, so it is not an Ollama. Check the url")

    def _shown(self, model: str, timeout_s: float) -> dict[str, Any]:
        response = self._query("POST", "/api/show", timeout_s=timeout_s, body={"model": model})
        if response.status_code != 200:
            raise self._refusal(response.status_code, response.text, model)
        with suppress(ValueError):
            found = response.json()
            if isinstance(found, dict):
                return found
        raise self._unavailable("did not answer POST /api/show with a model, so it is not an Ollama. Check the url")

    def _query(self, method: str, path: str, *, timeout_s: float, body: Mapping[str, Any] | None = None) -> httpx.Response:
        patience = httpx.Timeout(timeout_s, connect=min(timeout_s, self.settings.connect_s))
        try:
            with self._open() as http:
                return http.request(method, path, json=body, timeout=patience)
        except httpx.HTTPError as error:
            raise self._unreached(error, f"did not answer {method} {path} within {timeout_s:g} s") from error

    def _open(self) -> httpx.Client:
        # Proxies from the environment are for the internet, and would break a request to 127.0.0.1.
        return httpx.Client(base_url=self._url, verify=_trust(self._url.scheme), trust_env=False)

    def _objects(self, path: str, body: Mapping[str, Any], context: AttemptContext) -> Generator[dict[str, Any]]:
        context.check()
        limits = _Limits(self.settings, context.deadline_s)
        answering = False
        with self._open() as http, _Plug(context.check) as plug, context.interrupted_by(plug.pull):
            try:
                request = http.build_request(
                    "POST",
                    path,
                    json=body,
                    timeout=httpx.Timeout(
                        connect=self.settings.connect_s,
                        write=self.settings.gap_s,
                        read=limits.next_read_s(self.settings.first_token_s),
                        pool=None,
                    ),
                    extensions={"trace": plug.watch},
                )
                with closing(http.send(request, stream=True)) as response:
                    answering = True
                    # httpcore reads this when the body is first read: from here on the gap is the limit.
                    request.extensions["timeout"]["read"] = limits.next_read_s(self.settings.gap_s)
                    if response.status_code != 200:
                        text = response.read().decode(errors="replace")
                        raise self._refusal(response.status_code, text, str(body.get("model", "")))
                    for line in _lines(response, functools.partial(self._check, limits, plug, context, body)):
                        yield self._parsed(line, body)
            except httpx.HTTPError as error:
                self._check(limits, plug, context, body)
                raise self._broken(error, body, answering) from error
            # A connection that ends with its answer cannot be told from one that was shut down.
            self._check(limits, plug, context, body)

    def _parsed(self, line: bytes, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise RunnerCrashed(f"{self._of(body)} did not answer in JSON: {line[:80]!r}. Check the url")
        if "error" in found:
            # The status was sent before the failure, so it does not count.
            raise self._refusal(200, line.decode(errors="replace"), str(body.get("model", "")))
        return found

    def _check(self, limits: _Limits, plug: _Plug, context: AttemptContext, body: Mapping[str, Any]) -> None:
        if plug.pulled or limits.deadline_passed():
            context.check()
            raise AttemptInterrupted
        if limits.total_passed():
            raise RunnerCrashed(
                f"{self._of(body)} was not done within {self.settings.total_s:g} s. Limit the answer with the option "
                "num_predict, or raise total_s"
            )

    def _broken(self, error: httpx.HTTPError, body: Mapping[str, Any], answering: bool) -> ExecutionError:
        if answering and isinstance(error, httpx.TimeoutException):
            return RunnerCrashed(f"{self._of(body)} stopped and sent nothing for {self.settings.gap_s:g} s (gap_s)")
        if answering:
            # After a runner's crash Ollama still answers; if it does not, the job is not at fault.
            try:
                self.probe()
            except BackendUnavailable as away:
                return away
            return RunnerCrashed(f"{self._of(body)} dropped the connection during its answer ({error})")
        # Ollama sends its headers together with the first token. Without them none of the job was done. A hung server, a full
        # queue in Ollama and an endless load look the same: the backend is not usable now and the job is not at fault, so the
        # job is postponed without spending an attempt.
        waited_s = self.settings.first_token_s
        return self._unreached(
            error,
            f"did not start to answer for {_model(body)} within {waited_s:g} s. Raise first_token_s if it loads that slowly",
        )

    def _unreached(self, error: httpx.HTTPError, too_slow: str) -> BackendUnavailable:
        match error:
            case httpx.ConnectTimeout():
                return self._unavailable(
                    f"could not be reached within {self.settings.connect_s:g} s. Check the host and its network"
                )
            case httpx.TimeoutException():
                return self._unavailable(too_slow)
            case httpx.ConnectError() if was_refused(error):
                return ConnectionRefused(
                    f"nothing listens at {self.shown_url}; start Ollama with `ollama serve`",
                    backend=self.settings.name,
                )
            case httpx.ConnectError():
                return self._unavailable(f"cannot be reached ({error}). Check the url and that Ollama is running")
        return self._unavailable(f"dropped the connection without an answer ({error}); it may be restarting")

    def _unavailable(self, words: str) -> BackendUnavailable:
        return BackendUnavailable(f"Ollama at {self.shown_url} {words}", backend=self.settings.name)

    def _refusal(self, status: int, text: str, model: str) -> ExecutionError:
        said = reason_in(text)
        words = f"Ollama at {self.shown_url}" + (f", model {model!r}" if model else "") + f": {said}"
        if _OUT_OF_MEMORY.search(said):
            return OutOfMemory(f"{words}. Use a smaller num_ctx or model, or free memory on the card")
        if status in _BUSY:
            return BackendUnavailable(f"{words} (status {status})", backend=self.settings.name)
        if 300 <= status < 400:
            return self._unavailable(f"answered with a redirect (status {status}), so it is not an Ollama. Check the url")
        if status == 404 and model and "not found" in said:
            return CallerFault(f"{words}. Run `ollama pull {model}` on that machine")
        if 400 <= status < 500 or (status == 500 and _CALLERS_500.search(said)):
            return CallerFault(f"{words} (status {status}). Correct the request")
        return RunnerCrashed(words if status == 200 else f"{words} (status {status})")

    def _of(self, body: Mapping[str, Any]) -> str:
        return f"Ollama at {self.shown_url}, {_model(body)},"


class _Limits:
    """The time left for one request."""

    def __init__(self, settings: BackendSettings, deadline_s: float | None) -> None:
        self._ends_s = time.monotonic() + settings.total_s
        self._deadline_s = deadline_s

    def next_read_s(self, limit_s: float) -> float:
        """Return how long a read may wait: `limit_s`, or less if the request's time ends before."""
        ends_s = self._ends_s if self._deadline_s is None else min(self._ends_s, self._deadline_s)
        # A timeout of 0 would make the socket non-blocking.
        return max(0.001, min(limit_s, ends_s - time.monotonic()))

    def deadline_passed(self) -> bool:
        return self._deadline_s is not None and time.monotonic() >= self._deadline_s

    def total_passed(self) -> bool:
        return time.monotonic() >= self._ends_s


class _Plug:
    """Ends one request from another thread, by shutting down its socket while it is read.

    `check` is called once the connection stands: a process that was suspended meanwhile must not begin a request.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self.pulled = False

    def watch(self, event: str, info: Mapping[str, Any]) -> None:
        """Keep the connection once httpcore, which calls this as its trace, has opened it."""
        if event == "http11.send_request_headers.started":
            self._check()
        if event != "connection.connect_tcp.complete":
            return
        made = info["return_value"].get_extra_info("socket")
        with self._lock:
            # A separate descriptor: httpcore's could be closed, and its number reused, while another thread shuts it down.
            self._socket = socket.socket(fileno=os.dup(made.fileno()))
            if self.pulled:
                self._shut_down()

    def pull(self) -> None:
        with self._lock:
            self.pulled = True
            self._shut_down()

    def _shut_down(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> _Plug:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None


def _lines(response: httpx.Response, check: Callable[[], None]) -> Iterator[bytes]:
    """Yield the non-empty lines of an answer, the last one also without its newline; calls `check` with each piece."""
    begun: list[bytes] = []
    for piece in response.iter_bytes():
        check()
        *ended, rest = piece.split(b"\n")
        for part in ended:
            line = b"".join((*begun, part))
            begun.clear()
            if line.strip():
                yield line
        if rest:
            begun.append(rest)
    if line := b"".join(begun).strip():
        yield line


def _model(body: Mapping[str, Any]) -> str:
    return f"model {body.get('model', '')!r}"


@functools.cache
def _trust(scheme: str) -> ssl.SSLContext:
    # Reading the certificates takes 20 ms, and plain HTTP needs none; the bare context trusts no certificate.
    return httpx.create_ssl_context() if scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
