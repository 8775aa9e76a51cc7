"""How long finished jobs are kept."""

from __future__ import annotations

from gpuqueue.domain import State
from gpuqueue.hookspecs import RetentionDetails
from gpuqueue.policies.retention import Retention
from gpuqueue.testing.views import NOW


def test_jobs_are_kept_as_long_as_configured():
    configured = {State.COMPLETED: 60.0, State.DISCARDED: None}
    assert Retention().retention(RetentionDetails(configured, NOW)) == configured
