"""Owns the plugin `openai`: its section, its verbs, what their jobs need of a card, and what becomes of them without the server.

Changes nothing for the jobs of other verbs.
"""

from __future__ import annotations

from collections.abc import Mapping

from gpuqueue import Discard, Snooze, hookimpl
from gpuqueue.plugins import (
    AsyncExecutor,
    AttemptFailedDetails,
    BackendUnavailable,
    ConfigureDetails,
    Demand,
    JobDemandDetails,
    RegisterExecutorsDetails,
)
from gpuqueue_openai.settings import NAME, Settings, read_settings

__all__ = ["OpenAI"]

VERBS = frozenset({"openai.chat", "openai.complete", "openai.embed"})  # known without loading them, and an HTTP client
REFUSAL = "AI service temporarily unavailable"


class OpenAI:
    """Runs jobs on a server that speaks OpenAI's protocol."""

    def __init__(self) -> None:
        self._settings = Settings()

    @hookimpl
    def configure(self, details: ConfigureDetails) -> None:
        self._settings = read_settings(details.table)

    @hookimpl
    def register_executors(self, details: RegisterExecutorsDetails) -> Mapping[str, AsyncExecutor]:
        from gpuqueue_openai.server import Server
        from gpuqueue_openai.verbs import Chat, Complete, Embed

        server = Server(self._settings)
        return {verb.name: verb(server) for verb in (Chat, Complete, Embed)}

    @hookimpl
    def job_demand(self, details: JobDemandDetails) -> Demand | None:
        """What the job asked for itself, or else `vram` of the section: nothing, for a server that has its memory already."""
        job = details.job
        if job.task not in VERBS:
            return None
        return Demand(self._settings.vram_bytes if job.wanted_bytes is None else job.wanted_bytes)

    @hookimpl
    def attempt_failed(self, details: AttemptFailedDetails) -> Snooze | Discard | None:
        """Postpone a job whose server is away, its attempt unspent, or end it where its queue rejects work meanwhile."""
        error = details.error
        if not isinstance(error, BackendUnavailable) or error.backend != NAME:
            return None
        if details.queue.when_unavailable == "reject":
            return Discard(REFUSAL, code="unavailable")
        wait_s = getattr(error, "retry_after_s", None)
        return Snooze(details.queue.retry_every_s if wait_s is None else wait_s)
