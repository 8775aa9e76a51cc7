"""Runs a function in its own process, so its memory and any damage end with that process. The other side is `child.py`.

The worker and the child exchange JSON lines over a pair of sockets. A child that does not stop when asked is killed after
KILL_AFTER_S, with everything that it started. If the worker was killed, or suspended for so long that its jobs may have been
rescued, its guardian kills the child. The child's own end counts, not that of the channel, which a process that it forked
keeps open.
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

from gpuqueue.contract.current_job import published_waits
from gpuqueue.contract.executor import AttemptContext, AttemptInterrupted
from gpuqueue.domain.answers import Placement
from gpuqueue.domain.errors import IsolatedFailure, NotImportable, ProcessDied
from gpuqueue.domain.settings import DeviceSettings
from gpuqueue.domain.units import format_duration
from gpuqueue.domain.verdicts import verdict_of
from gpuqueue.executors import guardian

KILL_AFTER_S = 1.0  # less than a worker waits before it gives up an attempt
LOOK_EVERY_S = 0.5  # how often a silent child is looked at
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
        self._received = bytearray()
        self._sending = threading.Lock()
        self._killer: threading.Timer | None = None
        self._signalling = threading.Lock()
        self._signalled_last = False
        self.environment = environment
        self.idle_since_s = 0.0
        self.jobs_run = 0
        self.has_grown = False

    def run(self, request: Mapping[str, Any], context: AttemptContext, *, silence_s: float) -> Any:
        """Run one job; the guardian kills the child when this process is suspended for `silence_s`.

        Returns: the function's result. Raises: IsolatedFailure or a verdict for the function's error; ProcessDied;
        AttemptInterrupted, without a request if the guardian killed the child.
        """
        self._guardian.tell("run", self._process.pid, silence_s)
        self._send(request)
        self.jobs_run += 1
        began = False
        while True:
            try:
                message = self._receive(silence_s / 4)
            except (EOFError, OSError):
                has_ended = self._ends_within(KILL_AFTER_S)
                context.check()
                raise self._death(silence_s, began=began, has_ended=has_ended) from None
            if "found" in message:
                began = True
            elif "emit" in message:
                with suppress(AttemptInterrupted):
                    context.emit(message["emit"])
            elif "log" in message:
                context.log(message["log"])
            elif "progress" in message:
                context.progress(*message["progress"])
            elif "waits_for" in message:
                _publish_wait(context, message["waits_for"])
            elif "not_importable" in message:
                raise NotImportable(**message["not_importable"])
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
        is_sound = self._killer is None and not self.has_grown and self.jobs_run < JOBS_PER_CHILD
        return is_sound and self._is_connected() and not self._has_ended()

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
            self._socket.settimeout(None)
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _receive(self, tell_every_s: float) -> dict[str, Any]:
        """Return the next message, and tell the guardian regularly. Raises: EOFError, OSError when the child is gone."""
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            self._guardian.tick(tell_every_s)
            gone = self._has_ended()  # before reading: then everything that the child sent is there
            if gone:
                self._signal(signal.SIGKILL)  # what it started could keep sending
            self._socket.settimeout(0.0 if gone else min(LOOK_EVERY_S, tell_every_s))
            try:
                piece = self._socket.recv(1 << 20)
            except (TimeoutError, BlockingIOError):
                if gone:
                    raise EOFError from None
                continue
            if not piece:
                raise EOFError
            self._received += piece
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        message: dict[str, Any] = json.loads(line)
        return message

    def _has_ended(self) -> bool:
        """Whether the process has ended. Its number stays its own, where the system can tell without freeing it."""
        if not hasattr(os, "waitid"):  # macOS before Python 3.13
            return self._process.poll() is not None
        try:
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # other code of the application has waited for it
            return True

    def _is_connected(self) -> bool:
        if self._received:  # what it sent after its answer would go to the next job
            return False
        self._socket.setblocking(False)
        try:
            self._socket.recv(1, socket.MSG_PEEK)
            return False
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _ends_within(self, wait_s: float) -> bool:
        """Whether the process ends by itself; it is about to when its channel is closed, unless the task closed that."""
        give_up_s = time.monotonic() + wait_s
        while not (has_ended := self._has_ended()) and time.monotonic() < give_up_s:
            time.sleep(0.01)
        return has_ended

    def _death(self, silence_s: float, *, began: bool, has_ended: bool) -> BaseException:
        """Return the error that says how the child died, from what is known about it."""
        pid = self._process.pid
        if self._guardian.has_killed(pid):
            silent = format_duration(silence_s)
            return AttemptInterrupted(
                f"the job's process was killed by gpuqueue: its worker was suspended for more than {silent}"
            )
        self.end()
        if not has_ended:
            return ProcessDied(
                "the job's process was killed by gpuqueue: it had closed its connection to the worker", began=began
            )
        status = self._process.returncode
        if status >= 0:
            return ProcessDied(f"the job's process exited with {status} before the task returned", began=began)
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        if name == "SIGKILL":  # not by this worker, which kills it only when it was asked to stop, and not by the guardian
            name = "SIGKILL from outside; see dmesg: the machine may have run out of memory"
        return ProcessDied(f"the job's process was killed by {name}", began=began)

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
        self._told_at_s = 0.0
        self._killed: set[int] = set()  # the groups that it says it has killed
        self._closed = False
        self._lock = threading.Lock()

    def tell(self, word: str, group: int = 0, silence_s: float | None = None) -> None:
        """Send one line to the guardian."""
        line = " ".join(str(part) for part in (word, group or None, silence_s) if part is not None).encode() + b"\n"
        with self._lock:
            if self._closed:
                return
            self._told_at_s = time.monotonic()
            if word == "gone":
                self._told.pop(group, None)
                self._killed.discard(group)
            elif group:
                self._told[group] = line
            try:
                self._write(line)
            except OSError:  # the guardian was killed
                self._end()
                self._write(b"".join(self._told.values()))

    def tick(self, every_s: float) -> None:
        """Tell it that this process is alive, if it was told nothing for `every_s`."""
        if time.monotonic() - self._told_at_s >= every_s:
            self.tell("alive")

    def has_killed(self, group: int) -> bool:
        """Whether it has killed this group, which has died."""
        with self._lock:
            self._hear()
            return group in self._killed

    def close(self) -> None:
        """End it; it kills the children that were not reported as gone."""
        with self._lock:
            self._closed = True
            self._end()

    def _end(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._hear()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process.wait()
            self._process = None

    def _write(self, lines: bytes) -> None:
        if self._process is None:
            command = [sys.executable, "-I", "-S", guardian.__file__]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
            )
            assert self._process.stdout is not None
            os.set_blocking(self._process.stdout.fileno(), False)
        assert self._process.stdin is not None
        self._process.stdin.write(lines)

    def _hear(self) -> None:
        if self._process is not None:
            assert self._process.stdout is not None
            self._killed.update(map(int, (self._process.stdout.read() or b"").split()))


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

    A job on a device gets its own process, which sees only that device and releases all its memory when it ends. So does a
    suspect. Other jobs without a device share a process, one after another, while its memory does not grow; if devices are
    configured it sees none.
    """

    def __init__(
        self,
        children: Children,
        devices: Mapping[str, DeviceSettings],
        *,
        module: str,
        name: str,
        lease_s: float,
        limit_bytes: int,
        preemptible: bool = False,
    ) -> None:
        self._children = children
        self._module = module
        self._name = name
        self._devices = devices
        self._silence_s = lease_s * 0.8
        self._limit_bytes = limit_bytes  # of a result: a larger one must not reach the worker's memory
        self.preemptible = preemptible

    isolated = True

    def run(self, context: AttemptContext) -> Any:
        lease = context.lease
        is_alone = lease.placement is not None or lease.is_suspect
        child = self._children.take(self.environment(lease.placement), fresh=is_alone)
        request = {
            "module": self._module,
            "name": self._name,
            "arguments": dict(lease.arguments),
            "job": [lease.job_id, lease.lease, lease.queue, lease.task, lease.attempt, lease.max_attempts],
            "left_s": None if context.deadline_s is None else context.deadline_s - time.monotonic(),
            "limit_bytes": self._limit_bytes,
        }
        try:
            with context.interrupted_by(child.ask_to_stop):
                value = child.run(request, context, silence_s=self._silence_s)
        except BaseException:
            self._children.give_back(child, reuse=False)
            raise
        finally:
            _publish_wait(context, 0)  # a process that died while its task waited could not tell
        self._children.give_back(child, reuse=not is_alone)
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


def _publish_wait(context: AttemptContext, awaited_id: int) -> None:
    """Record which job the task waits for, as a task in this thread would; 0 for none."""
    publish = published_waits()
    if publish is not None:
        publish(context.lease.job_id, awaited_id)


def _value_of(message: Mapping[str, Any]) -> Any:
    if "value" in message:
        return message["value"]
    if "verdict" in message:
        raise verdict_of(message["verdict"])
    if "interrupted" in message:
        raise AttemptInterrupted
    raise IsolatedFailure(**message["error"])
