"""A worker on virtual time: the real dispatcher, policies, judge and store, and attempts on a virtual Ollama."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

from gpuqueue.config.shared import settings_digest, settings_from_shared
from gpuqueue.contract.executor import AnyExecutor, AttemptContext, AttemptInterrupted
from gpuqueue.decisions.policies import in_force
from gpuqueue.decisions.policies.residents import Residents
from gpuqueue.devices.cached import CachedDevice
from gpuqueue.domain.device import Resident
from gpuqueue.domain.job import Job, Lease
from gpuqueue.domain.models import CHAT, EMBED
from gpuqueue.domain.settings import BackendSettings, DeviceSettings, ModelSettings
from gpuqueue.executors.ollama import Chat, Embed, OllamaExecutor
from gpuqueue.executors.ollama_client import OllamaClient
from gpuqueue.testing.virtual.ollama import VirtualOllama
from gpuqueue.testing.virtual.queue import VirtualQueue
from gpuqueue.testing.virtual.time import Signal, VirtualTime
from gpuqueue.worker.attempt import Pipeline
from gpuqueue.worker.attempts import Attempts
from gpuqueue.worker.backends import Backends
from gpuqueue.worker.dispatcher import Dispatcher
from gpuqueue.worker.event_loop import EventLoop
from gpuqueue.worker.judge import Judge
from gpuqueue.worker.log import WorkerLog
from gpuqueue.worker.observations import Observations
from gpuqueue.worker.on_device import OnDevice
from gpuqueue.worker.orders import Orders
from gpuqueue.worker.output import Output
from gpuqueue.worker.site import Site

NAME = "virtual"
TOKENS_A_CHARACTER = 0.25
FOR_EVER_US = 4_000_000_000_000_000  # in the year 2096


class VirtualClient:
    """What the policies and an executor ask of an Ollama, answered by the virtual one."""

    def __init__(self, ollama: VirtualOllama, settings: BackendSettings) -> None:
        self._ollama = ollama
        self.settings = settings
        self.shown_url = settings.url

    def residents(self, timeout_s: float = 0.0) -> tuple[Resident, ...]:
        return self._ollama.residents()

    def unload(self, model: str, timeout_s: float = 0.0) -> None:
        self._ollama.unload(model)

    def can_think(self, model: str, context: AttemptContext) -> bool:
        return False

    def rendered(self, path: str, body: Mapping[str, Any], context: AttemptContext) -> str:
        return "".join(str(message["content"]) for message in body["messages"])


class VirtualChat(Chat):
    """Answers a chat on the virtual Ollama: `num_predict` tokens, after a prompt of a token for each four characters.

    A preempted answer is continued, with the tokens that it has as part of the prompt.
    """

    def __init__(
        self,
        ollama: VirtualOllama,
        settings: BackendSettings,
        models: Mapping[str, ModelSettings],
        devices: Sequence[DeviceSettings],
    ) -> None:
        super().__init__(settings, models, devices)
        self._ollama = ollama
        self._client = cast(OllamaClient, VirtualClient(ollama, settings))

    def run(self, context: AttemptContext) -> dict[str, Any]:
        body = self.body(context.lease.arguments, context.lease.placement, context.lease.model)
        earlier = 0
        if self.continuation(body, context) is not None and context.partial is not None:
            context.continue_output()
            earlier = context.partial.output_tokens
        words = "".join(str(message["content"]) for message in body["messages"])
        left = int(body["options"]["num_predict"]) - earlier
        found = _answered(self._ollama, context, body, words, left, earlier)
        return {**found, **({"continued_tokens": earlier} if earlier else {})}


class VirtualEmbed(Embed):
    """Embeds a text on the virtual Ollama, a token for each four characters; the vector is empty."""

    def __init__(
        self,
        ollama: VirtualOllama,
        settings: BackendSettings,
        models: Mapping[str, ModelSettings],
        devices: Sequence[DeviceSettings],
    ) -> None:
        super().__init__(settings, models, devices)
        self._ollama = ollama

    def run(self, context: AttemptContext) -> dict[str, Any]:
        body = self.body(context.lease.arguments, context.lease.placement, context.lease.model)
        return {"embeddings": [[]], **_answered(self._ollama, context, body, str(body["input"]), 0)}


def _answered(
    ollama: VirtualOllama, context: AttemptContext, body: Mapping[str, Any], words: str, output_tokens: int, earlier: int = 0
) -> dict[str, Any]:
    """Have a request answered, whose answer has some tokens from earlier, and return its figures. Raises: AttemptInterrupted."""
    owner, model, time = str(context.lease.job_id), str(body["model"]), ollama.time
    prompt_tokens = math.ceil(len(words) * TOKENS_A_CHARACTER) + earlier
    stop, began_s, first_s, count = Signal(time), time.now_s, 0.0, 0

    def written(now: int) -> None:
        nonlocal count, first_s
        if now > count:
            first_s = first_s or time.now_s - began_s
            context.tokens(now)
            with suppress(AttemptInterrupted):  # what came until then is kept all the same
                context.emit("." * round((now - count) / TOKENS_A_CHARACTER))
            count = now

    with context.interrupted_by(stop.set):
        is_done = ollama.answer(
            owner,
            model,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            stop=stop,
            written=written,
            keep_alive_s=float(body["keep_alive"]),
        )
    if not is_done:
        raise AttemptInterrupted
    return {
        **ollama.figures(owner, began_s),
        "model": model,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens + earlier,
        "first_token_s": first_s,
    }


class VirtualWorker:
    """Serves all queues of a queue object whose clock is the same virtual time; it has no thread of its own but on that."""

    def __init__(self, gq: VirtualQueue, time: VirtualTime, ollama: VirtualOllama) -> None:
        self._time = time
        self._bell = Signal(time)
        store, clock = gq.store, time.clock
        shared = gq.shared()
        store.workers.accept_configuration(digest=settings_digest(shared), settings=shared, force=True, now_us=clock.wall())
        settings = in_force(settings_from_shared(shared))
        (backend,) = settings.backends
        self._executors: dict[str, AnyExecutor] = {
            CHAT.name: VirtualChat(ollama, backend, settings.models, settings.devices),
            EMBED.name: VirtualEmbed(ollama, backend, settings.models, settings.devices),
        }
        residents = Residents(lambda: time.now_s, time.sleep, lambda found: cast(OllamaClient, VirtualClient(ollama, found)))
        gq.plugins.add_defaults({"residents": residents})
        devices = {device.name: CachedDevice(_Card(ollama), clock=clock.monotonic) for device in settings.devices}
        site = Site(NAME, store, gq.plugins, settings, clock, WorkerLog(NAME), devices)
        orders = Orders()
        backends, self._observations = Backends(site), Observations(site)
        self._ollama = ollama
        output = self._output = Output(store, clock, orders)
        judge = Judge(site, backends, tasks=gq.tasks, max_payload_bytes=gq.config.max_payload_bytes, max_crashes=3)
        self._attempts = Attempts(site, judge, output, orders)
        self._pipeline = Pipeline(
            site, self._attempts, judge, output, EventLoop(clock), self._executor_of, end_worker=self._failed
        )
        self._dispatcher = Dispatcher(
            site,
            may_claim=lambda: True,
            models_known=lambda: True,
            is_preemptible=lambda task: task in self._executors,
            continues=self._continues,
            where_alone=lambda _: None,
            on_decided=self._observations.turns.saw,
        )
        self._on_device = OnDevice(
            site,
            backends,
            self._observations,
            next_models=self._dispatcher.next_models,
            next_use_s=self._dispatcher.next_use_s,
            is_isolated=lambda _: False,
        )
        self._on_device.stopping = cast(threading.Event, Signal(time))
        store.workers.register(
            NAME,
            host=NAME,
            pid=1,
            runtime_dir="/nowhere",
            queues=None,
            digest=settings_digest(shared),
            expires_at_us=FOR_EVER_US,
            now_us=clock.wall(),
        )
        store.backends.answered(backend.name, worked=False, now_us=clock.wall())
        store.backends.note_models(backend.name, {name: model.size_bytes for name, model in ollama.models.items()})
        gq.listeners.append(self._bell.set)
        time.spawn(self._work)

    def close(self) -> None:
        """Stop: a clean-up in progress is not tried again. The time must be closed next."""
        self._on_device.stopping.set()

    def _work(self) -> None:
        while True:
            self._bell.clear()
            self._tick()
            moments = [self._attempts.next_moment_s()]
            change = self._dispatcher.next_change()
            if change is not None:
                moments.append(self._time.now_s + (change - self._time.clock.now()).total_seconds())
            next_s = min((moment for moment in moments if moment is not None), default=math.inf)
            self._bell.wait(max(next_s - self._time.now_s, 0.001))

    def _tick(self) -> None:
        self._ollama.report()
        self._output.write()
        self._attempts.stop_requested()
        self._attempts.stop_overdue()
        for lease in self._dispatcher.claim_for_devices():
            self._time.spawn(partial(self._carry_out, lease))

    def _carry_out(self, lease: Lease) -> None:
        try:
            self._pipeline.carry_out(lease, self._on_device.kind)
        except BaseException as error:
            self._pipeline.broken(lease, error, self._on_device.kind)
        self._observations.tell()
        self._bell.set()

    def _executor_of(self, lease: Lease) -> AnyExecutor | None:
        return self._executors.get(lease.task)

    def _continues(self, job: Job) -> bool:
        return cast(OllamaExecutor, self._executors[job.task]).continues(job.arguments, job.model)

    def _failed(self, error: BaseException) -> None:
        raise error


class _Card:
    def __init__(self, ollama: VirtualOllama) -> None:
        self._ollama = ollama

    def read(self) -> Any:
        return self._ollama.reading()
