"""A worker inside another process: one of a host, in the process that serves, gone with it, and never carried over a fork."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from gpuqueue import GPUQueue, UsageError, Worker
from gpuqueue.integrations.in_process import InProcessWorker
from gpuqueue.testing.waiting import DEADLINE_S
from tests.conftest import forks
from tests.processes import started

BINARIES = Path(sys.executable).parent

APP = """
    import os, threading
    from gpuqueue import GPUQueue, current_job
    from gpuqueue.integrations.in_process import InProcessWorker

    gq = GPUQueue("app.db")

    @gq.task(name="where")
    def where() -> int:
        return os.getpid()

    @gq.task(name="long")
    def long() -> None:
        while True:
            current_job().check()
            threading.Event().wait(0.01)
"""
SERVED = """
    InProcessWorker(gq).start()

    def application(environ, start_response):
        if environ["PATH_INFO"] == "/enqueue":
            body = str(where.enqueue().result(timeout_s=120))
        else:
            body = str(os.getpid())
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [body.encode()]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def launch(folder: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`launch(code)` runs a script in the folder, `launch(words=[…])` a program; all are killed at the end."""
    names = (f"script{number}.py" for number in itertools.count())
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)

    with contextlib.ExitStack() as leaving:

        def run(code: str = "", *, words: list[str] | None = None) -> subprocess.Popen[str]:
            if words is None:
                words = [sys.executable, next(names)]
                (folder / words[1]).write_text(textwrap.dedent(APP) + textwrap.dedent(code))
            return leaving.enter_context(started(words, cwd=folder, **pipes))

        yield run


@pytest.fixture
def app_queue(folder: Path) -> Iterator[GPUQueue]:
    """The launched programs' queue, seen from here."""
    with GPUQueue(folder / "app.db") as gq:
        for name in ("where", "long", "isolated"):
            gq.task(name=name)(lambda: None)
        yield gq


def pids(gq: GPUQueue) -> list[int]:
    return [worker.pid for worker in gq.workers() if worker.alive]


STARTED = """
    import logging, sys
    InProcessWorker(gq).start()
    print("started", flush=True)
    sys.stdin.readline()
"""


def test_of_several_processes_one_runs_the_jobs_and_another_takes_over_when_it_is_killed(launch, app_queue, until):
    told = STARTED.replace(
        "import logging, sys", "import logging, sys; logging.basicConfig(level=logging.INFO, stream=sys.stdout)"
    )
    processes = [launch(told) for _ in range(3)]
    heard = [next(line for line in process.stdout if "serves all" in line or "standing by" in line) for process in processes]
    assert ["standing by" in line for line in heard].count(True) == 2
    (first,) = pids(app_queue)
    job = app_queue.enqueue("where", {})
    assert job.result(timeout_s=DEADLINE_S) == first
    os.kill(first, signal.SIGKILL)
    second = app_queue.enqueue("where", {}).result(timeout_s=DEADLINE_S)
    assert second in {process.pid for process in processes} - {first}


def test_without_a_place_to_share_every_process_works(launch, app_queue, until):
    processes = [launch(STARTED.replace("(gq)", "(gq, one_per_host=False)")) for _ in range(2)]
    until(lambda: sorted(pids(app_queue)) == sorted(process.pid for process in processes), "both work")


def test_at_the_end_of_the_process_a_running_job_is_given_back_unspent(launch, app_queue, until):
    process = launch(STARTED.replace("(gq)", "(gq, grace=0)"))
    job = app_queue.enqueue("long", {})
    until(lambda: job.refresh().state == "running", "it runs")
    _out, err = process.communicate("\n", timeout=DEADLINE_S)
    assert (process.returncode, err) == (0, "")
    assert (job.refresh().state, job.attempt) == ("available", 0)
    assert pids(app_queue) == []


def test_starting_again_changes_nothing_and_a_second_one_takes_the_first_ones_place(gq, until, caplog):
    caplog.set_level("INFO", logger="gpuqueue.worker")
    ran = []
    gq.task(name="tell")(lambda: ran.append("first"))
    first = InProcessWorker(gq)
    with first:
        until(lambda: first.is_running, "it runs")
        (before,) = gq.workers()
        assert first.start() is first
        assert [worker.id for worker in gq.workers()] == [before.id]
        again = GPUQueue(gq.database)
        again.task(name="tell")(lambda: ran.append("second"))
        with InProcessWorker(again) as second:
            until(lambda: second.is_running, "the second runs")
            assert not first.is_running
            assert ("running here" in repr(second), "not started here" in repr(first)) == (True, True)
            gq.enqueue("tell").result(timeout_s=DEADLINE_S)
        assert ran == ["second"]
        again.close()
    assert "standing by" not in caplog.text, "the second one began while the first was still there"


@pytest.mark.parametrize(
    ("words", "runs"),
    [
        (["manage.py", "runserver", "--noreload"], True),
        (["manage.py", "migrate"], False),
        (["manage.py", "gpuqueue_worker"], False),
        (["/venv/bin/django-admin", "shell"], False),
        (["/venv/lib/django/__main__.py", "check"], False),
        (["/venv/bin/flask", "--app", "shop", "run"], True),
        (["/venv/bin/flask", "--app", "run", "shell"], False),
        (["/venv/lib/flask/__main__.py", "routes"], False),
        (["/venv/bin/gpuqueue", "worker", "--app", "shop:gq"], False),
        (["/venv/bin/gunicorn", "shop:app"], True),
        (["shop.py"], True),
        ([""], True),
    ],
    ids=str,
)
def test_a_command_that_serves_nothing_runs_no_jobs(gq, monkeypatch, words, runs):
    monkeypatch.setattr(sys, "argv", words)
    with InProcessWorker(gq):
        assert ("gpuqueue-in-process" in [thread.name for thread in threading.enumerate()]) == runs


def test_where_pytest_only_collects_tests_no_jobs_are_run(gq, monkeypatch):
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    with InProcessWorker(gq):
        assert "gpuqueue-in-process" not in [thread.name for thread in threading.enumerate()]


def test_a_task_that_is_declared_or_changed_while_it_runs_is_run_as_it_is_now(gq, until):
    with InProcessWorker(gq) as worker:
        until(lambda: worker.is_running, "it runs")

        def version(number):
            def told() -> int:
                return number

            async def told_later() -> int:
                return number

            return told, told_later

        for number in (1, 2):
            now, later = version(number)
            gq.task(name="now")(now)
            gq.task(name="later")(later)
            assert gq.enqueue("now").result(timeout_s=DEADLINE_S) == number
            assert gq.enqueue("later").result(timeout_s=DEADLINE_S) == number


def test_a_worker_that_cannot_begin_says_why_and_lets_the_application_serve(make_queue, start_worker, until, caplog, monkeypatch):
    tries = []

    class CountedWorker(Worker):
        def run(self) -> None:
            tries.append(self)
            super().run()

    monkeypatch.setattr("gpuqueue.integrations.in_process.AGAIN_S", 0.05)
    monkeypatch.setattr("gpuqueue.integrations.in_process.Worker", CountedWorker)
    other = start_worker(make_queue("[queues.mail]\nconcurrency = 1\n"))
    gq = make_queue("[queues.mail]\nconcurrency = 2\n")
    with InProcessWorker(gq) as worker:
        until(lambda: len(tries) >= 3, "it tries again and again")
        other.stop()
        until(lambda: worker.is_running, "it begins when the other is gone")
    assert caplog.text.count("has different settings") == 1


def test_a_misspelt_option_is_an_error_at_once(gq):
    with pytest.raises(TypeError, match="thread"):
        InProcessWorker(gq, thread=2)
    with pytest.raises(UsageError, match="grace"):
        InProcessWorker(gq, grace="soon")


@forks
def test_a_fork_carries_no_worker_over_and_does_not_keep_a_dead_one_alive(launch, app_queue, until):
    process = launch(
        """
        import sys, time
        worker = InProcessWorker(gq).start()
        while not worker.is_running:
            time.sleep(0.01)
        if os.fork() == 0:
            print(worker.is_running, threading.active_count(), flush=True)
            where.enqueue()
            print("enqueued", flush=True)
            time.sleep(1000)
        os.wait()
        """
    )
    assert process.stdout.readline() == "False 1\n"
    assert process.stdout.readline() == "enqueued\n"
    job = app_queue.enqueue("long")
    until(lambda: job.refresh().state == "running", "it runs")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with GPUQueue(app_queue.database) as gq:
        ran = threading.Event()

        @gq.task(name="long")
        def long() -> None:
            ran.set()

        gq.task(name="where")(os.getpid)
        with InProcessWorker(gq):
            assert ran.wait(DEADLINE_S), "the child holds neither the place nor the dead worker's life"


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["loaded in each worker", "preloaded"])
def test_with_gunicorn_one_of_the_processes_that_serve_runs_the_jobs(launch, folder, app_queue, until, preload):
    (folder / "served.py").write_text(textwrap.dedent(APP + SERVED))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [str(BINARIES / "gunicorn"), "--bind", f"127.0.0.1:{port}", "--workers", "3", *preload, "served:application"]
    process = launch(words=words)
    until(lambda: answers(f"http://127.0.0.1:{port}/"), "it serves")
    ran_in = int(httpx.get(f"http://127.0.0.1:{port}/enqueue", timeout=DEADLINE_S).text)
    assert ran_in != process.pid
    assert pids(app_queue) == [ran_in]
    os.kill(ran_in, signal.SIGKILL)
    assert int(httpx.get(f"http://127.0.0.1:{port}/enqueue", timeout=DEADLINE_S).text) != ran_in
    process.terminate()
    _, err = process.communicate(timeout=DEADLINE_S)
    assert "Traceback" not in err
    assert pids(app_queue) == []


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=DEADLINE_S).is_success
    except httpx.TransportError:
        return False


def test_behind_flasks_reloader_it_runs_in_the_process_that_serves(launch, folder, app_queue, until):
    (folder / "served.py").write_text(
        textwrap.dedent(APP)
        + textwrap.dedent(
            """
            from flask import Flask
            app = Flask(__name__)
            app.get("/")(lambda: str(os.getpid()))
            InProcessWorker(gq).start()
            """
        )
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch(words=[str(BINARIES / "flask"), "--app", "served", "run", "--debug", "--port", str(port)])
    until(lambda: answers(f"http://127.0.0.1:{port}/"), "it serves")
    until(
        lambda: pids(app_queue) == [int(httpx.get(f"http://127.0.0.1:{port}/", timeout=DEADLINE_S).text)],
        "the worker is where it serves",
    )


def test_a_process_that_runs_an_isolated_task_starts_none(launch, folder, app_queue):
    (folder / "isolated.py").write_text(
        textwrap.dedent(APP)
        + textwrap.dedent(
            """
            @gq.task(name="isolated", isolate=True)
            def isolated() -> list[str]:
                worker.start()
                return [thread.name for thread in threading.enumerate()]

            worker = InProcessWorker(gq).start()
            """
        )
    )
    launch(words=[sys.executable, "-c", "import isolated, sys; sys.stdin.readline()"])
    threads = app_queue.enqueue("isolated").result(timeout_s=DEADLINE_S)
    assert "gpuqueue-in-process" not in threads
