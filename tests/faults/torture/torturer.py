"""Runs workers and producers, restarts them as a service manager does, and kills and freezes them; judges nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import tests
from gpuqueue import GPUQueue
from gpuqueue.store.sqlite.outcomes import reservations
from tests.crash.stopping import can_write
from tests.faults.torture.kinds import CONFIG, STEPS
from tests.faults.torture.marks import FOLDER, marks
from tests.history import History
from tests.processes import started

LEASE_S = 3.0
PATIENCE_S = 180.0  # without any progress
ROOT = Path(tests.__file__).parent.parent


@dataclass
class Deed:
    """What was done to a process, and when: it could not go on from `began_s` to `ended_s`, or ever again."""

    what: str
    kind: str
    pid: int
    began_s: float
    ended_s: float | None = None


@dataclass
class Slot:
    """The place of one worker or producer, and its process of now."""

    kind: str
    number: int
    process: subprocess.Popen[str] | None = None
    statuses: list[int] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    frozen: Deed | None = None
    frozen_until_s: float = 0.0
    leaving: ExitStack = field(default_factory=ExitStack)

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.frozen is None and self.process.poll() is None


class Torturer:
    """One database, its workers and producers, and what is done to them."""

    def __init__(self, folder: Path, seed: int, *, workers: int, producers: int) -> None:
        self.folder = folder
        (folder / "gpuqueue.toml").write_text(CONFIG.format(lease_s=LEASE_S))
        self.gq = GPUQueue.from_config(folder / "gpuqueue.toml", discover_plugins=False)
        self.history = History(self.gq)
        self.deeds: list[Deed] = []
        self.slots = [Slot("worker", number) for number in range(workers)]
        self.slots += [Slot("producer", number) for number in range(producers)]
        self._chance = random.Random(seed)
        for slot in self.slots:
            self._start(slot)

    def _start(self, slot: Slot) -> None:
        slot.leaving.close()
        environment = {**os.environ, FOLDER: str(self.folder), "PYTHONPATH": str(ROOT)}
        seed = str(self._chance.randrange(2**32))
        if slot.kind == "worker":
            command = [sys.executable, "-m", "gpuqueue", "worker", "--app", "tests.faults.torture.app:gq", "--threads", "4"]
            if slot.number == 0:
                environment[STEPS] = seed
        else:
            name = f"{slot.number}-{len(slot.pids)}"
            command = [sys.executable, "-m", "tests.faults.torture.producer", name, seed, str(LEASE_S)]
        with self.log(slot).open("ab") as log:
            process = started(command, cwd=self.folder, env=environment, stdout=log, stderr=log, longest_s=3600)
            slot.process = slot.leaving.enter_context(process)
        slot.pids.append(slot.process.pid)

    def log(self, slot: Slot) -> Path:
        return self.folder / f"log-{slot.kind}-{slot.number}"

    # --- while they are tortured ---

    def torture(self, for_s: float) -> None:
        """Do something bad to some process again and again, and let all go on at the end."""
        end_s = time.monotonic() + for_s
        deeds: list[tuple[Callable[[str], None], str]] = [
            (deed, kind) for deed in (self._kill, self._freeze, self._halt) for kind in ("worker", "producer")
        ]
        next_s = 0.0
        while time.monotonic() < end_s:
            self._keep()
            if time.monotonic() > next_s:
                deed, kind = self._chance.choices(deeds, (2, 1, 2, 1, 1, 1))[0]
                deed(kind)
                next_s = time.monotonic() + self._chance.uniform(0.5, 5)
            time.sleep(0.02)
        for slot in self.slots:
            self._thaw(slot)

    def _keep(self) -> None:
        """Restart what has ended, and let go on what was frozen for long enough."""
        for slot in self.slots:
            if slot.process is not None and slot.process.poll() is not None:
                slot.statuses.append(slot.process.returncode)
                slot.frozen = None
                self._start(slot)
            if slot.frozen is not None and time.monotonic() > slot.frozen_until_s:
                self._thaw(slot)

    def _kill(self, kind: str) -> None:
        if found := [slot for slot in self.slots if slot.kind == kind and slot.is_running]:
            victim = self._chance.choice(found)
            assert victim.process is not None
            self.deeds.append(Deed("kill", kind, victim.process.pid, time.monotonic()))
            victim.process.kill()

    def _freeze(self, kind: str) -> None:
        """Stop a process for longer than a lease, but not within a write: all others would lose their leases with it."""
        victim = self._stop("freeze", kind, self._chance.uniform(1.2, 2.5))
        if victim is not None and not can_write(self.gq):
            self._thaw(victim)

    def _halt(self, kind: str) -> None:
        """Stop a process wherever it is, in the middle of a write too, for less than a lease."""
        self._stop("halt", kind, self._chance.uniform(0.1, 0.4))

    def _stop(self, what: str, kind: str, leases: float) -> Slot | None:
        found = [slot for slot in self.slots if slot.kind == kind and slot.is_running]
        if not found:
            return None
        victim = self._chance.choice(found)
        assert victim.process is not None
        deed = Deed(what, kind, victim.process.pid, time.monotonic())
        if not _is_stopped(victim.process):
            return None
        self.deeds.append(deed)
        victim.frozen, victim.frozen_until_s = deed, time.monotonic() + leases * LEASE_S
        return victim

    def _thaw(self, slot: Slot) -> None:
        if slot.frozen is not None and slot.process is not None:
            slot.frozen.ended_s = time.monotonic()
            slot.frozen = None
            slot.process.send_signal(signal.SIGCONT)

    # --- afterwards ---

    def drain(self) -> None:
        """Let the producers end and the workers finish everything; then end the workers."""
        (self.folder / "stop").touch()
        self._until(lambda: not any(slot.is_running for slot in self.slots if slot.kind == "producer"), "the producers to end")
        self._until(lambda: not self.living_forks(), "the forked children to end")
        self._until(lambda: not self.unfinished(), "every job to end")
        self._until(lambda: not self.reserved(), "the reservations to be released")
        workers = [slot for slot in self.slots if slot.kind == "worker"]
        # One that has just been started again takes no signal yet, and would end by it.
        self._until(
            lambda: {slot.process and slot.process.pid for slot in workers} <= self._registered(), "the workers to register"
        )
        for slot in workers:
            assert slot.process is not None
            slot.process.send_signal(signal.SIGTERM)
        self._until(lambda: not any(slot.is_running for slot in workers), "the workers to end", restart=False)
        for slot in self.slots:
            assert slot.process is not None
            slot.statuses.append(slot.process.wait())

    def _registered(self) -> set[int]:
        return {worker.pid for worker in self.gq.workers()}

    def _until(self, condition: Callable[[], bool], what: str, *, restart: bool = True) -> None:
        """Wait as long as anything changes; workers that end are restarted."""
        seen, give_up_s = None, 0.0
        while not condition():
            now = (self.gq.counts(), len(marks(self.folder, "runs")))
            if now != seen:
                seen, give_up_s = now, time.monotonic() + PATIENCE_S
            if time.monotonic() > give_up_s:
                self._show_stacks()
                raise AssertionError(f"nothing changed for {PATIENCE_S:g} s, waiting for {what}; {self.account()}")
            for slot in self.slots:
                if restart and slot.kind == "worker" and slot.process is not None and slot.process.poll() is not None:
                    slot.statuses.append(slot.process.returncode)
                    self._start(slot)
            time.sleep(0.2)

    def _show_stacks(self) -> None:
        """Let the producers and their children write where they are, into their logs."""
        for slot in self.slots:
            if slot.kind == "producer" and slot.process is not None:
                slot.process.send_signal(signal.SIGUSR1)
        for pid in self.living_forks():
            os.kill(pid, signal.SIGUSR1)
        time.sleep(1)

    def living_forks(self) -> list[int]:
        ended = {mark["pid"] for mark in marks(self.folder, "child")}
        forked = [mark["child"] for mark in marks(self.folder, "forked")]
        return [pid for pid in forked if pid not in ended and _is_producer(pid)]

    def unfinished(self) -> list[int]:
        with self.gq.store.engine.lent() as connection:
            rows = connection.execute("SELECT id FROM jobs WHERE state NOT IN ('completed', 'cancelled', 'discarded')")
            return [row[0] for row in rows]

    def reserved(self) -> list[object]:
        with self.gq.store.engine.lent() as connection:
            return list(reservations(connection))

    def account(self) -> str:
        counts: Counter[str] = Counter()
        for of_queue in self.gq.counts().values():
            counts.update(of_queue)
        deeds = Counter(f"{deed.what} {deed.kind}" for deed in self.deeds)
        noted = {name: len(marks(self.folder, name)) for name in ("stored", "refused", "interrupted", "forked", "runs")}
        return f"jobs {dict(counts)}, deeds {dict(deeds)}, noted {noted}, statuses {[slot.statuses for slot in self.slots]}"

    def close(self) -> None:
        for slot in self.slots:
            self._thaw(slot)
            slot.leaving.close()
        self.gq.close()


def _is_stopped(process: subprocess.Popen[str]) -> bool:
    """Stop a process; returns False if it had ended."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    return process.poll() is None


def _is_producer(pid: int) -> bool:
    """Whether the process is there, and no other that has got its number."""
    try:
        return b"torture.producer" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
