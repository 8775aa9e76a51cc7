"""Queues while Django's test runner works: no job of a test comes to a real file, and each test finds its queue empty."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.integrations.django.project import Project

# Each entry of TASKS is one way to say where a queue lives; `app.toml` names the app's own database, as a mistaken one may.
ENTRIES = """
for alias, options in {
    "plain": {}, "file": {"file": "jobs.db"}, "toml": {"config": "other.toml"}, "app": {"config": "app.toml"},
}.items():
    TASKS[alias] = {**TASKS["default"], "OPTIONS": options}
"""
TOMLS = {"gpuqueue.toml": "[queues.mail]\n", "other.toml": 'database = "other.db"\n', "app.toml": 'database = "app.db"\n'}
TESTS = """
import os
from django.db import connection, transaction
from django.test import SimpleTestCase, TestCase
from gpuqueue.integrations.django import queue
from gpuqueue.testing import run_until_idle
from shop.tasks import add

ALIASES = ["default", "plain", "file", "toml", "app"]
HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

class Mixed:
    def test_first(self):
        for alias in ALIASES:
            gq = queue(alias)
            result = add.using(backend=alias).enqueue(1)
            is_second = alias == "app" and gq.database_alias is not None  # in the file that the first is in
            self.assertEqual(result.id[:2], "2-" if is_second else "1-", alias)
            self.assertEqual(add.using(backend=alias).get_result(result.id).args, [1])
            if gq.database_alias is None:
                self.assertEqual([job.id for job in gq.jobs()], [1], alias)
                self.assertEqual(gq.holds()["default"], [])
                gq.pause("default")
            # A line of its own, whole, also beside what the runner and other processes print.
            os.write(1, f"\\n{alias}={queue(alias).database}\\n".encode())

    test_second = test_third = test_first

class InATransaction(Mixed, TestCase):
    pass

class InMemory(TestCase):
    def test_a_job_runs(self):
        result = add.enqueue(1, b=2)
        run_until_idle(queue())
        result.refresh()
        self.assertEqual(result.return_value, 3)

    def test_any_job_may_name_the_connection(self):
        gq = queue()
        gq.task(name="one")(lambda: 1)
        with transaction.atomic():
            job = gq.enqueue("one", connection=connection)
            (other,) = gq.enqueue_many([("one", {})], connection=connection)
        self.assertEqual([job.state, other.state], ["available"] * 2)

class WithoutADatabase(Mixed, SimpleTestCase):
    pass
"""

SIDE_BY_SIDE = """
from django.contrib.contenttypes.models import ContentType

class One(InATransaction):
    def test_the_copy_is_whole(self):
        ContentType.objects.count()

class Two(One):
    pass
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project.make(tmp_path)
    for name, text in TOMLS.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "shop" / "tests.py").write_text(TESTS)
    with (tmp_path / "site_settings.py").open("a") as settings:
        settings.write(ENTRIES)
    return made


def files_of(printed: str) -> dict[str, set[Path]]:
    found: dict[str, set[Path]] = {}
    for line in printed.splitlines():
        alias, is_told, path = line.partition("=")
        if is_told:
            found.setdefault(alias, set()).add(Path(path))
    return found


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if not (path.suffix in (".pyc", ".log") or path.name == "__pycache__"))


def test_a_test_stores_nothing_in_a_real_file_and_its_own_is_gone_afterwards(project: Project) -> None:
    before = names_in(project.folder)
    files = files_of(project.manage("test"))
    assert {alias: {path.name for path in paths} for alias, paths in files.items()} == {
        "default": {"test_default.db"},
        "plain": {"test_gpuqueue.db"},
        "file": {"test_jobs.db"},
        "toml": {"test_other.db"},
        "app": {"test_app.db"},
    }
    for paths in files.values():
        (path,) = paths  # the same in each test
        assert path.is_relative_to(tempfile.gettempdir()) and not path.is_relative_to(project.folder)
        assert not path.parent.exists()
    assert names_in(project.folder) == before


def test_a_run_without_a_database_stores_nothing_in_the_real_one(project: Project) -> None:
    before = names_in(project.folder)
    files = files_of(project.manage("test", "shop.tests.WithoutADatabase"))
    assert {path.name for path in files["default"] | files["app"]} == {"test_default.db", "test_app.db"}
    assert names_in(project.folder) == before


def test_a_test_database_that_is_a_file_is_the_queues_file(project: Project) -> None:
    with (project.folder / "site_settings.py").open("a") as settings:
        settings.write('DATABASES["default"]["TEST"] = {"NAME": BASE_DIR / "tests.db"}\n')
    before = names_in(project.folder)
    files = files_of(project.manage("test", "shop.tests.InATransaction"))
    tests = project.folder / "tests.db"
    assert {alias for alias, (path,) in files.items() if path == tests} == {"default", "app"}
    assert names_in(project.folder) == before


def test_processes_that_test_side_by_side_have_files_of_their_own(project: Project) -> None:
    with (project.folder / "site_settings.py").open("a") as settings:
        settings.write('DATABASES["default"]["TEST"] = {"NAME": BASE_DIR / "tests.db"}\n')
        settings.write('INSTALLED_APPS += ["django.contrib.contenttypes"]\n')
    with (project.folder / "shop" / "tests.py").open("a") as tests:
        tests.write(SIDE_BY_SIDE)
    before = names_in(project.folder)
    files = files_of(project.manage("test", "--parallel", "2", "shop.tests.One", "shop.tests.Two"))
    for alias, name in (("default", "tests_{}.db"), ("plain", "test_gpuqueue.db")):
        assert len(files[alias]) == 2
        assert {path.name for path in files[alias]} <= {name.format(number) for number in (1, 2)}
    assert not any(path.parent.exists() for path in files["plain"])
    assert names_in(project.folder) == before
