"""Owns a Django application under load, and its worker; run as `python -m tests.benchmarks.django_web FOLDER … web|worker`.

Each web thread inserts a row of the app's and enqueues a task in one transaction, three in ten of which are rolled back.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import django
from django.conf import settings

ENGINE = "gpuqueue.integrations.django.sqlite3"
BACKLOG = 2000  # jobs that wait at least, so that the worker is busy throughout


def set_up(folder: Path) -> None:
    settings.configure(
        BASE_DIR=folder,
        USE_TZ=True,
        INSTALLED_APPS=["gpuqueue.integrations.django", *(["django_tasks"] if django.VERSION < (6, 0) else [])],
        DATABASES={"default": {"ENGINE": ENGINE, "NAME": folder / "app.db"}},
        TASKS={"default": {"BACKEND": "gpuqueue.integrations.django.Backend", "OPTIONS": {"database": "default"}}},
    )
    django.setup()


class RolledBack(Exception):
    pass


def work() -> None:
    from gpuqueue import Worker
    from gpuqueue.integrations.django import queue

    Worker(queue(), threads=4).run()


def serve(threads: int, think_s: float, length_s: float) -> dict[str, Any]:
    """Play the web threads; returns what was measured."""
    from django.db import connection, transaction

    from gpuqueue.integrations.django import queue
    from gpuqueue.integrations.django.tasks_api import TaskResultDoesNotExist
    from tests.benchmarks.django_tasks import add

    gq = queue()
    times: list[float] = []
    errors: Counter[str] = Counter()
    kept: list[str] = []
    rolled_back: list[str] = []
    done = threading.Event()

    def keep_busy() -> None:
        made = gq.task_of(add)
        while not done.is_set():
            if gq.counts().get("default", {}).get("available", 0) < BACKLOG:
                gq.enqueue_many([(made, {"args": [1], "kwargs": {}})] * 200)
            done.wait(0.02)

    def web(number: int) -> None:
        dice = random.Random(number)
        time.sleep(dice.random() * think_s)
        while time.monotonic() < end_s:
            is_refused = dice.random() < 0.3
            began_s = time.monotonic()
            try:
                with transaction.atomic():
                    with connection.cursor() as cursor:
                        cursor.execute("INSERT INTO orders (name) VALUES (%s)", ["x"])
                    result = add.enqueue(number)
                    if is_refused:
                        raise RolledBack
                kept.append(result.id)
            except RolledBack:
                rolled_back.append(result.id)
            except Exception as error:
                errors[repr(error)[:200]] += 1
            connection.close()  # as at the end of a request
            times.append(time.monotonic() - began_s)
            time.sleep(think_s)

    busy = threading.Thread(target=keep_busy)
    busy.start()
    while not any(counts.get("completed", 0) > BACKLOG for counts in gq.counts().values()):
        time.sleep(0.05)
    end_s = time.monotonic() + length_s
    served = [threading.Thread(target=web, args=[number]) for number in range(threads)]
    for thread in served:
        thread.start()
    for thread in served:
        thread.join()
    done.set()
    busy.join()
    ghosts = 0
    for result_id in rolled_back:
        try:
            add.get_result(result_id)
            ghosts += 1
        except TaskResultDoesNotExist:
            pass
    with connection.cursor() as cursor:
        ((orders,),) = cursor.execute("SELECT count(*) FROM orders").fetchall()
    times.sort()
    return {
        "calls": len(times),
        "p50_s": times[len(times) // 2],
        "p99_s": times[int(len(times) * 0.99)],
        "worst_s": times[-1],
        "errors": dict(errors),
        "kept": len(kept),
        "found": sum(add.get_result(result_id).id == result_id for result_id in kept),
        "orders": orders,
        "rolled_back": len(rolled_back),
        "ghosts": ghosts,
        "completed": gq.counts()["default"].get("completed", 0),
    }


def main(folder: str, threads: str, think_s: str, length_s: str, role: str) -> None:
    set_up(Path(folder))
    if role == "worker":
        return work()
    from django.core.management import call_command
    from django.db import connection

    call_command("migrate", verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, name TEXT)")
    words = [sys.executable, "-m", "tests.benchmarks.django_web", folder, threads, think_s, length_s, "worker"]
    worker = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        print(json.dumps(serve(int(threads), float(think_s), float(length_s))))
    finally:
        worker.terminate()
        worker.wait(60)


if __name__ == "__main__":
    main(*sys.argv[1:])
