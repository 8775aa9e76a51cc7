"""Owns Django in the tests' own process: settings without a file, and databases and queues of each test's own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import django
import pytest
from django.conf import settings

BASE = Path(mkdtemp(prefix="gpuqueue-django-"))
OURS = "gpuqueue.integrations.django.sqlite3"
BACKEND = "gpuqueue.integrations.django.Backend"
DUMMY = f"{'django.tasks' if django.VERSION >= (6, 0) else 'django_tasks'}.backends.dummy.DummyBackend"

if not settings.configured:
    settings.configure(
        BASE_DIR=BASE,
        SECRET_KEY="tests",
        USE_TZ=True,
        ALLOWED_HOSTS=["testserver"],
        STATIC_URL="static/",
        ROOT_URLCONF="tests.integrations.django.urls",
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ],
                },
            }
        ],
        INSTALLED_APPS=[
            "django.contrib.admin",
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.messages",
            "django.contrib.sessions",
            "django.contrib.staticfiles",
            "gpuqueue.integrations.django",
            *(["django_tasks"] if django.VERSION < (6, 0) else []),
        ],
        DATABASES={"default": {"ENGINE": OURS, "NAME": BASE / "app.db"}},
        TASKS={"default": {"BACKEND": BACKEND, "QUEUES": [], "OPTIONS": {"file": BASE / "gpuqueue.db"}}},
    )
    django.setup()

from django.db import connections  # noqa: E402
from django.test import override_settings  # noqa: E402

from gpuqueue.integrations.django import DjangoQueue, queue  # noqa: E402


@pytest.fixture(autouse=True)
def zone() -> Iterator[None]:
    """Django makes the zone of its settings that of the process, which others' tests run in too."""
    before = os.environ.get("TZ")
    yield
    if os.environ.get("TZ") != before:
        if before is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = before
        time.tzset()


UseDatabase = Callable[..., None]
UseQueue = Callable[..., DjangoQueue]


@pytest.fixture
def use_database(tmp_path: Path) -> Iterator[UseDatabase]:
    """`use_database(engine, alias="default", **options)`: let an entry of DATABASES be a new file, app.db, in `tmp_path`."""
    before = {alias: dict(entry) for alias, entry in connections.settings.items()}

    def use(engine: str = OURS, alias: str = "default", name: str = "app.db", **options: Any) -> None:
        _forget(alias)
        entry = {**connections.settings["default"], "ENGINE": engine, "NAME": tmp_path / name, "OPTIONS": options}
        connections.settings[alias] = entry

    yield use
    for alias in list(connections.settings):
        _forget(alias)
        del connections.settings[alias]
    connections.settings.update(before)


def _forget(alias: str) -> None:
    if hasattr(connections._connections, alias):
        connections[alias].close()
        del connections[alias]


@pytest.fixture
def use_queue(tmp_path: Path, use_database: UseDatabase) -> Iterator[UseQueue]:
    """`use_queue(**options)`: let TASKS have one entry, with these OPTIONS; by default the queue has a file of its own.

    `names` are the setting QUEUES, which None leaves out.
    """
    overridden = []
    made = []

    def use(names: tuple[str, ...] | None = (), backend: str = BACKEND, **options: Any) -> DjangoQueue:
        if not options.keys() & {"file", "database", "config"}:
            options["file"] = tmp_path / "gpuqueue.db"
        entry = {"BACKEND": backend, "OPTIONS": options, **({} if names is None else {"QUEUES": list(names)})}
        overridden.append(override_settings(TASKS={"default": entry}))
        overridden[-1].enable()
        made.append(queue())
        return made[-1]

    yield use
    for gq in made:
        gq.close()
    for override in reversed(overridden):
        override.disable()


@pytest.fixture
def own_file(use_queue: UseQueue) -> DjangoQueue:
    """The queue in a file of its own."""
    return use_queue()


@pytest.fixture
def app_file(use_database: UseDatabase, use_queue: UseQueue) -> DjangoQueue:
    """The queue in the app's file, which has a table `orders` and gpuqueue's ENGINE."""
    use_database()
    return prepared(use_queue(database="default"))


def prepared(gq: DjangoQueue) -> DjangoQueue:
    """Make the queue's tables and one of the app's."""
    gq.counts()
    with connections["default"].cursor() as cursor:
        cursor.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, name TEXT)")
    return gq
