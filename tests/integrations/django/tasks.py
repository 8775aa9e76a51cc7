"""Owns the Django tasks of the tests; each stands at the top, as Django wants it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connection

from gpuqueue import Discard, Retry, Snooze, current_job
from gpuqueue.domain import backoff
from gpuqueue.integrations.django import task

gates: dict[str, Any] = {}  # given by a test, by name


@task
def add(a: int, b: int = 0) -> int:
    return a + b


@task
async def add_later(a: int, b: int = 0) -> int:
    await asyncio.sleep(0)
    return a + b


@task
def gather(first: str, second: list[int], *others: int, to: str = "", **more: str) -> None: ...


@task(takes_context=True)
def who(context: Any) -> dict[str, Any]:
    return {"id": context.task_result.id, "attempt": context.attempt, "status": str(context.task_result.status)}


@task(takes_context=True)
async def who_later(context: Any) -> dict[str, Any]:
    return {"id": context.task_result.id, "attempt": context.attempt}


class OddError(Exception):
    pass


@task
def fail(kind: str) -> Any:
    if kind == "value":
        raise ValueError("too odd\nand on two lines")
    if kind == "own":
        raise OddError
    if kind == "exit":
        raise SystemExit("bye")
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "discard":
        raise Discard("nobody wants it")
    return {"object": object, "nan": lambda: float("nan")}[kind]()


@task
async def fail_later() -> None:
    raise OddError("later")


@task(max_attempts=3, backoff=backoff.fixed("0s"), retry_on=ConnectionError)
def fail_twice() -> str:
    if current_job().attempt < 3:
        raise ConnectionError("not yet")
    return "third time lucky"


@task(max_attempts=2)
def ask(verdict: str) -> None:
    if verdict == "snooze":
        raise Snooze("1h", reason="closed")
    raise Retry("1h")


@task
def wait(gate: str) -> str:
    gates[gate].pass_through()
    return "passed"


@task
def hang(gate: str) -> None:
    gates[gate].reached.set()
    while not gates[gate].opened.wait(0.01):
        current_job().check()


@task
def write_order(name: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO orders (name) VALUES (%s)", [name])
    return threading.get_ident()


@task
async def write_order_later(name: str) -> int:
    return int(await sync_to_async(write_order.func)(name))


@task
def is_connected() -> bool:
    return connection.connection is not None


@task(vram="2GB", priority=5)
def big() -> None: ...


@task(model="gemma4:e4b", queue_name="ai")
def with_model() -> str:
    return "done"


def undecorated() -> None: ...
