"""Runs functions for a worker in a child process, the other side of `processes.py`; opens no database."""

from __future__ import annotations

import faulthandler
import importlib
import inspect
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from types import FrameType
from typing import Any

from gpuqueue.contract.current_job import publish_waits, running
from gpuqueue.contract.executor import AttemptInterrupted
from gpuqueue.domain.errors import PayloadError
from gpuqueue.domain.job import Lease
from gpuqueue.domain.json_text import to_json
from gpuqueue.domain.safe_text import safe_trace
from gpuqueue.domain.verdicts import Discard, Verdict, failure, verdict_data

is_child = False  # whether this process was started to run isolated tasks


class ChildContext:
    """The AttemptContext of the job running here; sends output to the worker."""

    def __init__(self, channel: Channel, request: Mapping[str, Any]) -> None:
        job_id, lease, queue, task, attempt, max_attempts = request["job"]
        self.lease = Lease(job_id, lease, queue, task, attempt, max_attempts, request["arguments"], None, datetime.now(UTC))
        self.deadline_s = None if request["left_s"] is None else time.monotonic() + request["left_s"]
        self.interruption: str | None = None
        self.partial = None
        self._channel = channel

    def found(self) -> None:
        """Tell the worker that the task is about to run."""
        self._channel.send({"found": True}, self)

    def check(self) -> None:
        if self.interruption is not None:
            raise AttemptInterrupted

    def emit(self, text: str) -> None:
        self.check()
        self._channel.send({"emit": text}, self)

    def progress(self, fraction: float, note: str) -> None:
        self._channel.send({"progress": [fraction, note]}, self)

    def log(self, message: str) -> None:
        self._channel.send({"log": message}, self)

    def tokens(self, count: int) -> None: ...

    def continue_output(self) -> None: ...

    def interrupted_by(self, stop: Callable[[], None]) -> AbstractContextManager[None]:
        return nullcontext()  # SIGTERM interrupts the job


class Channel:
    """The connection to the worker, as lines of JSON: requests in, the job's output and result out."""

    def __init__(self, connection: socket.socket) -> None:
        self._lines = connection.makefile("rb")
        self._socket = connection
        self._sending = threading.Lock()
        self.context: ChildContext | None = None
        self.sender: int | None = None  # the thread that is in the middle of a line
        self.stop_after_sending = False

    def next_request(self) -> dict[str, Any]:
        """Wait for the next job; ends the process when the worker is gone."""
        line = self._lines.readline()
        if not line:
            os._exit(0)
        request: dict[str, Any] = json.loads(line)
        return request

    def send(self, message: Mapping[str, Any], context: ChildContext) -> None:
        """Send a job's output; what a thread says for a job that has ended is dropped, since another one may run by now."""
        self._send_line(json.dumps(message, allow_nan=False), context)

    def say_waits(self, awaited_id: int) -> None:
        """Say which job the task waits for, 0 for none: it keeps a thread of the worker busy meanwhile."""
        if self.context is not None:
            self.send({"waits_for": awaited_id}, self.context)

    def answer(self, line: str) -> None:
        """End the current job."""
        with self._sending:  # no thread of the job is in the middle of a line
            self.context = None
        self._send_line(line, None)

    def _send_line(self, line: str, context: ChildContext | None) -> None:
        with self._sending:
            if context is not self.context:
                return
            self.sender = threading.get_ident()
            try:
                self._socket.sendall(line.encode() + b"\n")
            finally:
                self.sender = None
        if self.stop_after_sending and threading.current_thread() is threading.main_thread():
            self.stop_after_sending = False
            raise AttemptInterrupted


def main(descriptor: int) -> None:
    """Run the worker's jobs until the worker is gone."""
    global is_child
    is_child = True
    faulthandler.enable()
    channel = Channel(socket.socket(fileno=descriptor))
    publish_waits(lambda _, awaited_id: channel.say_waits(awaited_id))
    signal.signal(signal.SIGTERM, lambda number, frame: _on_terminate(channel, number, frame))
    try:
        while True:
            request = channel.next_request()
            context = channel.context = ChildContext(channel, request)
            channel.answer(_run(context, request))
    except AttemptInterrupted:  # between two jobs
        os._exit(0)


def _run(context: ChildContext, request: Mapping[str, Any]) -> str:
    """Run one job; returns the answer, as JSON."""
    loaded_bytes = _peak_bytes()
    try:
        try:
            function = _find(request["module"], request["name"])
        except Exception as error:
            return f'{{"not_importable":{_told(error)}}}'
        context.found()
        loaded_bytes = _peak_bytes()
        context.check()
        with running(context):
            if inspect.iscoroutinefunction(function):
                import asyncio  # only some tasks need it

                value = asyncio.run(function(**request["arguments"]))
            else:
                value = function(**request["arguments"])
        answer = f'"value":{_result(value, request["limit_bytes"], context.lease.job_id)}'
    except AttemptInterrupted:
        answer = '"interrupted":true'
    except BaseException as error:
        answer = f'"error":{_told(error)}'
        if isinstance(error, Verdict):
            answer = f'"verdict":{json.dumps(verdict_data(error))}'
    return f'{{{answer},"loaded_bytes":{loaded_bytes},"peak_bytes":{_peak_bytes()}}}'


def _result(value: Any, limit_bytes: int, job_id: int) -> str:
    try:
        return to_json(value, limit_bytes, f"the result of job {job_id}")
    except PayloadError as error:
        # Another attempt would compute the same result.
        raise Discard(str(error), code="result") from None


def _told(error: BaseException) -> str:
    """Return the parts of an error, as JSON."""
    code, message = failure(error)
    kinds = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__]
    return json.dumps({"code": code, "message": message, "kinds": kinds, "remote_traceback": safe_trace(error)})


def _find(module: str, name: str) -> Callable[..., Any]:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    # The name may refer to the task that the decorator created from the function.
    function: Callable[..., Any] = getattr(found, "function", None) or found
    return function


def _on_terminate(channel: Channel, _number: int, _frame: FrameType | None) -> None:
    if channel.context is None:
        os._exit(0)
    channel.context.interruption = "stopped"
    if channel.sender == threading.get_ident():  # half a line would corrupt everything after it
        channel.stop_after_sending = True
        return
    raise AttemptInterrupted


def _peak_bytes() -> int:
    """Return this process's peak memory."""
    # On Linux getrusage(2) would include the worker's peak when it started this process: exec keeps that figure.
    try:
        with open("/proc/self/status", "rb") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith(b"VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # getrusage(2): bytes on macOS, else kilobytes
