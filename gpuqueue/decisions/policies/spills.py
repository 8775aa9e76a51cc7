"""Decides what happens to a job when its model did not fully fit on the device; manages no memory itself."""

from __future__ import annotations

from gpuqueue.contract.hookspecs import AttemptFailedDetails, hookimpl
from gpuqueue.domain.errors import Spilled
from gpuqueue.domain.models import full_name
from gpuqueue.domain.verdicts import Discard, Snooze

WAIT_S = 30.0


class Spills:
    """Applies a model's `on_spill`: "wait" postpones the job without spending an attempt, "fail" ends it."""

    @hookimpl
    def attempt_failed(self, details: AttemptFailedDetails) -> Snooze | Discard | None:
        if not isinstance(details.error, Spilled):
            return None
        name = full_name(details.lease.model)
        settings = next((item for item in details.models.values() if full_name(item.name) == name), None)
        if settings is not None and settings.on_spill == "wait":
            return Snooze(WAIT_S)
        return Discard(str(details.error), code=details.error.code)
