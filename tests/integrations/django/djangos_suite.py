"""Owns running Django's own tests of its tasks against gpuqueue's backends; run as `python djangos_suite.py TESTS FOLDER`.

TESTS is the folder `tests` of Django's source distribution, FOLDER one for the queue's file. The last line printed is JSON:
how many ran, what failed, and which were left out.
"""

from __future__ import annotations

import importlib
import json
import sys
import unittest
from pathlib import Path
from typing import Any

LEFT_OUT = {
    "DummyBackendTestCase.test_clear": "asks the dummy to forget its results",
    "DummyBackendTestCase.test_refresh_result": "changes the dummy's result in memory, and expects a refresh to see that",
    "DummyBackendTestCase.test_refresh_result_async": "the same",
    "ImmediateBackendTestCase.test_cannot_get_result": "an eager backend keeps its results, which the immediate one cannot",
    "ImmediateBackendTestCase.test_cannot_refresh_result": "the same",
    "ImmediateBackendTestCase.test_cannot_pass_run_after": "an eager backend takes a deferred task, and does not wait",
}
BACKEND = {"BACKEND": "tested_backend.TestedBackend"}
EAGER = {"BACKEND": "gpuqueue.integrations.django.EagerBackend"}
REPLACED = {
    "django.tasks.backends.dummy.DummyBackend": BACKEND["BACKEND"],
    "django.tasks.backends.immediate.ImmediateBackend": EAGER["BACKEND"],
}


def set_up(tests: Path, folder: Path) -> None:
    import django
    from django.conf import settings

    sys.path[:0] = [str(tests), str(Path(__file__).parent)]
    settings.configure(
        BASE_DIR=folder,
        INSTALLED_APPS=["gpuqueue.integrations.django"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3"}},
        TASKS={"default": BACKEND},
        USE_TZ=True,
    )
    django.setup()


def with_backends(tasks: dict[str, Any]) -> dict[str, Any]:
    """Put gpuqueue's backends in the place of Django's in a test's settings."""
    return {alias: {**entry, "BACKEND": REPLACED.get(entry["BACKEND"], entry["BACKEND"])} for alias, entry in tasks.items()}


def main(tests: Path, folder: Path) -> None:
    set_up(tests, folder)
    import django.test
    from django.test.utils import get_runner, override_settings
    from tested_backend import TestedBackend

    from gpuqueue.integrations.django import EagerBackend

    enable = override_settings.enable

    def enable_ours(self: Any) -> None:
        if "TASKS" in self.options:
            self.options = {**self.options, "TASKS": with_backends(self.options["TASKS"])}
        enable(self)

    override_settings.enable = enable_ours
    suite = unittest.TestSuite()
    left_out = []
    for name in ("test_tasks", "test_dummy_backend", "test_immediate_backend", "test_custom_backend"):
        module = importlib.import_module(f"tasks.{name}")
        for path, ours in (("DummyBackend", TestedBackend), ("ImmediateBackend", EagerBackend)):
            if hasattr(module, path):
                setattr(module, path, ours)
        for found in unittest.defaultTestLoader.loadTestsFromModule(module):
            for test in found:
                short = ".".join(test.id().split(".")[-2:])
                if short in LEFT_OUT:
                    left_out.append(short)
                else:
                    suite.addTest(test)
    runner = get_runner(django.conf.settings)(verbosity=1)
    runner.setup_test_environment()
    databases = runner.setup_databases(aliases={"default"})
    try:
        result = runner.run_suite(suite)
    finally:
        runner.teardown_databases(databases)
        runner.teardown_test_environment()
    failed = [str(test) for test, _ in [*result.failures, *result.errors]]
    print(json.dumps({"ran": result.testsRun, "failed": failed, "left_out": left_out, "skipped": len(result.skipped)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
