"""The commands of `manage.py`: the whole command line on the project's queue, what cannot be meant, and what migrate does."""

from __future__ import annotations

import json
import sqlite3
import tomllib
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from gpuqueue.integrations.django import DjangoQueue, job_of
from gpuqueue.integrations.django.management.command_line import take_option
from gpuqueue.integrations.django.management.commands.gpuqueue import Command
from gpuqueue.store.sqlite import migrate
from tests.integrations.django import tasks
from tests.integrations.django.conftest import UseDatabase, UseQueue
from tests.old_files import make_old_file


def ran(*words: str) -> str:
    """Run `manage.py gpuqueue …` in this process; returns what it printed."""
    out = StringIO()
    call_command("gpuqueue", *words, stdout=out, stderr=out)
    return out.getvalue()


def test_the_command_line_works_on_the_projects_queue(own_file: DjangoQueue) -> None:
    result = tasks.add.enqueue(1)
    assert [job["task"] for job in json.loads(ran("jobs", "--json"))["jobs"]] == ["tests.integrations.django.tasks.add"]
    assert "default" in ran("status")
    said = ran("explain", str(job_of(result).id))
    assert "python manage.py gpuqueue_worker" in said
    assert job_of(result).explain().advice in said, "the command line has the same words"
    ran("cancel", str(job_of(result).id))
    result.refresh()
    assert result.status == "FAILED"


def test_the_words_of_django_are_not_those_of_the_command_line(own_file: DjangoQueue, capfd: Any) -> None:
    tasks.add.enqueue(1)
    Command().run_from_argv(
        ["/somewhere/manage.py", "gpuqueue", "--settings=site", "--pythonpath", "/x", "jobs", "--backend=default"]
    )
    assert "tasks.add" in capfd.readouterr().out
    with pytest.raises(SystemExit) as ended:
        Command().run_from_argv(["manage.py", "gpuqueue", "job", "77"])
    assert ended.value.code == 2
    assert "unknown job 77" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        Command().run_from_argv(["manage.py", "gpuqueue", "--database", "x.db", "status"])
    assert "python manage.py gpuqueue" in capfd.readouterr().err


def test_init_writes_what_this_project_reads_and_says_its_own_commands(
    use_database: UseDatabase, use_queue: UseQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "BASE_DIR", tmp_path / "site")
    (tmp_path / "site").mkdir()
    for database, named in (("site/db.sqlite3", "db.sqlite3"), ("data/db.sqlite3", f"{tmp_path}/data/db.sqlite3")):
        use_database(name=database)
        use_queue(database="default")
        said = ran("init", "--ollama", "127.0.0.1:9", "--force")
        with (tmp_path / "site" / "gpuqueue.toml").open("rb") as file:
            assert tomllib.load(file)["database"] == f"sqlite:///{named}"
        assert said.rpartition("next:")[2].split("\n  ") == [
            "",
            "ollama pull gemma4:e4b",
            "ollama pull nomic-embed-text",
            "python manage.py gpuqueue doctor",
            "python manage.py gpuqueue_worker",
            'python manage.py gpuqueue submit ai-realtime --model gemma4:e4b --prompt "Say hello" --follow\n',
        ]
    said = ran("init", "--ollama", "127.0.0.1:9", "--path", str(tmp_path / "other.toml"))
    assert f"the application reads {tmp_path / 'site' / 'gpuqueue.toml'}" in said


def test_an_option_is_taken_out_wherever_it_stands() -> None:
    words = ["jobs", "--backend", "other", "--json"]
    assert (take_option(words, "--backend"), words) == ("other", ["jobs", "--json"])
    assert (take_option(words, "--backend"), words) == (None, ["jobs", "--json"])
    words = ["--backend=a=b", "x"]
    assert (take_option(words, "--backend"), words) == ("a=b", ["x"])


def test_a_command_that_fails_is_an_error_of_djangos(own_file: DjangoQueue) -> None:
    with pytest.raises(CommandError, match="status 2") as raised:
        ran("job", "77")
    assert raised.value.returncode == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max-tasks", "0"], "--max-tasks must be at least 1, not 0"),
        (["--threads", "-1"], "--threads must be at least 1"),
        (["--queue-name", "a", "--exclude-queues", "b"], "--exclude-queues and --queue-name cannot be combined"),
        (["--queue-name", ","], "names no queue"),
        (["--reload", "--batch"], "--reload cannot be combined with --batch"),
        (["--backend", "nothing"], "'nothing'"),
    ],
)
def test_what_cannot_be_meant_is_said_and_nothing_is_run(own_file: DjangoQueue, words: list[str], said: str) -> None:
    result = tasks.add.enqueue(1)
    with pytest.raises(CommandError, match=said):
        call_command("gpuqueue_worker", *words)
    result.refresh()
    assert result.status == "READY"


def test_a_queue_that_the_settings_do_not_name_is_not_served(use_queue: UseQueue) -> None:
    use_queue(names=("default",))
    with pytest.raises(SystemExit):
        call_command("gpuqueue_worker", "--batch", "--queue-name", "defualt", stderr=StringIO())


# --- migrate ---


def version_of(path: Path) -> str | None:
    with sqlite3.connect(path) as connection:
        found = migrate.version(connection)
    connection.close()
    return found


def migrated(**options: Any) -> str:
    out = StringIO()
    call_command("migrate", stdout=out, **{"verbosity": 1, **options})
    return out.getvalue()


def test_migrate_makes_the_queue_in_the_apps_database(use_database: UseDatabase, use_queue: UseQueue, tmp_path: Path) -> None:
    use_database()
    use_queue(database="default")
    assert f"gpuqueue: created the queue in {tmp_path / 'app.db'}" in migrated()
    assert version_of(tmp_path / "app.db") == migrate.head()
    assert "gpuqueue:" not in migrated()


def test_migrate_upgrades_an_older_queue(use_database: UseDatabase, use_queue: UseQueue, tmp_path: Path) -> None:
    use_database()
    make_old_file(tmp_path / "app.db", "0001")
    use_queue(database="default")
    assert "from schema 0001" in migrated()
    assert version_of(tmp_path / "app.db") == migrate.head()


def test_migrating_another_database_leaves_the_queue_alone(
    use_database: UseDatabase, use_queue: UseQueue, tmp_path: Path
) -> None:
    use_database()
    use_database(alias="other", name="other.db")
    gq = use_queue(database="other")
    assert gq.database == tmp_path / "other.db"
    assert "gpuqueue:" not in migrated()
    assert "created the queue" in migrated(database="other")
    assert version_of(tmp_path / "app.db") is None


def test_migrate_makes_a_queues_own_file_too(use_database: UseDatabase, use_queue: UseQueue, tmp_path: Path) -> None:
    use_database()
    use_queue()
    assert f"created the queue in {tmp_path / 'gpuqueue.db'}" in migrated()


def test_a_flush_leaves_the_queue_as_it_is(app_file: DjangoQueue) -> None:
    call_command("migrate", verbosity=0)
    tasks.add.enqueue(1)
    call_command("flush", interactive=False, verbosity=0)
    assert len(app_file.jobs()) == 1


def test_there_is_no_migration_to_make(own_file: DjangoQueue) -> None:
    call_command("makemigrations", "gpuqueue", check_changes=True, verbosity=0)
