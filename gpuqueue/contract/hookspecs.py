"""Owns the hooks: what plugins may answer, when each is asked, and with what; calls none of them.

Every hook takes one argument, `details`, a frozen object, which may grow new fields but never loses one. Hooks never run inside a
write transaction. Where one answer is wanted (`firstresult`), the plugin registered last is asked first, so a third
party's answer comes before the defaults'; answer None to pass. `plugins/HOOKS.md` is generated from here.
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
    """Answered from the view, without side effects; one that raises holds its queue with that as the reason.

    They are asked often and by several processes, so they answer at once and the same for the same view, and remember nothing.
    """

    @hookspec
    def queue_hold(self, details: QueueHoldDetails) -> Hold | None:
        """Say why the queue may not start jobs now; every answer counts, all must be None to run.

        Asked for every queue: by a worker at least once a second while it has work, and by whoever wants to know, such as
        `gpuqueue status` and `job.explain()`. Returns: a Hold, whose `reason` and `detail` are what people read; what is decided
        rests on its other fields. An exception holds the queue, with the reason "plugin_failed".

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
        """Say how the queue's concurrency or rate is tighter than configured now; of several answers the tightest counts.

        Asked for every queue before each decision. Returns: Limits; what is None in it stays as configured, and looser ones than
        configured change nothing. An exception holds the queue, with the reason "plugin_failed".

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
        """Say what the job needs of a device.

        Asked by a worker once for each job of a GPU queue, before it is placed; again after it ran out of memory. The default
        answers with what the job asked for, what is configured for its model, or what was learned. An exception holds the
        queue until the job's demand is known.

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
        """Choose the job's device, or say why it must wait.

        Asked by a worker for a job that may start, and by `job.explain()`. The claim checks the answer again, under its lock,
        against the device's slots, models and budget. An exception lets the job wait, with the reason "plugin_failed".

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
        """Put the candidates for a device into the order in which they are tried.

        Asked by a worker before it places jobs. Returns: the candidates; those left out are not tried this time. After an
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
        """Choose running attempts on devices that are to stop: for jobs that wait, or because their time is over; all answers
        count.

        Asked by a worker while attempts run that can be asked to stop. Returns: Preemptions that name an attempt by its job and
        lease; what finishes first has won. After an exception nobody is asked to stop.

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
        """Say what becomes of a job whose attempt failed.

        Asked by the worker that ran it, but for what the task itself has decided by raising one of these. The default retries
        while attempts are left, and waits for a backend that is away. An exception lets the job wait a minute, unspent.

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
        """Say for how many seconds finished jobs of each state are kept.

        Asked by a worker every minute, and by `gpuqueue db prune`. Returns: {state: seconds}; None, and a state that is left out,
        keep for ever, and the newest job of all stays. After an exception nothing is pruned.

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
        """Make room on the device; raise an ExecutionError when that is not possible.

        Called when the memory is reserved, before the task runs; the default unloads models that are in the way. What it raises
        is the attempt's failure, and judged as the task's own would be; the clean-up follows.

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
        """Give the device's memory back and verify it; always called, also after failure and cancel.

        Called after the result is published, and again until every answer is verified; until then the memory stays reserved. With
        `orphaned` it is called by the worker that took over from a dead one. An exception counts as not verified.

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
    """Asked once, when a queue object or a worker starts; an exception ends that, as a PluginFailed that names the plugin."""

    @hookspec
    def configure(self, details: ConfigureDetails) -> None:
        """Read the plugin's own section of the configuration, when the queue object is made and before any other hook.

        A plugin that answers it has a section of its name; a section that no plugin reads is an error. Raises: what
        `details.table` raises names the file and the key, and is shown as it is.

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

        Asked when a worker starts. An executor's `run(context)` runs one attempt, or `arun(context)` on the event loop; see
        `gpuqueue.testing.executors`. Applications enqueue it as `gq.verb(name)`.

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

        Asked when a worker starts; a name that is left out keeps the device that NVML or the budget gives. A device's `read()`
        never raises; see `gpuqueue.testing.devices`.

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
        """Add what one worker of all does beside its jobs, in a thread of its own: {name: function}.

        Asked when a worker starts. The function gets a ServiceContext and returns soon after `context.stopping` is set. A service
        that raises is started again after some seconds; another worker takes it over when its own stops or dies.

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

        Called when a command that is not gpuqueue's own, or the list of all, is asked for; only of installed plugins. With
        `@click.pass_obj` a command gets the session, whose `existing_queue()` is the queue object, and `queue.plugin(name)` the
        plugin with what it read of its section. After an exception the commands are left out with a warning.

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
