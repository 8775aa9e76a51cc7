"""`manage.py gpuqueue_worker` as a process: signals, a kill, several at once, a batch, a limit, and new code."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuqueue import JobHandle
from gpuqueue.testing.waiting import DEADLINE_S
from tests.integrations.django.project import Project

Until = Callable[..., Any]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A project whose queue lives in the app's file."""
    made = Project.make(tmp_path)
    made.gq.counts()
    yield made
    made.end()


def ended(project: Project, process: Any) -> str:
    """Wait for a worker that ends in good order; returns its log."""
    assert process.wait(DEADLINE_S) == 0, project.output(process)
    return project.output(process)


def states(*jobs: JobHandle) -> list[str]:
    return [str(job.refresh().state) for job in jobs]


def error_of(job: JobHandle) -> str:
    assert job.error is not None
    return job.error.message


def test_a_batch_runs_all_there_is_and_ends(project: Project) -> None:
    added, failed = project.enqueue("add", 1, b=2), project.enqueue("fail", "value")
    left, interrupted = project.enqueue("fail", "exit"), project.enqueue("fail", "interrupt")
    other = project.enqueue("add", 1, queue="other")
    connected = [project.enqueue("use_database") for _ in range(4)]
    ended(project, project.start("gpuqueue_worker", "--batch", "--threads", "1"))
    assert (added.result(timeout_s=DEADLINE_S), other.result(timeout_s=DEADLINE_S)) == (3, 1)
    assert states(failed, left, interrupted) == ["discarded"] * 3, "what would end a process ends a task"
    assert [error_of(job) for job in (failed, left, interrupted)] == ["ValueError: odd", "SystemExit: bye", "KeyboardInterrupt"]
    assert [job.result(timeout_s=DEADLINE_S) for job in connected] == [False] * 4, "Django's are closed around each task"
    said = (project.folder / "tasks.log").read_text()
    assert said.count(f"id={added.id}-") == 2, "running and successful"
    assert "ValueError: odd" in said
    ended(project, project.start("gpuqueue_worker", "--batch"))


def test_an_isolated_task_has_a_process_with_django_of_its_own(project: Project) -> None:
    done, failed, died = (project.enqueue("alone", name) for name in ("done", "fails", "dies"))
    worker = project.start("gpuqueue_worker", "--batch", "--threads", "1")
    ended(project, worker)
    assert done.result(timeout_s=DEADLINE_S).startswith(f"{done.id}-")
    assert states(failed, died) == ["discarded"] * 2
    assert error_of(failed) == "ValueError: odd"
    assert died.error is not None and died.error.code == "process_died"
    pids = {int((project.folder / f"{name}.pid").read_text()) for name in ("done", "fails", "dies")}
    assert worker.pid not in pids
    said = (project.folder / "tasks.log").read_text()
    assert said.count(f"id={done.id}-") == 2, "running and successful"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_a_running_task_end(project: Project, until: Until, number: signal.Signals) -> None:
    job = project.enqueue("wait", "gate")
    worker = project.start("gpuqueue_worker")
    until(lambda: project.is_reached("gate"), "the task runs")
    assert states(job) == ["running"]
    worker.send_signal(number)
    until(lambda: "stopping" in project.output(worker), "the worker has heard the signal")
    assert worker.poll() is None
    project.let_go("gate")
    ended(project, worker)
    assert states(job) == ["completed"]


def test_a_signal_ends_an_idle_worker(project: Project, until: Until) -> None:
    worker = project.start("gpuqueue_worker")
    until(project.gq.workers, "the worker is there")
    worker.terminate()
    ended(project, worker)


def test_the_second_ctrl_c_gives_the_running_task_back(project: Project, until: Until) -> None:
    job = project.enqueue("hang", "hanging")
    worker = project.start("gpuqueue_worker")
    until(lambda: project.is_reached("hanging"), "the task runs")
    worker.send_signal(signal.SIGINT)
    until(lambda: "stopping" in project.output(worker), "the worker has heard the first")
    assert states(job) == ["running"]
    worker.send_signal(signal.SIGINT)
    ended(project, worker)
    assert states(job) == ["available"], "it runs anew"
    assert (job.attempt, [outcome for outcome, _ in project.attempts(job)]) == (0, ["released"])


def test_what_a_killed_worker_ran_is_run_by_another(project: Project, until: Until) -> None:
    job = project.enqueue("wait", "gate")
    worker = project.start("gpuqueue_worker")
    until(lambda: project.is_reached("gate"), "the task runs")
    worker.kill()
    assert worker.wait(DEADLINE_S) == -signal.SIGKILL
    project.let_go("gate")
    ended(project, project.start("gpuqueue_worker", "--max-tasks", "1"))
    assert job.result(timeout_s=DEADLINE_S) == "waited"
    ((outcome, dead),) = project.attempts(job)
    assert outcome == "crashed"
    assert dead != job.record.worker_id


def test_several_workers_share_the_tasks_and_run_each_once(project: Project, until: Until) -> None:
    workers = [project.start("gpuqueue_worker") for _ in range(3)]
    until(lambda: len(project.gq.workers()) == 3, "all of them are there")
    jobs = [project.enqueue("add", number) for number in range(300)]
    assert [job.result(timeout_s=DEADLINE_S) for job in jobs] == list(range(300))
    for worker in workers:
        worker.terminate()
    for worker in workers:
        ended(project, worker)
    assert all(job.refresh().attempt == 1 for job in jobs)
    given_back = {outcome for job in jobs for outcome, _ in project.attempts(job)}
    assert given_back <= {"released"}, "one that was claimed ahead and found no thread"
    assert len({job.record.worker_id for job in jobs}) > 1
    said = (project.folder / "tasks.log").read_text()
    assert all(said.count(f"id={job.id}-") == 2 for job in jobs)


def test_a_worker_ends_after_so_many_tasks_and_runs_no_more(project: Project) -> None:
    jobs = [project.enqueue("add", number) for number in range(30)]
    ended(project, project.start("gpuqueue_worker", "--max-tasks", "7"))
    assert (states(*jobs).count("completed"), states(*jobs).count("available")) == (7, 23)
    assert {job.attempt for job in jobs} == {0, 1}


def test_a_worker_serves_the_queues_that_it_is_told(project: Project) -> None:
    jobs = [project.enqueue("add", 1, queue=name) for name in ("mail", "night", "other")]
    ended(project, project.start("gpuqueue_worker", "--batch", "--queue-name", "mail, not-there-yet"))
    assert states(*jobs) == ["completed", "available", "available"]
    ended(project, project.start("gpuqueue_worker", "--batch", "--exclude-queues", "night"))
    assert states(*jobs) == ["completed", "available", "completed"]


def test_a_worker_begins_anew_with_new_code_and_outlives_mistakes_in_it(project: Project, until: Until) -> None:
    worker = project.start("gpuqueue_worker", "--reload")
    assert project.enqueue("version").result(timeout_s=DEADLINE_S) == "first"
    hanging = project.enqueue("hang", "hanging")
    until(lambda: project.is_reached("hanging"), "a task runs when the code changes")
    tasks = project.folder / "shop" / "tasks.py"
    tasks.write_text(tasks.read_text().replace('return "first"', 'return "second"').replace("while True:", "while False:"))
    assert hanging.result(timeout_s=DEADLINE_S) is None, "what ran was given back, and runs with the new code"
    assert (hanging.refresh().attempt, [outcome for outcome, _ in project.attempts(hanging)]) == (1, ["released"])
    assert project.enqueue("version").result(timeout_s=DEADLINE_S) == "second"
    mended = tasks.read_text().replace('return "second"', 'return "third"')
    tasks.write_text(mended + "def broken(:\n")
    until(lambda: "SyntaxError" in project.output(worker), "the mistake is told")
    tasks.write_text(mended)
    assert project.enqueue("version").result(timeout_s=DEADLINE_S) == "third"
    project.folder.joinpath("shop", "__init__.py").write_text("broken(")
    until(lambda: "waiting for a change" in project.output(worker), "one that not even Django could start with is told too")
    project.folder.joinpath("shop", "__init__.py").write_text("")
    tasks.write_text(mended.replace('return "third"', 'return "fourth"'))
    assert project.enqueue("version").result(timeout_s=DEADLINE_S) == "fourth"
    worker.terminate()
    worker.wait(DEADLINE_S)
