"""The quick start of Django is run as it stands: a project is made, its files are written, its lines typed, its pages asked."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import httpx

from gpuqueue.simulators.ollama import OllamaSimulator
from gpuqueue.testing.waiting import DEADLINE_S
from tests.contract.test_readme_web import ENVIRONMENT, follow, quick_start, typed, worker
from tests.processes import LONGEST_S

# `runserver` is told nowhere but on its line to choose a free port.
ANY_PORT = "import django.core.management.commands.runserver as it\nit.Command.default_port = '0'\n"


def type_line(line: str, folder: Path, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DJANGO_", "GPUQUEUE_"))}
    ran = subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env={**inherited, **ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def play(folder: Path, **environment: str) -> None:
    """Make the project, and use it; `environment` may name another Python and Django."""
    begin, initialise, migrate, run_worker, run_server, run_tests = quick_start("Django", folder, write=False)
    type_line(begin, folder, **environment)
    settings = folder / "mysite" / "settings.py"
    made = settings.read_text()
    quick_start("Django", folder)
    settings.write_text(f"{made}\n{settings.read_text()}")
    assert "python manage.py gpuqueue_worker" in type_line(initialise, folder, **environment)
    assert "created the queue in" in type_line(migrate, folder, **environment)
    assert "no issues" in type_line("python manage.py check", folder, **environment)
    type_line(run_tests, folder, **environment)
    with closing(sqlite3.connect(folder / "db.sqlite3")) as connection:
        assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (0,)
    (folder / "free-port").mkdir()
    (folder / "free-port" / "sitecustomize.py").write_text(ANY_PORT)
    with (
        worker(run_worker, folder, **environment),
        typed(run_server, folder, **environment, PYTHONPATH=str(folder / "free-port")) as address,
        httpx.Client(base_url=address, timeout=DEADLINE_S) as client,
    ):
        client.get("/admin/login/").raise_for_status()
        client.headers["X-CSRFToken"] = client.cookies["csrftoken"]
        told = client.post("/rfas", data={"title": "the roof"}).raise_for_status().json()
        assert follow(address, told["job"]) == ("", "reminded the roof")
        reminder = client.get(f"/reminders/{told['result']}").raise_for_status().json()
        assert reminder == {"status": "SUCCESSFUL", "value": "reminded the roof"}
        job = client.post("/revisions", data={"text": "teh cat"}).raise_for_status().json()["job"]
        text, result = follow(address, job)
        assert text.startswith("Answer to")
        assert isinstance(result, dict) and result["text"] == text


def test_the_quick_start_of_django(tmp_path: Path, ollama_server: OllamaSimulator) -> None:
    play(tmp_path, OLLAMA_HOST=ollama_server.url)
