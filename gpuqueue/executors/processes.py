"""Runs a function in its own process, so its memory and any damage end with that process. The other side is `child.py`.

The worker and the child exchange JSON lines over a pair of sockets. A child that does not stop when asked is killed after
KILL_AFTER_S, with everything that it started. If the worker was killed, or suspended for so long that its jobs may have been
rescued, its guardian kills the child.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from gpuqueue.contract.executor import AttemptContext, AttemptInterrupted
from gpuqueue.domain.answers import Placement
from gpuqueue.domain.errors import IsolatedFailure, ProcessDied
from gpuqueue.domain.settings import DeviceSettings
from gpuqueue.domain.verdicts import verdict_of
from gpuqueue.executors import guardian

KILL_AFTER_S = 1.0  # less than a worker waits before it gives up an attempt
IDLE_S = 60.0  # how long a child waits for another job
JOBS_PER_CHILD = 100
GROWTH_BYTES = 64 * 2**20  # a child that needed more memory than this for a job is not reused
_START = (
    "import json, sys; path, descriptor = json.loads(sys.argv[1]); sys.path[:] = path; "
    "from gpuqueue.executors.child import main; main(descriptor)"
)


class Child:
    """One process, which runs one job at a time."""

    def __init__(self, environment: Mapping[str, str], guardian: Guardian) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = json.dumps([sys.path, theirs.fileno()])
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, arguments],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **environment},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # so its own children can be killed with it
            )
        self._guardian = guardian
        self._guardian.tell("idle", self._process.pid)
        self._socket = ours
        self._received = b""
        self._sending = threading.Lock()
        self._killer: threading.Timer | None = None
        self._signalling = threading.Lock()
        self._signalled_last = False
        self.environment = environment
        self.idle_since_s = 0.0
        self.jobs_run = 0
        self.has_grown = False

    def run(self, request: Mapping[str, Any], context: AttemptContext, *, silence_s: float) -> Any:
        """Run one job; the guardian kills the child when this process sends nothing for `silence_s`.

        Returns: the function's result. Raises: IsolatedFailure or a verdict for the function's error; ProcessDied;
        AttemptInterrupted.
        """
        self._guardian.tell("run", self._process.pid, silence_s)
        self._send(request)
        self.jobs_run += 1
        while True:
            try:
                message = self._receive(silence_s / 4)
            except (EOFError, OSError):
                context.check()
                raise ProcessDied(self._death()) from None
            if message is None:
                self._guardian.tell("alive")
            elif "emit" in message:
                with suppress(AttemptInterrupted):
                    context.emit(message["emit"])
            elif "log" in message:
                context.log(message["log"])
            elif "progress" in message:
                context.progress(*message["progress"])
            else:
                self.has_grown = message["peak_bytes"] - message["loaded_bytes"] > GROWTH_BYTES
                return _value_of(message)

    def ask_to_stop(self) -> None:
        """Ask the job to stop, and kill the child when it does not."""
        self._signal(signal.SIGTERM)
        self._killer = threading.Timer(KILL_AFTER_S, self._signal, [signal.SIGKILL])
        self._killer.daemon = True
        self._killer.start()

    @property
    def is_usable(self) -> bool:
        """Whether it can run another job."""
        return self._killer is None and not self.has_grown and self.jobs_run < JOBS_PER_CHILD and self._is_connected()

    def rest(self) -> None:
        """Mark the child as idle."""
        self.idle_since_s = time.monotonic()
        self._guardian.tell("idle", self._process.pid)

    def end(self) -> None:
        """Kill the child and everything that it started, and wait until it is gone."""
        if self._killer is not None:
            self._killer.cancel()
        self._signal(signal.SIGKILL, last=True)
        self._process.wait()
        self._guardian.tell("gone", self._process.pid)
        self._socket.close()

    def _send(self, message: Mapping[str, Any]) -> None:
        with self._sending, suppress(OSError):  # a dead child is noticed on the next receive
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _receive(self, timeout_s: float) -> dict[str, Any] | None:
        """Return the next message, or None after `timeout_s`. Raises: EOFError, OSError when the child is gone."""
        ends_s = time.monotonic() + timeout_s
        while b"\n" not in self._received:
            self._socket.settimeout(max(0.001, ends_s - time.monotonic()))
            try:
                piece = self._socket.recv(1 << 20)
            except TimeoutError:
                return None
            if not piece:
                raise EOFError
            self._received += piece
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _is_connected(self) -> bool:
        self._socket.setblocking(False)
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _death(self) -> str:
        self.end()  # a process that is already exiting keeps its exit status
        status = self._process.returncode
        if status >= 0:
            return f"the job's process exited with status {status} before returning"
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        hint = "; the machine may have run out of memory, check dmesg" if name == "SIGKILL" else ""
        return f"the job's process was killed by {name} before returning{hint}"

    def _signal(self, number: int, *, last: bool = False) -> None:
        """Send a signal to the child's group; none after the `last`, because the number may then be another group's."""
        with self._signalling:
            if not self._signalled_last:
                self._signalled_last = last
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, number)


class Guardian:
    """A small process, started with the first child, that kills the children when this process cannot."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._told: dict[int, bytes] = {}  # the last line about each group, for a guardian that must be replaced
        self._closed = False
        self._lock = threading.Lock()

    def tell(self, word: str, group: int = 0, silence_s: float | None = None) -> None:
        """Send one line to the guardian."""
        line = " ".join(str(part) for part in (word, group or None, silence_s) if part is not None).encode() + b"\n"
        with self._lock:
            if self._closed:
                return
            if word == "gone":
                self._told.pop(group, None)
            elif group:
                self._told[group] = line
            try:
                self._write(line)
            except OSError:  # the guardian was killed
                self._end()
                self._write(b"".join(self._told.values()))

    def close(self) -> None:
        """End it; it kills the children that were not reported as gone."""
        with self._lock:
            self._closed = True
            self._end()

    def _end(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            self._process = None

    def _write(self, lines: bytes) -> None:
        if self._process is None:
            command = [sys.executable, "-I", "-S", guardian.__file__]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True)
        assert self._process.stdin is not None
        self._process.stdin.write(lines)


class Children:
    """The child processes of one worker, new and idle ones."""

    def __init__(self) -> None:
        self._guardian = Guardian()
        self._idle: list[Child] = []
        self._lock = threading.Lock()
        self._closed = False

    def take(self, environment: Mapping[str, str], *, fresh: bool) -> Child:
        """Return a child with this environment: a new one if `fresh`, or if none is idle."""
        while not fresh and (child := self._pop(environment)) is not None:
            if child.is_usable:
                return child
            child.end()
        return Child(environment, self._guardian)

    def give_back(self, child: Child, *, reuse: bool) -> None:
        """Take back a child after its job; ends it if it cannot run another."""
        if reuse and child.is_usable:
            child.rest()
            with self._lock:
                if not self._closed:
                    self._idle.append(child)
                    return
        child.end()

    def tidy(self) -> None:
        """End the children that have been idle for too long."""
        with self._lock:
            now_s = time.monotonic()
            old = [child for child in self._idle if now_s - child.idle_since_s > IDLE_S]
            self._idle = [child for child in self._idle if child not in old]
        for child in old:
            child.end()

    def close(self) -> None:
        """End all children."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for child in idle:
            child.end()
        self._guardian.close()

    def _pop(self, environment: Mapping[str, str]) -> Child | None:
        with self._lock:
            for child in reversed(self._idle):
                if child.environment == environment:
                    self._idle.remove(child)
                    return child
        return None


class ProcessExecutor:
    """Runs one task's function, found by module and name, in child processes.

    A job on a device gets its own process, which sees only that device and releases all its memory when it ends. Jobs without
    a device share a process, one after another, while its memory does not grow; if devices are configured it sees none.
    """

    def __init__(
        self,
        children: Children,
        devices: Mapping[str, DeviceSettings],
        *,
        module: str,
        name: str,
        lease_s: float,
        preemptible: bool = False,
    ) -> None:
        self._children = children
        self._module = module
        self._name = name
        self._devices = devices
        self._silence_s = lease_s * 0.8
        self.preemptible = preemptible

    isolated = True

    def run(self, context: AttemptContext) -> Any:
        lease = context.lease
        child = self._children.take(self.environment(lease.placement), fresh=lease.placement is not None)
        request = {
            "module": self._module,
            "name": self._name,
            "arguments": dict(lease.arguments),
            "job": [lease.job_id, lease.lease, lease.queue, lease.task, lease.attempt, lease.max_attempts],
            "left_s": None if context.deadline_s is None else context.deadline_s - time.monotonic(),
        }
        try:
            with context.interrupted_by(child.ask_to_stop):
                value = child.run(request, context, silence_s=self._silence_s)
        except BaseException:
            self._children.give_back(child, reuse=False)
            raise
        self._children.give_back(child, reuse=lease.placement is None)
        return value

    def environment(self, placement: Placement | None) -> dict[str, str]:
        """Return the variables that limit the devices CUDA shows.

        NVML numbers cards by their place on the bus, which CUDA does only when set to (CUDA_DEVICE_ORDER, CUDA C++
        programming guide, "CUDA environment variables").
        """
        if placement is None:
            return {"CUDA_VISIBLE_DEVICES": ""} if self._devices else {}
        device = self._devices.get(placement.device)
        if device is None or device.name.startswith(("GPU-", "MIG-")):
            return {"CUDA_VISIBLE_DEVICES": placement.device}
        return {"CUDA_VISIBLE_DEVICES": str(device.index), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def _value_of(message: Mapping[str, Any]) -> Any:
    if "value" in message:
        return message["value"]
    if "verdict" in message:
        raise verdict_of(message["verdict"])
    if "interrupted" in message:
        raise AttemptInterrupted
    raise IsolatedFailure(**message["error"])
