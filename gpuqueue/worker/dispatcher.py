"""Owns choosing: which jobs this worker claims now, from the view, the policies and the claim; runs none."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from gpuqueue.decisions import decide_demand, decide_holds, order, place
from gpuqueue.domain import Demand, Hold, Job, Lease, Placement, QueueSettings, View
from gpuqueue.plugin_manager import PluginFailed, Plugins
from gpuqueue.policies import default_policies
from gpuqueue.policies.availability import REFUSAL
from gpuqueue.policies.windows import next_edge
from gpuqueue.settings import SharedSettings
from gpuqueue.store import Store, claims, queries
from gpuqueue.store.claims import Gate, Room
from gpuqueue.store.outcomes import Outcome
from gpuqueue.units import from_us, to_us
from gpuqueue.view import build, largest_budget
from gpuqueue.windows import parse_window, parse_zone

DECISION_LASTS_S = 1.0  # holds are decided again after this, at every ring that may concern a device, and at a window's edge
SIZED_AT_ONCE = 100
PUBLISH_EVERY_S = 2.0
logger = logging.getLogger("gpuqueue.worker")


class Dispatcher:
    """Decides with the same view and policies that explain a wait, then claims. Safe to call from several threads."""

    def __init__(
        self,
        store: Store,
        plugins: Plugins,
        settings: SharedSettings,
        *,
        worker_id: str,
        serves: Callable[[str], bool],
        may_claim: Callable[[], bool],
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._plugins = plugins
        self._settings = settings
        self._worker_id = worker_id
        self._serves = serves
        self._may_claim = may_claim
        self.now = now
        self._deciding = threading.Lock()
        self._decided_at_s = float("-inf")
        self._holds: dict[str, tuple[Hold, ...]] = {}
        self._noted = False
        self._common = {"", *default_policies()}  # who speaks for holds in every process
        self._published: dict[str, list[Hold]] = {}
        self._published_at_s = 0.0
        self._unsizable: dict[str, Hold] = {}  # queues with a job whose demand a plugin failed to say
        self.view: View | None = None
        self.gate = Gate()
        self.plain: tuple[QueueSettings, ...] = ()
        self.gpu: tuple[QueueSettings, ...] = ()

    def decide(self, *, force: bool = False) -> View:
        """Decide the holds anew when that is due; refuses the waiting jobs of queues that are held with `refuse`."""
        with self._deciding:
            if self.view is not None and not force and time.monotonic() - self._decided_at_s < DECISION_LASTS_S:
                return self.view
            now = self.now()
            with self._store.snapshot() as connection:
                view = build(connection, self._settings, now)
            holds = decide_holds(view, self._plugins, self._unsizable)
            held = frozenset(name for name, reasons in holds.items() if _holds(reasons))
            queues = {name: item.settings for name, item in view.queues.items()}
            open_queues = [queue for name, queue in queues.items() if name not in held and self._serves(name)]
            self.plain = tuple(queue for queue in open_queues if not queue.gpu)
            self.gpu = tuple(queue for queue in open_queues if queue.gpu)
            self.gate = Gate(held, queues, largest_budget(self._settings))
            self.view = view
            self._decided_at_s = time.monotonic()
            if not self._noted or _reasons(self._holds) != _reasons(holds):
                self._store.note_holds(holds, now_us=to_us(now))
                self._tell(holds)
                self._noted = True
            self._holds = holds
            self._publish(holds)
            for name, reasons in holds.items():
                if any(hold.refuse for hold in reasons) and view.queues[name].waiting_count:
                    while self._store.refuse_waiting(name, message=REFUSAL, now_us=to_us(now)):
                        pass  # some hundred jobs at a time
            return view

    def _tell(self, holds: Mapping[str, tuple[Hold, ...]]) -> None:
        for name, reasons in holds.items():
            if _reasons({name: reasons}) != _reasons({name: self._holds.get(name, ())}):
                words = "; ".join(hold.detail for hold in reasons)
                logger.info("queue %s %s", name, f"is held: {words}" if words else "may start jobs")

    def _publish(self, holds: Mapping[str, tuple[Hold, ...]]) -> None:
        """Tell processes that lack this worker's own plugins what those hold, at most every PUBLISH_EVERY_S."""
        own = {name: [hold for hold in reasons if hold.plugin not in self._common] for name, reasons in holds.items()}
        own = {name: reasons for name, reasons in own.items() if reasons}
        now_s = time.monotonic()
        if own == self._published or (own and self._published and now_s - self._published_at_s < PUBLISH_EVERY_S):
            return
        self._store.publish_holds(self._worker_id, own)
        self._published, self._published_at_s = own, now_s

    def exchange(self, ended: Sequence[Outcome], *, room: Room) -> tuple[list[Lease], list[Lease]]:
        """Write how attempts ended and claim jobs that need no device; returns (late leases, new leases)."""
        queues = self.plain if self._may_claim() else ()
        return self._store.finish_and_claim(
            ended, worker_id=self._worker_id, queues=queues, gate=self.gate, room=room, now_us=to_us(self.now())
        )

    def claim_for_devices(self) -> list[Lease]:
        """Claim the jobs that get a device now; decides anew first, because devices and rows move under it."""
        self._move_due()
        serves_devices = any(queue.gpu and self._serves(queue.name) for queue in self._settings.queues.values())
        if not serves_devices or not self._may_claim():
            return []
        view = self.decide(force=True)
        leases: list[Lease] = []
        if self._size(view):
            view = self.decide(force=True)
        room_bytes = max((device.settings.budget_bytes - device.reserved_bytes for device in view.devices.values()), default=0)
        for job in self._candidates(view, self.gpu, room_bytes=room_bytes):
            answer = place(job, view, self._plugins)
            if not isinstance(answer, Placement):
                continue
            lease = self._store.claim_placed(
                job.id,
                answer,
                worker_id=self._worker_id,
                queue=view.queues[job.queue].settings,
                device=view.devices[answer.device].settings,
                gate=self.gate,
                now_us=to_us(self.now()),
            )
            if lease is not None:
                leases.append(lease)
                view = self.decide(force=True)
        return leases

    def next_model(self) -> str | None:
        """Say which model the next job for a device needs, None when none waits or it needs none."""
        view = self.decide(force=True)
        free = [queue for queue in self.gpu if not self._holds.get(queue.name)]
        # The asking job's own reservation is about to be freed, so the whole budget counts as room.
        candidates = self._candidates(view, free, room_bytes=largest_budget(self._settings))
        return candidates[0].model or None if candidates else None

    def next_change(self) -> datetime | None:
        """Say when time alone may change something: a job comes due, a window opens or closes, a pause ends."""
        view = self.view
        if view is None:
            return None
        with self._store.reading() as connection:
            due_us = queries.next_due_us(connection)
        times = [] if due_us is None else [from_us(due_us)]
        for item in view.queues.values():
            if item.paused is not None and item.paused.until is not None:
                times.append(item.paused.until)
            if item.settings.pause:
                windows = [parse_window(text) for text in item.settings.pause]
                edge = next_edge(windows, parse_zone(item.settings.timezone), view.now)
                if edge is not None:
                    times.append(edge)
        return min(times, default=None)

    def _move_due(self) -> None:
        """Promote and expire what is due.

        The claim of a job for a device is proposed from rows that must show it, and a due job that no claim looks for,
        its queue being held or no thread free, would make `next_change` ask for a tick at once, again and again.
        """
        now_us = to_us(self.now())
        with self._store.reading() as connection:
            due_us = queries.next_due_us(connection)
        if due_us is not None and due_us <= now_us:
            self._store.move_due(now_us=now_us)

    def _size(self, view: View) -> bool:
        """Ask what waiting GPU jobs need, so that they fall into their demand classes; returns whether a hold changed.

        A queue is held while a plugin fails to say what one of its jobs needs, so that no other yields to it meanwhile.
        """
        unsizable: dict[str, Hold] = {}
        for name, item in view.queues.items():
            if not (item.settings.gpu and self._serves(name)):
                continue
            with self._store.reading() as connection:
                jobs = claims.unsized(connection, name, limit=SIZED_AT_ONCE)
            demands: list[tuple[int, Demand]] = []
            for job in jobs:
                try:
                    demands.append((job.id, decide_demand(job, view, self._plugins)))
                except PluginFailed as error:
                    detail = f"what job {job.id} needs is not known: {error}"
                    unsizable[name] = Hold("plugin_failed", detail, plugin=f"{error.plugin} in job_demand")
                    break
            if demands:
                self._store.set_demands(demands, largest_bytes=largest_budget(self._settings))
        changed = unsizable.keys() != self._unsizable.keys()
        self._unsizable = unsizable
        return changed

    def _candidates(self, view: View, queues: Sequence[QueueSettings], *, room_bytes: int) -> list[Job]:
        with self._store.snapshot() as connection:
            found = [job for queue in queues for job in claims.candidates(connection, queue.name, room_bytes=room_bytes)]
        try:
            return order(found, view, self._plugins)
        except PluginFailed as error:
            logger.error("no job is started on a device: %s", error)
            return []


def _holds(reasons: Sequence[Hold]) -> bool:
    # Yielding alone is decided again by the claim, under the lock: what it yielded to may be gone by then.
    return any(hold.reason != "yielding" for hold in reasons)


def _reasons(holds: dict[str, tuple[Hold, ...]]) -> dict[str, list[str]]:
    return {name: sorted(hold.reason for hold in reasons) for name, reasons in holds.items()}
