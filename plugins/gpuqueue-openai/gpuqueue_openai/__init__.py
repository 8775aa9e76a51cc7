"""Runs jobs on an OpenAI-compatible server: the plugin's section, its verbs, their memory demand, and their failures.

Jobs of other verbs are not affected.
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

VERBS = frozenset({"openai.chat", "openai.complete", "openai.embed"})  # listed here, so that no HTTP client is loaded for them
REFUSAL = "AI service temporarily unavailable"


class OpenAI:
    """Runs jobs on an OpenAI-compatible server."""

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
        """Return the job's own `vram`, or else that of the section, which is 0 for a server that already holds its memory."""
        job = details.job
        if job.task not in VERBS:
            return None
        return Demand(self._settings.vram_bytes if job.wanted_bytes is None else job.wanted_bytes)

    @hookimpl
    def attempt_failed(self, details: AttemptFailedDetails) -> Snooze | Discard | None:
        """Handle an unavailable server: snooze the job without spending its attempt, or discard it if its queue rejects."""
        error = details.error
        if not isinstance(error, BackendUnavailable) or error.backend != NAME:
            return None
        if details.queue.when_unavailable == "reject":
            return Discard(REFUSAL, code="unavailable")
        wait_s = getattr(error, "retry_after_s", None)
        return Snooze(details.queue.retry_every_s if wait_s is None else wait_s)
