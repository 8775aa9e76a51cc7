"""Provides tools for testing applications and plugins; nothing outside of tests imports it.

- `gpuqueue.testing.pytest_plugin`: fixtures; load them with `-p gpuqueue.testing.pytest_plugin` in pytest's `addopts`, or with
  `pytest_plugins = ["gpuqueue.testing.pytest_plugin"]` in the `conftest.py` at the top.
- `gpuqueue.testing.policies`, `gpuqueue.testing.executors` and `gpuqueue.testing.devices`: test classes that every policy,
  executor and device must pass; subclass them to test your own.
- `gpuqueue.testing.views`: made-up views, jobs and leases, to test a policy alone.
- Here, without pytest: `fresh` gives a queue object an empty file, `eager` and `run_until_idle` run jobs, `travel` moves the
  queue's clock, `enqueued`, `assert_enqueued` and `assert_not_enqueued` find what was enqueued; `wait_until`, and
  `RecordedAttempt` for executors.
"""

from __future__ import annotations

from gpuqueue.testing.attempts import RecordedAttempt
from gpuqueue.testing.eager import eager
from gpuqueue.testing.enqueued import assert_enqueued, assert_not_enqueued, enqueued
from gpuqueue.testing.fresh import fresh
from gpuqueue.testing.idle import JobsStuck, run_until_idle
from gpuqueue.testing.travelling import travel
from gpuqueue.testing.waiting import wait_until

__all__ = [
    "JobsStuck",
    "RecordedAttempt",
    "assert_enqueued",
    "assert_not_enqueued",
    "eager",
    "enqueued",
    "fresh",
    "run_until_idle",
    "travel",
    "wait_until",
]
