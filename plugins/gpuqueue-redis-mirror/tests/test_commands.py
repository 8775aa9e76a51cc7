"""The commands `gpuqueue mirror …`, as a person has them, in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from gpuqueue_redis_mirror import service
from mirror_scene.scene import level, section

from gpuqueue.testing.waiting import DEADLINE_S


@pytest.fixture
def run(tmp_path):
    """`run(*words)` is the finished process of a command of this configuration."""

    def run(*words):
        command = [sys.executable, "-m", "gpuqueue", "--config", str(tmp_path / "gpuqueue.toml"), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE_S)

    return run


@pytest.fixture
def mirrored(make, tmp_path, redis_server):
    gq = make()
    text = section(redis_server.url)
    (tmp_path / "gpuqueue.toml").write_text(f'database = "sqlite:///{gq.database}"\n{text}', encoding="utf-8")
    return gq


def test_status_says_who_writes_it_and_the_counts_on_both_sides(mirrored, start, redis_server, run):
    worker = start(mirrored)
    mirrored.work.enqueue(n=1).result(timeout_s=DEADLINE_S)
    level(mirrored, redis_server)
    shown = run("mirror", "status")
    assert shown.returncode == 0, shown.stderr
    assert f"written by: {worker.id}" in shown.stdout
    assert "mail: 0 wait, 0 active, 0 delayed, 1 completed, 0 failed; same as the queue" in shown.stdout
    told = json.loads(run("mirror", "status", "--json").stdout)
    assert (told["url"], told["worker"], told["error"]) == (redis_server.url, worker.id, None)
    assert all(queue["here"] == queue["there"] for queue in told["queues"])
    for command in ("status", "doctor"):
        assert "mirror" in run(command).stdout


def test_verify_names_what_differs_and_a_rebuild_puts_it_right(mirrored, start, redis_server, client, run, monkeypatch):
    monkeypatch.setattr(service, "CHECK_S", 86400.0)  # the worker would repair it between two commands
    start(mirrored)
    job = mirrored.work.enqueue(n=1)
    job.result(timeout_s=DEADLINE_S)
    level(mirrored, redis_server)
    assert run("mirror", "verify").stdout.startswith("the mirror at redis://")
    client.hset(f"bull:mail:{job.id}", "name", "else")
    client.lpush("bull:mail:99", "stray")
    found = run("mirror", "verify")
    assert found.returncode == 1
    assert f"bull:mail:{job.id}: name is 'else', but 'work' in the queue" in found.stdout
    assert "bull:mail:99: not in the queue" in found.stdout
    assert len(json.loads(run("mirror", "verify", "--json").stdout)["differences"]) == 2
    built = run("mirror", "rebuild")
    assert built.returncode == 0, built.stderr
    assert "has rebuilt the mirror" in built.stdout
    assert run("mirror", "verify", "--json").returncode == 0


def test_without_a_worker_a_rebuild_is_made_at_once(mirrored, redis_server, client, run):
    mirrored.work.using(delay="1h").enqueue(n=1)
    built = run("mirror", "rebuild")
    assert "start a worker to keep them up to date" in built.stdout
    assert client.zcard("bull:mail:delayed") == 1
    assert "no worker; start one" in run("mirror", "status").stdout


def test_a_living_bullmq_queue_is_only_replaced_when_a_person_says_so(mirrored, start, client, run):
    client.hset("bull:mail:meta", "version", "bullmq:5.81.5")
    mirrored.work.using(delay="1h").enqueue(n=1)
    refused = run("mirror", "rebuild")
    assert refused.returncode == 2
    assert "a mirror would replace its jobs" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert run("mirror", "rebuild", "--replace").returncode == 0
    assert client.hget("bull:mail:meta", "version").startswith("gpuqueue:")


def test_a_server_that_is_away_is_said_without_a_traceback(mirrored, redis_server, run):
    redis_server.kill()
    for command in ("status", "rebuild", "verify"):
        said = run("mirror", command)
        assert said.returncode == 2
        assert redis_server.url in said.stderr and "Traceback" not in said.stderr
    assert run("mirror", "acl").stdout.startswith("ACL SETUSER reader on >PASSWORD ~bull:* -@all +@read")


def test_without_a_section_the_commands_say_what_to_write(make_gpuqueue, tmp_path, run):
    make_gpuqueue().counts()
    (tmp_path / "gpuqueue.toml").write_text('database = "sqlite:///gpuqueue.db"\n', encoding="utf-8")
    said = run("mirror", "status")
    assert said.returncode == 2
    assert 'add [mirror] with url = "redis://localhost:6379/0"' in said.stderr
