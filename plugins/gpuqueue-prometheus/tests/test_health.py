"""The health endpoint: what is ok, degraded or unhealthy, and how it says so."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import timedelta

import pytest
from gpuqueue_prometheus.findings import Problem, Status, backends_wrong, devices_wrong
from gpuqueue_prometheus.health import LOOK_EVERY_S, STUCK_S, Health

from gpuqueue import GPUQueue, StoreError, Task, hookimpl
from gpuqueue.plugins import DeviceSettings, Hold, Wait
from gpuqueue.testing import wait_until
from gpuqueue.testing.views import GB, NOW, backend, device, view
from gpuqueue.testing.waiting import DEADLINE_S

QUEUES = "[queues.mail]\n[queues.work]\n"


def told(served):
    """What /healthz says: (HTTP status, overall, {subject: (status, detail)})."""
    page = served.get("/healthz")
    assert page.content_type.startswith("application/json")
    found = {problem["subject"]: (problem["status"], problem["detail"]) for problem in page.json["problems"]}
    assert page.json["problem_count"] == len(page.json["problems"])
    return page.status, page.json["status"], found


def test_it_is_well_while_a_worker_lives_and_nothing_is_wrong(serve, gq):
    served = serve(gq)
    assert told(served) == (200, "ok", {})


def test_a_queue_that_is_paused_is_well(serve, gq):
    served = serve(gq)
    gq.pause("mail", reason="on purpose")
    gq.task(name="note", queue="mail")(lambda: None).enqueue()
    assert told(served) == (200, "ok", {})


def test_jobs_that_no_live_worker_serves_are_unhealthy(serve, gq):
    served = serve(gq, queues=["work"])
    assert told(served)[0] == 200, "no job waits there"
    gq.task(name="note", queue="mail")(lambda: None).enqueue()
    assert told(served) == (503, "unhealthy", {"queue mail": ("unhealthy", "no worker serves it, and 1 job is waiting")})


def test_a_backend_that_is_away_degrades_until_it_is_back(serve, make_gq, ai_toml, ollama_server):
    served = serve(make_gq(ai_toml))
    ollama_server.go_away()
    wait_until(lambda: told(served)[1] == "degraded", "a worker notices")
    status, _, problems = told(served)
    assert status == 200 and problems.keys() == {"backend ollama"}
    ollama_server.come_back()
    wait_until(lambda: told(served) == (200, "ok", {}), "it is back")


def test_a_lost_device_is_unhealthy(serve, make_gq, ai_toml, simulated_card):
    served = serve(make_gq(ai_toml))
    simulated_card.lost = True
    wait_until(lambda: told(served)[0] == 503, "a worker notices")
    level, detail = told(served)[2]["device gpu0"]
    assert level == "unhealthy" and detail.startswith("cannot be read: ")
    simulated_card.lost = False


def test_a_backend_is_unhealthy_after_five_minutes_in_which_a_queue_has_no_other():
    held = {"ai-batch": [Hold("unavailable", "ollama is unavailable", plugin="availability")]}

    def found(away_s, holds):
        gone = backend(available=False, error="refused", since=NOW - timedelta(seconds=away_s))
        return list(backends_wrong(view(ollama=gone), holds))

    assert found(299, held) == [Problem(Status.DEGRADED, "backend ollama", "unavailable for 299 s: refused")]
    assert found(300, held) == [Problem(Status.UNHEALTHY, "backend ollama", "unavailable for 300 s: refused")]
    assert [problem.status for problem in found(3000, {"ai-batch": []})] == [Status.DEGRADED], "another one does its work"
    assert list(backends_wrong(view(), held)) == []


def test_a_lost_device_only_degrades_while_another_is_left():
    lost = device(lost="it fell off the bus")
    others = view(devices=(lost, device(DeviceSettings("gpu1", budget_bytes=GB))))
    said = "cannot be read: it fell off the bus"
    assert list(devices_wrong(others, {"ai-batch": []})) == [Problem(Status.DEGRADED, "device gpu0", said)]
    held = {"ai-batch": [Hold("device_lost", "no device can be read", plugin="device_health")]}
    assert list(devices_wrong(view(devices=(lost,)), held)) == [Problem(Status.UNHEALTHY, "device gpu0", said)]


class Failing:
    @hookimpl
    def register_services(self, details):
        return {"copy": self.run}

    def run(self, context):
        context.note({"error": "no route"})
        context.stopping.wait()


class Broken:
    @hookimpl
    def queue_hold(self, details):
        if details.queue.name == "mail":
            raise OSError("no answer")


def test_a_service_that_says_that_it_fails_degrades(serve, make_gq):
    served = serve(make_gq(plugins={"failing": Failing()}))
    wait_until(lambda: told(served) == (200, "degraded", {"service copy": ("degraded", "no route")}), "it said so")
    assert served.value("gpuqueue_service_up", "copy") == 0
    assert served.value("gpuqueue_service_up", "prometheus") == 1


def test_a_queue_that_a_broken_plugin_holds_is_unhealthy_whatever_is_only_degraded(serve, make_gq):
    served = serve(make_gq(QUEUES, plugins={"broken": Broken(), "failing": Failing()}))
    wait_until(lambda: "service copy" in told(served)[2], "it said so")
    status, overall, problems = told(served)
    assert (status, overall) == (503, "unhealthy")
    assert problems.keys() == {"queue mail", "service copy"} and "no answer" in problems["queue mail"][1]


@pytest.fixture
def time():
    """A clock that the test turns."""

    class Clock:
        now_s = 1000.0

        def __call__(self):
            return self.now_s

    return Clock()


def nothing() -> None:
    """A write that succeeds."""


class Refusing:
    """Lets no job onto a device, in the worker that has it; other processes do not know why."""

    @hookimpl
    def place_job(self, details):
        return Wait("refused", "not today")


@dataclass
class Stuck:
    """A queue object; its tasks `train`, which is never started, and `block`, which says when it was reached."""

    gq: GPUQueue
    train: Task
    block: Task
    reached: threading.Event


@pytest.fixture
def stuck(make_gpuqueue, simulated_card, start_worker):
    """A worker that starts no job of the queue `train`, for no reason that others know, and those of `mail`."""
    toml = '[gpu]\nbudget = "5GB"\n[queues.train]\ngpu = true\n[queues.mail]\n'
    workers_own = make_gpuqueue(toml, plugins={"refusing": Refusing()})
    gate, reached = threading.Event(), threading.Event()

    def wait():
        reached.set()
        gate.wait(DEADLINE_S)

    workers_own.task(name="block", queue="mail")(wait)
    workers_own.task(name="train", queue="train")(lambda: None)
    start_worker(workers_own)
    gq = make_gpuqueue(toml)
    train = gq.task(name="train", queue="train", vram="1GB")(lambda: None)
    block = gq.task(name="block", queue="mail")(lambda: None)
    wait_until(lambda: gq.is_served("train"), "it serves")
    yield Stuck(gq, train, block, reached)
    gate.set()


def test_a_queue_that_does_not_start_what_it_could_is_unhealthy_after_a_minute(stuck, time):
    health = Health(stuck.gq, nothing, clock=time)
    job = stuck.train.enqueue()
    health.look()
    assert health.report() == (Status.OK, []), "a worker may be about to start it"
    time.now_s += STUCK_S - 1
    health.look()
    assert health.report() == (Status.OK, [])
    time.now_s += LOOK_EVERY_S
    health.look()
    status, (problem,) = health.report()
    assert (status, problem.subject) == (Status.UNHEALTHY, "queue train")
    assert problem.detail.startswith(f"job {job.id} has been ready to start for 64 s, but an idle worker")
    job.cancel()
    time.now_s += LOOK_EVERY_S
    health.look()
    assert health.report() == (Status.OK, [])


def test_a_queue_that_is_held_or_whose_first_job_changes_is_not_stuck(stuck, time):
    health = Health(stuck.gq, nothing, clock=time)
    stuck.train.enqueue()
    health.look()
    stuck.gq.pause("train")
    time.now_s += STUCK_S
    health.look()
    stuck.gq.resume("train")
    time.now_s += LOOK_EVERY_S
    health.look()
    assert health.report() == (Status.OK, []), "its wait begins when it could start"
    stuck.train.using(priority=1).enqueue()
    time.now_s += STUCK_S
    health.look()
    assert health.report() == (Status.OK, []), "another job is the first now"


def test_a_queue_beside_a_busy_worker_is_not_stuck_because_there_may_be_no_room(stuck, time):
    health = Health(stuck.gq, nothing, clock=time)
    stuck.block.enqueue()
    assert stuck.reached.wait(DEADLINE_S)
    stuck.train.enqueue()
    health.look()
    time.now_s += 2 * STUCK_S
    health.look()
    assert health.report() == (Status.OK, [])


def test_it_does_not_look_more_often_than_it_must(stuck, time):
    health = Health(stuck.gq, nothing, clock=time)
    health.look()
    stuck.train.enqueue()
    time.now_s += LOOK_EVERY_S - 1
    health.look()
    time.now_s += STUCK_S
    health.look()
    assert health.report() == (Status.OK, []), "it is first seen now"


def test_a_database_that_cannot_be_written_is_unhealthy(make_gpuqueue, start_worker):
    gq = make_gpuqueue(QUEUES)
    start_worker(gq)

    def refuse() -> None:
        raise StoreError("the disk is full")

    status, (problem,) = Health(gq, refuse).report()
    assert (status, problem.subject, problem.detail) == (
        Status.UNHEALTHY, "database", "cannot be written: the disk is full",
    )  # fmt: skip


def test_a_database_that_cannot_be_read_is_unhealthy(tmp_path):
    (tmp_path / "not-a-database").write_text("what is this? " * 100)
    with GPUQueue(tmp_path / "not-a-database", discover_plugins=False) as gq:
        status, problems = Health(gq, nothing).report()
    assert status is Status.UNHEALTHY
    assert [problem.subject for problem in problems] == ["database"]
    assert problems[0].detail.startswith("cannot be read: ")


def test_without_a_worker_it_is_unhealthy(make_gpuqueue):
    gq = make_gpuqueue(QUEUES)
    gq.task(name="note", queue="mail")(lambda: None).enqueue()
    status, problems = Health(gq, nothing).report()
    assert status is Status.UNHEALTHY
    assert [problem.subject for problem in problems] == ["workers", "queue mail"]
