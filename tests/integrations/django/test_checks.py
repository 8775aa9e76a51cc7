"""The system checks: each trap of the settings is told with its way out, and good settings are left in peace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import django
import pytest
from django.core.checks import run_checks
from django.db import connections
from django.test import override_settings

from gpuqueue.integrations.django.apps import GPUQueueConfig
from tests.integrations.django.conftest import BACKEND, OURS, UseDatabase, UseQueue
from tests.processes import LONGEST_S

DJANGOS = "django.db.backends.sqlite3"
IMMEDIATE = {"transaction_mode": "IMMEDIATE", "timeout": 5}


def found() -> list[str]:
    """The ids of what gpuqueue's checks say, each with words and a way out."""
    messages = [message for message in run_checks() if str(message.id).startswith("gpuqueue.")]
    assert all(message.msg and (message.hint or message.id == "gpuqueue.E002") for message in messages)
    return sorted(str(message.id).removeprefix("gpuqueue.") for message in messages)


@pytest.mark.parametrize(
    ("engine", "options", "expected"),
    [
        (OURS, {}, []),
        (OURS, {"timeout": 20, "init_command": "PRAGMA journal_mode=WAL;PRAGMA synchronous=NORMAL;"}, []),
        (OURS, {"timeout": 1}, ["W003"]),
        (OURS, {"init_command": "PRAGMA journal_mode = 'delete'"}, ["E003"]),
        (DJANGOS, IMMEDIATE, ["W001"]),
        (DJANGOS, {**IMMEDIATE, "timeout": 0.5}, ["W001", "W003"]),
        (DJANGOS, {}, ["W001", "W002"]),
        (DJANGOS, {"transaction_mode": "deferred"}, ["W001", "W002"]),
    ],
)
def test_the_traps_of_the_apps_own_file(
    use_database: UseDatabase, use_queue: UseQueue, engine: str, options: dict[str, Any], expected: list[str]
) -> None:
    use_database(engine, **options)
    use_queue(database="default")
    assert found() == expected


def test_a_request_that_holds_the_lock_throughout_is_a_trap(use_database: UseDatabase, use_queue: UseQueue) -> None:
    use_database()
    use_queue(database="default")
    connections.settings["default"]["ATOMIC_REQUESTS"] = True
    try:
        assert found() == ["W004"]
    finally:
        connections.settings["default"]["ATOMIC_REQUESTS"] = False


def test_a_queue_in_a_file_of_its_own_has_none_of_these_traps(use_database: UseDatabase, use_queue: UseQueue) -> None:
    use_database(DJANGOS)
    use_queue()
    assert found() == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"database": "nowhere"}, "unknown database 'nowhere'"),
        ({"database": "default", "file": "x.db"}, "not both"),
        ({"file": "x.db", "queues": {"ai": {"gpuu": True}}}, "gpuu"),
        ({"config": "nowhere.toml"}, "nowhere.toml"),
        ({"databse": "default"}, "databse"),
    ],
)
def test_wrong_options_are_an_error_with_their_place(options: dict[str, Any], words: str) -> None:
    with override_settings(TASKS={"default": {"BACKEND": BACKEND, "OPTIONS": options}}):
        (message,) = [message for message in run_checks() if message.id == "gpuqueue.E002"]
    assert "TASKS['default']['OPTIONS']" in message.msg
    assert words in message.msg


def test_a_database_in_memory_is_no_place_for_a_queue(use_database: UseDatabase) -> None:
    use_database(name="x")
    connections.settings["default"]["NAME"] = ":memory:"
    with override_settings(TASKS={"default": {"BACKEND": BACKEND, "OPTIONS": {"database": "default"}}}):
        (message,) = [message for message in run_checks() if message.id == "gpuqueue.E002"]
    assert "EagerBackend" in message.msg


def test_the_app_is_missing(use_queue: UseQueue) -> None:
    use_queue()
    backport = ["django_tasks"] if django.VERSION < (6, 0) else []
    with override_settings(INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", *backport]):
        messages = [message.id for message in run_checks() if str(message.id).startswith("gpuqueue.E004")]
    assert messages == ["gpuqueue.E004"]


WITHOUT = """
import sys, importlib.util
sys.modules["django_tasks"] = None
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "django_tasks" else find(name, *rest)
import django
from django.conf import settings
settings.configure(INSTALLED_APPS=["gpuqueue.integrations.django"], DATABASES={})
django.setup()
from django.core.checks import run_checks
print([(message.id, message.hint) for message in run_checks()])
"""


def test_a_django_without_tasks_says_what_to_install() -> None:
    if django.VERSION >= (6, 0):
        pytest.skip("this Django has tasks")
    ran = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True, timeout=LONGEST_S)
    assert "gpuqueue.E001" in ran.stdout and "pip install django-tasks" in ran.stdout


def test_the_app_has_its_label(tmp_path: Path) -> None:
    assert (GPUQueueConfig.label, GPUQueueConfig.name) == ("gpuqueue", "gpuqueue.integrations.django")
