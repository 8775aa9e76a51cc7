"""Owns a real Django project in a folder, and its `manage.py` in processes of its own; checks nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import django

from gpuqueue import GPUQueue, JobHandle
from gpuqueue.store.sqlite import queries
from tests.processes import LONGEST_S, started

MANAGE = """\
import os, sys
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "site_settings")
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""
SETTINGS = """\
from pathlib import Path
BASE_DIR = Path(__file__).parent
SECRET_KEY = "tests"
USE_TZ = True
INSTALLED_APPS = ["gpuqueue.integrations.django", "shop"{backport}]
DATABASES = {{"default": {{"ENGINE": "gpuqueue.integrations.django.sqlite3", "NAME": BASE_DIR / "app.db"}}}}
TASKS = {{"default": {{"BACKEND": "gpuqueue.integrations.django.Backend", "QUEUES": [], "OPTIONS": {options}}}}}
LOGGING = {{
    "version": 1,
    "handlers": {{"said": {{"class": "logging.FileHandler", "filename": BASE_DIR / "tasks.log"}}}},
    "loggers": {{name: {{"handlers": ["said"], "level": "INFO"}} for name in ("django.tasks", "django_tasks")}},
}}
"""
TASKS = """\
import os
import time
from pathlib import Path

from django.db import connection
from gpuqueue import current_job
from gpuqueue.integrations.django import task

HERE = Path(__file__).parent.parent

@task
def add(a, b=0):
    return a + b

@task
def fail(kind):
    raise {"exit": SystemExit("bye"), "interrupt": KeyboardInterrupt(), "value": ValueError("odd")}[kind]

def reach(name):
    HERE.joinpath(f"{name}.reached").touch()
    while not HERE.joinpath(f"{name}.open").exists():
        time.sleep(0.01)

@task
def wait(name):
    reach(name)
    return "waited"

@task
def hang(name):
    HERE.joinpath(f"{name}.reached").touch()
    while True:
        current_job().check()
        time.sleep(0.01)

@task
def use_database():
    before = connection.connection is not None
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return before

@task(isolate=True, takes_context=True)
def alone(context, name):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    HERE.joinpath(f"{name}.pid").write_text(str(os.getpid()))
    if name == "dies":
        os._exit(3)
    if name == "fails":
        raise ValueError("odd")
    return context.task_result.id

@task
def version():
    return "first"
"""


@dataclass
class Project:
    """A project with one app, `shop`, whose tasks are above; its processes are ended with it."""

    folder: Path
    python: str = sys.executable
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    leaving: ExitStack = field(default_factory=ExitStack)

    @classmethod
    def make(cls, folder: Path, options: str = '{"database": "default"}') -> Project:
        backport = "" if django.VERSION >= (6, 0) else ', "django_tasks"'
        (folder / "shop").mkdir()
        (folder / "manage.py").write_text(MANAGE)
        (folder / "site_settings.py").write_text(SETTINGS.format(backport=backport, options=options))
        (folder / "shop" / "__init__.py").touch()
        (folder / "shop" / "tasks.py").write_text(TASKS)
        return cls(folder)

    @property
    def environment(self) -> dict[str, str]:
        left_out = ("DJANGO_", "GPUQUEUE_")
        return {name: value for name, value in os.environ.items() if not name.startswith(left_out)}

    def manage(self, *words: str, status: int = 0, **environment: str) -> str:
        """Run a command and return what it printed."""
        ran = subprocess.run(
            [self.python, "manage.py", *words],
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
            check=False,
        )
        assert ran.returncode == status, f"{words}: {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout + ran.stderr

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command; what it prints goes to a file of its own."""
        command = [self.python, "manage.py", *words]
        with (self.folder / f"output-{len(self.processes)}.txt").open("w") as output:
            running = started(command, cwd=self.folder, env=self.environment, stdout=output, stderr=subprocess.STDOUT)
            self.processes.append(self.leaving.enter_context(running))
        return self.processes[-1]

    def output(self, process: subprocess.Popen[str]) -> str:
        return (self.folder / f"output-{self.processes.index(process)}.txt").read_text()

    @cached_property
    def gq(self) -> GPUQueue:
        """The project's queue as this process sees it, which is without Django: asking it takes no second."""
        return GPUQueue(self.folder / "app.db", discover_plugins=False)

    def enqueue(self, task: str, *args: Any, queue: str = "default", **kwargs: Any) -> JobHandle:
        """Store a job of one of the tasks above, as the backend does."""
        self.gq.queue(queue)
        made = self.gq.verb(f"shop.tasks.{task}", max_attempts=1)
        return made.using(queue=queue).enqueue(args=list(args), kwargs=kwargs)

    def attempts(self, job: JobHandle) -> list[tuple[str, str]]:
        """Return how a job's attempts ended that did not complete, and who ran each: [(outcome, worker)]."""
        with self.gq.store.engine.lent() as connection:
            return [(row["outcome"], row["worker"]) for row in queries.timeline(connection, job.id)]

    def is_reached(self, name: str) -> bool:
        return (self.folder / f"{name}.reached").exists()

    def let_go(self, name: str) -> None:
        (self.folder / f"{name}.open").touch()

    def end(self) -> None:
        self.gq.close()
        self.leaving.close()
