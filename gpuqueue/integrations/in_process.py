"""Runs a worker inside a process that has other work too: elects one process per host, and stops when the process ends.

Runs no job itself, and never carries a worker across a fork.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any

from gpuqueue.client.queue import GPUQueue
from gpuqueue.domain.errors import GPUQueueError
from gpuqueue.domain.units import Duration, parse_duration
from gpuqueue.executors import child
from gpuqueue.worker import Worker

try:
    import fcntl
except ImportError:  # Windows: one process
    fcntl = None  # type: ignore[assignment]

__all__ = ["InProcessWorker"]

AGAIN_S = 1.0  # between checks whether the host's lock is free, and between attempts to start
LOCK = "in-process.lock"
logger = logging.getLogger("gpuqueue.worker")


class InProcessWorker:
    """A worker in the background of a web process, a notebook, or any program.

    Call `start()` where the process starts to serve; it returns at once, and calling it again has no effect. With
    `one_per_host`, one of the processes on this host that share the database runs the worker; another takes over when that
    process ends, however it ends. The worker starts only in processes that serve. It does not start in a reloader's parent,
    in gunicorn's master (with `--preload` it starts in gunicorn's workers), in a process that runs an isolated task, where
    pytest collects tests, or in a command of `manage.py`, `flask` or `gpuqueue` that serves nothing: one whose name does not
    start with `run`. After any other fork it does not run in the child; call `start()` there if the child serves. When the
    process ends, running jobs have `grace` to finish; the rest return to the queue without spending an attempt. A worker that
    cannot start, for example because of other settings, logs why and is retried: it does not keep the application from serving.

    In a notebook, a second one for the same database replaces the first.
    """

    def __init__(self, gq: GPUQueue, *, one_per_host: bool = True, grace: Duration = 5, **options: Any) -> None:
        """Prepare a worker; `options` are those of Worker: `queues`, `threads`, `accept_config`."""
        self._gq = gq
        self._one_per_host = one_per_host
        self._grace_s = parse_duration(grace, what="grace")
        self._options = options
        Worker(gq, **options)  # a misspelt option is an error here, not in a thread
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._worker: Worker | None = None
        self._told = ""

    @property
    def is_running(self) -> bool:
        """Whether this process is the one that runs jobs."""
        return self._worker is not None and bool(self._worker.id)

    def start(self) -> InProcessWorker:
        """Start to run jobs here, or to stand by until this host's lock is free; returns at once."""
        command = _program_and_command()
        if child.is_child or _is_reloaders_parent(*command) or _serves_nothing(*command):
            return self
        if _is_preloading_master():
            _preloaded[self._gq.database] = self
            return self
        while (before := self._take_place()) is not None:
            before.stop()
        _stop_all_at_exit()
        return self

    def _take_place(self) -> InProcessWorker | None:
        """Start, unless started already; if this process has another one for the database, return that one instead."""
        with _started_lock:
            before = _started.get(self._gq.database)
            if before is not None and before is not self:
                return before
            if self._thread is None or not self._thread.is_alive() or self._stopping.is_set():
                _started[self._gq.database] = self
                self._stopping = threading.Event()
                self._thread = threading.Thread(target=self._run, args=(self._stopping,), name="gpuqueue-in-process", daemon=True)
                self._thread.start()
        return None

    def stop(self, grace_s: float | None = None) -> None:
        """Let running jobs finish within the grace, return the rest to the queue unspent, and release this host's lock."""
        self._stopping.set()
        worker = self._worker
        if worker is not None:
            worker.stop(grace_s=self._grace_s if grace_s is None else grace_s)
        if self._thread is not None:
            self._thread.join()
        with _started_lock:
            if _started.get(self._gq.database) is self:
                del _started[self._gq.database]

    def __repr__(self) -> str:
        is_started = self._thread is not None and not self._stopping.is_set()
        what = "running here" if self.is_running else "standing by" if is_started else "not started here"
        return f"<InProcessWorker of {self._gq.database}: {what}>"

    def __enter__(self) -> InProcessWorker:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- the thread ---

    def _run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            try:
                with _place(self._gq.store.runtime_dir, one_per_host=self._one_per_host) as is_mine:
                    if is_mine:
                        self._work(stopping)
                    else:
                        self._tell(logging.INFO, "another process on this host runs the worker; this one is standing by")
            except (GPUQueueError, OSError) as error:
                self._tell(logging.ERROR, f"cannot run the worker in this process, will retry: {error}")
            except Exception:
                logger.exception("the worker in this process failed; restarting it")
            stopping.wait(AGAIN_S)

    def _tell(self, level: int, message: str) -> None:
        if message != self._told:
            logger.log(level, "%s", message)
            self._told = message

    def _work(self, stopping: threading.Event) -> None:
        worker = self._worker = Worker(self._gq, **self._options)
        try:
            if not stopping.is_set():
                worker.run()
        finally:
            self._worker = None
            if worker.id:  # it has run: what keeps it from running now is news
                self._told = ""


@contextlib.contextmanager
def _place(runtime_dir: Path, *, one_per_host: bool) -> Iterator[bool]:
    """Hold this host's lock while the block runs, if it is free; the system releases it when the process dies."""
    if not one_per_host or fcntl is None:
        yield True
        return
    with open(runtime_dir / LOCK, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        _locks.add(file)
        try:
            yield True
        finally:
            _locks.discard(file)


# --- where it must not run ---


_PROGRAMS = {"manage": "manage.py", "django-admin": "manage.py", "django": "manage.py", "flask": "flask", "gpuqueue": "gpuqueue"}
_WITH_VALUE = ("-A", "--app", "-e", "--env-file", "--config", "--database")  # options that may stand before a command


def _program_and_command() -> tuple[str, str]:
    """Return which program with commands this process is, and the command it runs; "" for any other program."""
    file = Path(sys.argv[0] if sys.argv else "")
    program = _PROGRAMS.get(file.parent.name if file.name == "__main__.py" else file.stem, "")
    words = iter(sys.argv[1:])
    for word in words:
        if not word.startswith("-"):
            return program, word
        if word in _WITH_VALUE:
            next(words, None)
    return program, ""


def _serves_nothing(program: str, command: str) -> bool:
    # While pytest imports an application, or sets Django up, its tests have not started.
    is_preparing_tests = "_pytest" in sys.modules and "PYTEST_CURRENT_TEST" not in os.environ
    return is_preparing_tests or (bool(program) and not command.startswith("run"))


def _is_reloaders_parent(program: str, command: str) -> bool:
    """Whether this process only watches files for Django's or Flask's development server and restarts the serving process."""
    words = sys.argv[1:]
    if program == "manage.py":
        return command == "runserver" and "--noreload" not in words and os.environ.get("RUN_MAIN") != "true"
    if program == "flask":
        debug = os.environ.get("FLASK_DEBUG", "").lower() not in ("", "0", "false", "no") or "--debug" in words
        reloads = command == "run" and (debug or "--reload" in words) and "--no-reload" not in words and "--no-debug" not in words
        return reloads and os.environ.get("WERKZEUG_RUN_MAIN") != "true"
    return False


def _is_preloading_master() -> bool:
    """Whether gunicorn loads the application in its master, which forks the processes that serve."""
    if "gunicorn.arbiter" not in sys.modules:
        return False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "gunicorn.arbiter" and frame.f_code.co_name == "setup":
            return True
        frame = frame.f_back
    return False


# --- this process ---

_started: dict[Path, InProcessWorker] = {}  # by database
_started_lock = threading.Lock()
_preloaded: dict[Path, InProcessWorker] = {}  # by database: to be started in what gunicorn forks
_locks: set[IO[bytes]] = set()
_exit_watch: threading.Thread | None = None


def _stop_all_at_exit() -> None:
    """Stop when the main thread has ended: earlier than `atexit`, when no thread may start any more."""
    global _exit_watch
    with _started_lock:
        if _exit_watch is None:
            _exit_watch = threading.Thread(target=_stop_after_main_thread, name="gpuqueue-exit", daemon=False)
            _exit_watch.start()


def _stop_after_main_thread() -> None:
    threading.main_thread().join()
    for worker in list(_started.values()):
        worker.stop()


def _after_fork_in_child() -> None:
    global _started_lock, _exit_watch
    _started_lock, _exit_watch = threading.Lock(), None
    for file in list(_locks):
        file.close()  # the lock stays the parent's
    _locks.clear()
    for worker in _started.values():
        worker._thread = worker._worker = None
    _started.clear()
    waiting = list(_preloaded.values())
    _preloaded.clear()
    for worker in waiting:
        worker.start()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
