"""Decides how long finished jobs are kept; deletes none itself."""

from __future__ import annotations

from collections.abc import Mapping

from gpuqueue.contract.hookspecs import RetentionDetails, hookimpl
from gpuqueue.domain.job import State


class Retention:
    """Keeps finished jobs for the times in `[retention]`."""

    @hookimpl
    def retention(self, details: RetentionDetails) -> Mapping[State, float | None]:
        return details.configured
