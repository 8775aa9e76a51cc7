"""Every reason that there is, told with its numbers and until when; one row for each, and no reason without a row."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

import gpuqueue
from gpuqueue.contract.hookspecs import hookimpl
from gpuqueue.contract.plugin_set import Plugins
from gpuqueue.decisions.evaluation import explain, limited
from gpuqueue.decisions.policies import default_policies
from gpuqueue.domain import estimates
from gpuqueue.domain.device import DeviceProcess, Reading, Resident
from gpuqueue.domain.estimates import work_key
from gpuqueue.domain.explanation import QueueContext, RunningJob, Work
from gpuqueue.domain.job import Job, JobErrorRecord, State
from gpuqueue.domain.moments import until
from gpuqueue.domain.settings import QueueSettings, Rate, WindowRule
from gpuqueue.domain.view import DeviceView, Estimate, Pause, QueueView, WorkerInfo
from gpuqueue.testing.views import BATCH, GB, GPU0, MAIL, NOW, REALTIME, backend, job, reservation, view

HERE = WorkerInfo("w", "desk", 1, None, NOW, NOW + timedelta(minutes=1), "", True)
IN_A_MINUTE = NOW + timedelta(minutes=1)
GENERATE = job(model="gemma4:e4b", demand_bytes=4_500_000_000)
LATER = replace(GENERATE, state=State.SCHEDULED, scheduled_at=IN_A_MINUTE)
BLENDER = DeviceProcess(812, 5 * GB, "blender")
RUNNING = replace(reservation(), task="ollama.generate")
PREEMPTIBLE = replace(RUNNING, preemptible=True, started_at=NOW - timedelta(seconds=30))
CARD = Reading(NOW, total_bytes=8 * GB, free_bytes=7 * GB)
ALONE = QueueContext()


class Broken:
    @hookimpl
    def place_job(self, details):
        raise RuntimeError("oops")


def card(*reservations, settings=GPU0, reading=CARD, residents=()):
    return DeviceView(settings, reading, reservations=reservations, residents=residents)


def batch(**changes):
    """The queue of the job that waits."""
    counts = {name: changes.pop(name) for name in ("running_count", "paused", "served", "rate_level") if name in changes}
    rates = {name: changes.pop(name) for name in ("rate_before", "rate_at") if name in changes}
    return QueueView(replace(BATCH, **changes), **counts, **rates)


def told(waiting, *queues, devices=None, ollama=None, context=ALONE, known=None, mine=()):
    """Explain a job in a situation, in which the queues that are not named are idle."""
    named = {queue.settings.name: queue for queue in (QueueView(REALTIME), QueueView(BATCH), QueueView(MAIL), *queues)}
    seen = view(*named.values(), devices=(card(),) if devices is None else devices, ollama=ollama)
    seen = replace(seen, workers=(HERE,), estimates=known or {})
    plugins = Plugins(default_policies(), discover=False)
    for number, plugin in enumerate(mine):
        plugins.register(plugin, f"mine{number}")
    return explain(waiting, limited(seen, plugins), plugins, context, worker_command="gpuqueue worker")


# reason → (the situation, what is said, until when)
ROWS = {
    "scheduled": (
        lambda: told(replace(GENERATE, state=State.SCHEDULED, scheduled_at=IN_A_MINUTE)),
        "not due",
        IN_A_MINUTE,
    ),
    "retryable": (
        lambda: told(
            replace(
                GENERATE,
                state=State.RETRYABLE,
                scheduled_at=IN_A_MINUTE,
                error=JobErrorRecord("error", "no luck"),
                waiting_for="ollama",
            )
        ),
        "no luck; waiting for ollama",
        IN_A_MINUTE,
    ),
    "no_worker": (lambda: told(GENERATE, batch(served=False)), "no worker serves queue 'ai-batch'", None),
    "worker_gone": (
        lambda: told(replace(GENERATE, state=State.RUNNING, worker_id="x")),
        "its worker x is no longer running; another worker will take over the job",
        None,
    ),
    "paused": (
        lambda: told(GENERATE, batch(paused=Pause("ana", "inventory", NOW, IN_A_MINUTE))),
        "paused by ana (inventory)",
        IN_A_MINUTE,
    ),
    "window": (
        lambda: told(GENERATE, batch(pause=("09:00-18:00",))),
        "paused 09:00-18:00 UTC",
        NOW.replace(hour=18),
    ),
    "window_near": (
        lambda: told(
            GENERATE,
            batch(pause=("12:05-18:00",), overrun="dont_start"),
            known={(estimates.RUN, work_key("ai-batch", "ollama.generate", "gemma4:e4b")): Estimate(600.0, 5)},
        ),
        "usually runs for 10m, but a pause starts in 5m; it must wait",
        NOW.replace(hour=18),
    ),
    "rate": (
        lambda: told(GENERATE, batch(rate=Rate(2, per_s=60), rate_before=0.5, rate_at=NOW)),
        "at its rate limit of 2 in 1m",
        NOW + timedelta(seconds=15),
    ),
    "concurrency": (
        lambda: told(
            GENERATE,
            batch(running_count=2, concurrency=3, windows=(WindowRule("09:00-18:00", concurrency=2),)),
            context=QueueContext(running=(RunningJob(5, "ollama.generate", NOW), RunningJob(6, "ollama.generate", NOW))),
        ),
        "ai-batch is at its concurrency limit: 2 of 2 running (job 5, job 6); limit set by its window 09:00-18:00 UTC",
        None,
    ),
    "threads": (
        lambda: told(job(queue="mail"), context=QueueContext(busy=tuple(RunningJob(n, "send", NOW) for n in range(1, 8)))),
        "all 7 threads are busy: job 1, job 2, job 3, job 4, job 5, …",
        None,
    ),
    "yielding": (
        lambda: told(GENERATE, QueueView(REALTIME, running_count=1, waiting_count=3)),
        "ai-realtime comes first (1 running, 3 waiting)",
        None,
    ),
    "unavailable": (
        lambda: told(GENERATE, ollama=backend(available=False, error="nothing listens", retry_at=NOW + timedelta(hours=7))),
        "ollama: nothing listens; next check at 19:00",
        None,
    ),
    "device_lost": (
        lambda: told(GENERATE, devices=(card(reading=Reading(NOW, lost="the card fell off the bus")),)),
        "no device can be read: gpu0: the card fell off the bus",
        None,
    ),
    "device_busy": (
        lambda: told(GENERATE, devices=(card(replace(RUNNING, preempt_requested=True)),)),
        "gpu0 is running job 7 (ai-batch), which is being preempted",
        None,
    ),
    "device_busy, restarted work": (
        lambda: told(replace(GENERATE, queue="ai-realtime"), devices=(card(PREEMPTIBLE),)),
        "gpu0 is running job 7 (ai-batch). Job 7: it may go on for an unknown time, and stopping it throws away 30 s of work",
        None,
    ),
    "passed": (
        lambda: told(replace(GENERATE, passed_at=NOW - timedelta(seconds=90)), devices=(card(RUNNING),)),
        "jobs for a loaded model start before it, until then at the latest (affinity)",
        NOW + timedelta(seconds=30),
    ),
    "suspect": (
        lambda: told(job(queue=MAIL.name, error=JobErrorRecord("crashed", "worker w died (unlocked)"))),
        "worker w died (unlocked); it runs next in its own process, at a worker that knows ollama.generate; at most 2 such",
        None,
    ),
    "clean_up": (
        lambda: told(GENERATE, devices=(card(replace(RUNNING, running=False)),)),
        "waiting for job 7's memory on gpu0 to be released",
        None,
    ),
    "max_models": (
        lambda: told(
            replace(GENERATE, model="small", demand_bytes=GB),
            devices=(card(replace(RUNNING, reserved_bytes=GB), settings=replace(GPU0, slots=2)),),
        ),
        "gpu0 is running gemma4:e4b and holds at most 1 model",
        None,
    ),
    "parallel": (
        lambda: told(
            GENERATE,
            devices=(card(RUNNING, settings=replace(GPU0, slots=2)),),
            ollama=backend(num_parallel=1),
        ),
        "gemma4:e4b runs at most 1 job at once; gpu0 is running job 7 (ai-batch)",
        None,
    ),
    "vram": (
        lambda: told(
            replace(GENERATE, model="small", demand_bytes=GB),
            devices=(card(RUNNING, settings=replace(GPU0, slots=2, max_models=2)),),
        ),
        "needs 1 GB; 500 MB of gpu0's budget is free",
        None,
    ),
    "memory_taken": (
        lambda: told(
            GENERATE,
            devices=(card(reading=replace(CARD, free_bytes=2 * GB, processes=(DeviceProcess(812, 5 * GB, "blender"),))),),
        ),
        "needs 4.77 GB including the reserve; gpu0 has 2 GB free (read 0 s ago). Largest users: blender (pid 812, 5 GB)",
        None,
    ),
    "never_fits": (
        lambda: told(replace(GENERATE, demand_bytes=6 * GB)),
        "needs 6 GB; gpu0's budget is 5 GB. Raise [gpu] budget or use a smaller model",
        None,
    ),
    "no_device": (
        lambda: told(replace(GENERATE, wanted_device="fast")),
        "unknown device 'fast'. Devices: gpu0",
        None,
    ),
    "behind": (
        lambda: told(GENERATE, context=QueueContext((Work("ai-batch", "ollama.generate", "gemma4:e4b", 3),))),
        "3 jobs in ai-batch are ahead of it",
        None,
    ),
    "plugin_failed": (lambda: told(GENERATE, mine=(Broken(),)), "plugin 'mine0' failed in place_job: RuntimeError: oops", None),
}


@pytest.mark.parametrize("reason", ROWS)
def test_a_reason_is_told_with_its_numbers_and_until_when(reason: str) -> None:
    situation, detail, end = ROWS[reason]
    explanation = situation()
    found = next(hold for hold in explanation.reasons if hold.reason == reason.partition(", ")[0])
    assert found.detail.startswith(detail)
    assert found.until == end
    assert f"  - {found.reason}: {found.detail}{until(end, now=NOW)}" in str(explanation).splitlines()


def reasons_in_the_code() -> Iterator[str]:
    """The first argument of every Hold and Wait that is made with a text."""
    package = Path(gpuqueue.__file__).parent
    for path in [*(package / "decisions").rglob("*.py"), *(package / "domain").glob("*.py"), *(package / "worker").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Name(id="Hold" | "Wait"), args=[ast.Constant(value=reason), *_]):
                    yield reason


def test_every_reason_has_a_row() -> None:
    assert set(reasons_in_the_code()) == {reason.partition(", ")[0] for reason in ROWS}


def test_nothing_is_said_of_a_job_that_only_has_to_be_picked_up() -> None:
    assert str(told(GENERATE)) == "job 1: ready; a worker will pick it up shortly"
    assert str(told(job(queue="mail", task="send"))) == "job 1: ready; a worker will pick it up shortly"


def test_that_every_device_is_lost_is_said_once_and_what_else_keeps_the_job_besides() -> None:
    lost = Reading(NOW, lost="the card fell off the bus")
    second = card(settings=replace(GPU0, name="gpu1", index=1), reading=lost)

    def reasons(asked: Job, *devices: DeviceView) -> list[str]:
        return [hold.reason for hold in told(asked, devices=devices).reasons]

    assert reasons(GENERATE, card(reading=lost), second) == ["device_lost"]
    assert reasons(replace(GENERATE, demand_bytes=6 * GB), card(reading=lost), second) == ["device_lost", "never_fits"]
    # The queue goes on with the other card, and only this job waits.
    assert reasons(replace(GENERATE, wanted_device="gpu1"), card(), second) == ["device_lost"]


def test_a_queue_that_needs_a_device_and_has_none_is_told() -> None:
    assert "queue 'train' has gpu = true, but no [gpu] is configured" in str(
        told(replace(GENERATE, queue="train"), QueueView(QueueSettings("train", gpu=True)), devices=())
    )


def test_the_example_of_the_readme_is_what_is_said() -> None:
    waiting = replace(GENERATE, id=12, queue="ai-realtime")
    known = {(estimates.RUN, work_key("ai-realtime", "ollama.generate", "gemma4:e4b")): Estimate(6.0, 5)}
    ahead = QueueContext((Work("ai-realtime", "ollama.generate", "gemma4:e4b", 2),))
    loaded = (Resident("gemma4:e4b", 4 * GB, 4 * GB),)
    busy = card(replace(RUNNING, job_id=9, preempt_requested=True), residents=loaded)
    text = str(told(waiting, devices=(busy,), context=ahead, known=known))
    readme = (Path(gpuqueue.__file__).parents[1] / "README.md").read_text()
    assert f"```text\n{text}\n```" in readme, text
