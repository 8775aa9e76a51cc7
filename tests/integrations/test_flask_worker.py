"""Flask's own processes: isolated tasks find their app, and a worker inside gunicorn runs in one of its processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from gpuqueue import GPUQueue
from gpuqueue.testing.queues import foreign_variables
from gpuqueue.testing.waiting import DEADLINE_S
from tests.integrations.servers import serving
from tests.processes import started

SHOP = """
import os

from flask import Flask, current_app
from gpuqueue.integrations.flask import FlaskGPUQueue
from gpuqueue.integrations.in_process import InProcessWorker

queue = FlaskGPUQueue()


@queue.task(name="where", isolate=True)
def where() -> str:
    return f"{current_app.config['SIGN']}{os.getppid()}"


@queue.task(name="awhere", isolate=True)
async def awhere() -> str:
    return f"{current_app.config['SIGN']}{os.getppid()}"


@queue.task(name="pid")
def pid() -> int:
    return os.getpid()


def create_app(with_worker=False):
    app = Flask(__name__)
    app.config.from_mapping(SIGN="made by the factory ", GPUQUEUE_DATABASE=os.path.abspath("gpuqueue.db"))
    queue.init_app(app)
    if with_worker:
        InProcessWorker(queue.get(app)).start()

    @app.get("/pid")
    def ask():
        return str(pid.enqueue().result(timeout_s=120))

    return app
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path


def run(folder: Path, *command: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name not in (*foreign_variables(), "FLASK_APP")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started([sys.executable, *command], cwd=folder, env=environment, **pipes) as process:
        out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, out + err
    return process


@pytest.mark.parametrize("task", ["where", "awhere"])
def test_an_isolated_task_has_the_app_of_the_flask_command_in_its_own_process(folder: Path, task: str) -> None:
    run(folder, "-m", "flask", "--app", "shop:create_app", "gpuqueue", "submit", "default", "--task", task)
    worker = run(folder, "-m", "flask", "--app", "shop:create_app", "gpuqueue", "worker", "--burst")
    with GPUQueue(folder / "gpuqueue.db", discover_plugins=False) as gq:
        assert gq.job(1).result(timeout_s=DEADLINE_S) == f"made by the factory {worker.pid}"


def test_an_isolated_task_whose_app_cannot_be_found_says_what_to_set(folder: Path) -> None:
    run(folder, "-m", "flask", "--app", "shop:create_app", "gpuqueue", "submit", "default", "--task", "where")
    start = "from shop import create_app, queue; from gpuqueue import Worker; Worker(queue.get(create_app()), burst=True).run()"
    run(folder, "-c", start)
    with GPUQueue(folder / "gpuqueue.db", discover_plugins=False) as gq:
        error = gq.job(1).error
        assert error is not None
        assert "finds the Flask app through FLASK_APP" in error.message


def test_a_worker_inside_gunicorn_runs_in_one_of_its_processes(folder: Path) -> None:
    command = (
        "gunicorn",
        "shop:create_app(with_worker=True)",
        "--no-control-socket",
        "--bind",
        "127.0.0.1:0",
        "--workers",
        "2",
        "--threads",
        "2",
    )
    with serving(*command, folder=folder) as server:
        assert len({httpx.get(f"{server}/pid", timeout=DEADLINE_S).raise_for_status().text for _ in range(6)}) == 1
