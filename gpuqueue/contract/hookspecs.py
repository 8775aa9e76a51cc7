"""Defines the hooks: when each is called, its argument and its answer; calls none of them.

Every hook takes one argument, `details`, a frozen object that may gain fields but never loses one. Hooks never run inside a
write transaction. Where only one answer counts (`firstresult`), the plugin registered last is called first, so a third party's
answer comes before the defaults'; return None to pass. `plugins/HOOKS.md` is generated from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpuqueue.contract.details import (
    PROJECT,
    AttemptFailedDetails,
    ChoosePreemptionsDetails,
    CleanUpAttemptDetails,
    ConfigureDetails,
    JobDemandDetails,
    OrderCandidatesDetails,
    PlaceJobDetails,
    PrepareAttemptDetails,
    QueueHoldDetails,
    QueueLimitsDetails,
    RegisterCommandsDetails,
    RegisterDevicesDetails,
    RegisterExecutorsDetails,
    RegisterServicesDetails,
    RetentionDetails,
    Service,
    ServiceContext,
    WaitingJob,
    hookimpl,
    hookspec,
)
from gpuqueue.contract.events import Events
from gpuqueue.domain.answers import CleanUp, Demand, Hold, Limits, Placement, Preemption, Wait
from gpuqueue.domain.job import Job, State
from gpuqueue.domain.verdicts import Discard, Retry, Snooze

if TYPE_CHECKING:
    from gpuqueue.contract.device import Device
    from gpuqueue.contract.executor import Executor

__all__ = [
    "EVENT_NAMES",
    "HOOK_NAMES",
    "PROJECT",
    "SPECIFICATIONS",
    "AttemptFailedDetails",
    "ChoosePreemptionsDetails",
    "CleanUpAttemptDetails",
    "ConfigureDetails",
    "JobDemandDetails",
    "OrderCandidatesDetails",
    "PlaceJobDetails",
    "PrepareAttemptDetails",
    "QueueHoldDetails",
    "QueueLimitsDetails",
    "RegisterCommandsDetails",
    "RegisterDevicesDetails",
    "RegisterExecutorsDetails",
    "RegisterServicesDetails",
    "RetentionDetails",
    "Service",
    "ServiceContext",
    "WaitingJob",
    "hookimpl",
    "hookspec",
]


class Decisions:
    """Answered from the view, without side effects; one that raises holds its queue, with the error as the reason.

    They are called often and by several processes, so they must answer immediately, give the same answer for the same view, and
    keep no state.
    """

    @hookspec
    def queue_hold(self, details: QueueHoldDetails) -> Hold | None:
        """Return why the queue may not start jobs now; every answer counts, and jobs start only if all are None.

        Called for every queue: by a worker at least once a second while the queue has work, and by other processes, for example
        for `gpuqueue status` and `job.explain()`. Returns: a Hold; people read its `reason`, `detail` and `advice`, decisions use
        only its other fields: with `until`, or `ends_with_jobs`, a start time is estimated for the jobs that wait. An exception
        holds the queue, with the reason "plugin_failed".

        Example:
            class Inventory:
                @hookimpl
                def queue_hold(self, details):
                    return Hold("inventory", "we count") if details.queue.name == "mail" else None

            gq = queue_with(Inventory())
            job = gq.enqueue("send")
            assert "inventory: we count" in str(run(gq)[job.id])
        """

    @hookspec
    def queue_limits(self, details: QueueLimitsDetails) -> Limits | None:
        """Tighten the queue's concurrency or rate now; the tightest of several answers counts.

        Called for every queue before each decision. Returns: Limits; None in it keeps the configured value, and a looser limit
        than configured has no effect. An exception holds the queue, with the reason "plugin_failed".

        Example:
            class Trial:
                @hookimpl
                def queue_limits(self, details):
                    return Limits(rate=Rate(1, per_s=3600), reason="a trial") if details.queue.name == "mail" else None

            gq = queue_with(Trial())
            first, second = gq.enqueue("send"), gq.enqueue("send")
            assert list(run(gq)) == [second.id]
        """

    @hookspec(firstresult=True)
    def job_demand(self, details: JobDemandDetails) -> Demand | None:
        """Return the job's device requirements.

        Called by a worker once for each job of a GPU queue, before the job is placed, and again after it ran out of memory. The
        default answers with the job's own request, its model's configuration, or what was learned. An exception holds the queue
        until the job's demand is known.

        Example:
            class Guess:
                @hookimpl
                def job_demand(self, details):
                    return Demand(vram_bytes=2_000_000_000)

            gq = queue_with(Guess())
            job = gq.enqueue("learn")
            run(gq)
            assert job.record.demand_bytes == 2_000_000_000
        """

    @hookspec(firstresult=True)
    def place_job(self, details: PlaceJobDetails) -> Placement | Wait | None:
        """Choose the job's device, or return why it must wait.

        Called by a worker for a job that may start, and by `job.explain()`. The claim checks the answer again, under its lock,
        against the device's slots, models and budget. After an exception the job waits, with the reason "plugin_failed".

        Example:
            class Demo:
                @hookimpl
                def place_job(self, details):
                    return Wait("demo", "the card is kept for the demo")

            gq = queue_with(Demo())
            job = gq.enqueue("learn")
            assert "demo: the card is kept for the demo" in str(run(gq)[job.id])
        """

    @hookspec(firstresult=True)
    def order_candidates(self, details: OrderCandidatesDetails) -> Sequence[Job] | None:
        """Sort the candidates for a device into the order to try them.

        Called by a worker before it places jobs. Returns: the candidates; those left out are not tried this time. After an
        exception no job starts on a device until the next decision.

        Example:
            class NewestFirst:
                @hookimpl
                def order_candidates(self, details):
                    return sorted(details.candidates, key=lambda job: job.id, reverse=True)

            gq = queue_with(NewestFirst())
            small, large = gq.enqueue("learn", vram="1GB"), gq.enqueue("learn", vram="3GB")
            run(gq)
            assert large.started_at < small.started_at
        """

    @hookspec
    def choose_preemptions(self, details: ChoosePreemptionsDetails) -> Sequence[Preemption] | None:
        """Choose running attempts on devices to stop, for waiting jobs or because their time is over; all answers count.

        Called by a worker while preemptible attempts are running. Returns: Preemptions, which name an attempt by its job and
        lease; an attempt that finishes first is not affected. After an exception no attempt is asked to stop.

        Example:
            class SecondThought:
                @hookimpl
                def choose_preemptions(self, details):
                    running = [item for card in details.view.devices.values() for item in card.reservations]
                    return [Preemption(item.job_id, item.lease) for item in running if item.lease == 1]

            gq = queue_with(SecondThought())
            job = gq.enqueue("stay")
            run(gq)
            assert (job.state, job.record.preemptions) == ("completed", 1)
        """

    @hookspec(firstresult=True)
    def attempt_failed(self, details: AttemptFailedDetails) -> Retry | Snooze | Discard | None:
        """Decide what happens to a job after a failed attempt.

        Called by the worker that ran it, unless the task decided by raising one of these itself. The default retries while
        attempts are left, and waits for an unavailable backend. After an exception the attempt is spent: the job gets the code
        "internal", and is tried again while attempts are left.

        Example:
            class Patience:
                @hookimpl
                def attempt_failed(self, details):
                    return Snooze("1h") if isinstance(details.error, ValueError) else None

            gq = queue_with(Patience())
            job = gq.enqueue("fail")
            run(gq)
            assert job.state == "retryable"
        """

    @hookspec(firstresult=True)
    def retention(self, details: RetentionDetails) -> Mapping[State, float | None] | None:
        """Return for how many seconds finished jobs of each state are kept.

        Called by a worker every minute, and by `gpuqueue db prune`. Returns: {state: seconds}; None or a missing state keeps jobs
        forever, and the newest job of all always stays. After an exception nothing is pruned.

        Example:
            class Forgetful:
                @hookimpl
                def retention(self, details):
                    return {**details.configured, State.COMPLETED: 0.0}

            gq = queue_with(Forgetful())
            first, newest = gq.enqueue("send"), gq.enqueue("send")
            with Worker(gq):
                until(lambda: [job.id for job in gq.jobs()] == [newest.id])
        """


class Actions:
    """Called around each attempt on a device, in the thread that runs it."""

    @hookspec
    def prepare_attempt(self, details: PrepareAttemptDetails) -> None:
        """Free memory on the device; raise an ExecutionError if that is not possible.

        Called after the memory is reserved, before the task runs; the default unloads models that are in the way. An exception is
        the attempt's failure, handled like one of the task's own; the clean-up follows.

        Example:
            class Guard:
                @hookimpl
                def prepare_attempt(self, details):
                    if details.lease.task == "learn":
                        raise CallerFault(f"nothing is learned on {details.device.name}")

            gq = queue_with(Guard())
            job = gq.enqueue("learn")
            run(gq)
            assert job.error.message == "nothing is learned on gpu0"
        """

    @hookspec
    def clean_up_attempt(self, details: CleanUpAttemptDetails) -> CleanUp | None:
        """Release the device's memory and verify it; always called, also after a failure or a cancel.

        Called after the result is published, and again until every answer is verified; until then the memory stays reserved. With
        `orphaned`, called by the worker that took over from a dead one. An exception counts as not verified.

        Example:
            class Check:
                found = {}

                @hookimpl
                def clean_up_attempt(self, details):
                    free = self.found[details.lease.job_id] = details.read_device().free_bytes
                    return CleanUp(verified=free > 10**9, detail=f"{free} bytes are free")

            gq = queue_with(Check())
            job = gq.enqueue("learn")
            run(gq)
            assert Check.found[job.id] > 10**9 and not gq.view().devices["gpu0"].reservations
        """


class Registrations:
    """Called once, when a queue object or a worker starts; an exception stops it, as a PluginFailed that names the plugin."""

    @hookspec
    def configure(self, details: ConfigureDetails) -> None:
        """Read the plugin's own section of the configuration, when the queue object is created and before any other hook.

        A plugin with this hook has a section with its name; a section that no plugin reads is an error. The errors that
        `details.table` raises name the file and the key, and are shown as they are.

        Example:
            class Greeter:
                @hookimpl
                def configure(self, details):
                    details.table.expect(["words"])
                    self.words = details.table.text("words", "hello", example='words = "hi"')

            gq = queue_with(Greeter(), toml='[example]\\nwords = "good evening"')
            assert gq.plugin("example").words == "good evening"
        """

    @hookspec
    def register_executors(self, details: RegisterExecutorsDetails) -> Mapping[str, Executor] | None:
        """Add executor verbs: {task name: executor}.

        Called when a worker starts. An executor's `run(context)` runs one attempt, or `arun(context)` on the event loop; see
        `gpuqueue.testing.executors`. Applications enqueue its jobs with `gq.verb(name)`.

        Example:
            class Shout:
                def run(self, context):
                    return context.lease.arguments["text"].upper()

            class Verbs:
                @hookimpl
                def register_executors(self, details):
                    return {"shout": Shout()}

            gq = queue_with(Verbs())
            job = gq.verb("shout", required=["text"]).enqueue(text="hey")
            run(gq)
            assert job.result(timeout_s=0) == "HEY"
        """

    @hookspec
    def register_devices(self, details: RegisterDevicesDetails) -> Mapping[str, Device] | None:
        """Add kinds of devices: {device name: device}.

        Called when a worker starts; a name that is left out keeps its default device, from NVML or the budget. A device's
        `read()` never raises; see `gpuqueue.testing.devices`.

        Example:
            from datetime import UTC, datetime

            class Still:
                def read(self):
                    return Reading(at=datetime.now(UTC), name="a still card", total_bytes=8 * 10**9, free_bytes=7 * 10**9)

            class Cards:
                @hookimpl
                def register_devices(self, details):
                    return {device.name: Still() for device in details.devices}

            gq = queue_with(Cards())
            run(gq)
            assert gq.view().devices["gpu0"].reading.name == "a still card"
        """

    @hookspec
    def register_services(self, details: RegisterServicesDetails[Any]) -> Mapping[str, Service] | None:
        """Add singleton services, which one worker runs alongside its jobs, each in its own thread: {name: function}.

        Called when a worker starts. The function gets a ServiceContext and must return soon after `context.stopping` is set. A
        service that raises is restarted after a few seconds; another worker takes it over if its worker stops or dies.

        Example:
            class Beat:
                @hookimpl
                def register_services(self, details):
                    return {"beat": self.beat}

                def beat(self, context):
                    context.note({"says": "here"})
                    context.stopping.wait()

            gq = queue_with(Beat())
            with Worker(gq):
                until(lambda: [service.status for service in gq.services()] == [{"says": "here"}])
        """

    @hookspec
    def register_commands(self, details: RegisterCommandsDetails) -> None:
        """Add commands to the command line's group.

        Called only for installed plugins, when a command is run that is not gpuqueue's own, or when all commands are listed. With
        `@click.pass_obj` a command gets the session: `existing_queue()` returns the queue object, and its `plugin(name)` the
        plugin with its configuration. After an exception the plugin's commands are left out, with a warning.

        Example:
            import click

            class Hello:
                @hookimpl
                def register_commands(self, details):
                    details.cli.add_command(click.Command("hello", callback=lambda: click.echo("hello")))

            install(Hello())
            assert command_line("hello") == "hello\\n"
        """


SPECIFICATIONS = (Decisions, Actions, Events, Registrations)
HOOK_NAMES = tuple(name for group in SPECIFICATIONS for name in vars(group) if not name.startswith("_"))
EVENT_NAMES = tuple(name for name in vars(Events) if not name.startswith("_"))
