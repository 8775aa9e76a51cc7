"""Suspects of tasks that a worker does not know keep no others from running."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Literal

from gpuqueue import GPUQueue
from gpuqueue.store.sqlite.jobs import SUSPECT
from gpuqueue.worker.clock import Clock
from gpuqueue.worker.dispatcher import SUSPECTS_AT_ONCE, Dispatcher
from gpuqueue.worker.log import WorkerLog
from gpuqueue.worker.site import Site

PLACES: dict[str, Literal["process", "worker"]] = {"known": "process", "hidden": "worker"}


def test_suspects_behind_many_of_an_unknown_task_are_chosen(gq: GPUQueue) -> None:
    for name in ("unknown", *PLACES):
        gq.task(name=name)(lambda: None)
    gq.enqueue_many([("unknown", {})] * (SUSPECTS_AT_ONCE + 1))
    known, hidden = gq.enqueue("known"), gq.enqueue("hidden")
    with closing(sqlite3.connect(gq.database)) as connection, connection:
        connection.execute("UPDATE jobs SET demand_class = ?", (SUSPECT,))
    site = Site("w", gq.store, gq.plugins, gq.own_settings(), Clock(wall=gq.now_us), WorkerLog("w"))
    dispatcher = Dispatcher(
        site,
        may_claim=lambda: True,
        models_known=lambda: True,
        is_preemptible=lambda _: False,
        continues=lambda _: False,
        where_alone=PLACES.get,
    )
    dispatcher.decide()
    assert dispatcher.suspects == (known.id,)
    assert dispatcher.next_lone() == hidden.id
