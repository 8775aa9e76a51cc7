"""How long finished jobs are kept."""

from __future__ import annotations

from gpuqueue.contract.hookspecs import RetentionDetails
from gpuqueue.decisions.policies.retention import Retention
from gpuqueue.domain.job import State
from gpuqueue.testing.views import NOW


def test_jobs_are_kept_as_long_as_configured():
    configured = {State.COMPLETED: 60.0, State.DISCARDED: None}
    assert Retention().retention(RetentionDetails(configured, NOW)) == configured
