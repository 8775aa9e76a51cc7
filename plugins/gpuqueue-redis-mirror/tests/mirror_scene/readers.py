"""Wraps the clients that tests read a server with behind one interface; they write no keys.

States have BullMQ's names: waiting, active, prioritized, delayed, completed, failed, waiting-children.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, ClassVar, Protocol, TypeVar

import bullmq
import httpx
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gpuqueue.testing.waiting import DEADLINE_S
from mirror_scene.node_process import NodeProcess

__all__ = ["READERS", "START", "BullBoard", "NodeBullMQ", "PythonBullMQ", "ReadFailed", "Reader"]

Read = TypeVar("Read")
READERS = ("python", "node-5", "node-6", "bull-board")
NEWEST_FIRST = ("completed", "failed")
START = "0-0"  # before every event


class ReadFailed(Exception):
    """A client could not read: its own error, in its words."""


class Reader(Protocol):
    """What each client is asked; where a client has no such question, the answer is None.

    `ids` are in the client's order: of finished jobs the newest first, of others the next to run first. A job has the fields
    that BullMQ's clients call `name`, `data`, `opts`, … where the client knows them, and its `state`. `workers` are names.
    `events` are those after the one with the id `start`, as the client's listeners hear them, each with its `id` and `event`.
    """

    name: str

    def counts(self, queue: str) -> dict[str, int]: ...
    def ids(self, queue: str, state: str) -> list[str]: ...
    def job(self, queue: str, job_id: str) -> dict[str, Any] | None: ...
    def is_paused(self, queue: str) -> bool: ...
    def logs(self, queue: str, job_id: str) -> list[str]: ...
    def workers(self, queue: str) -> list[str] | None: ...
    def metrics(self, queue: str, kind: str) -> dict[str, Any] | None: ...
    def events(self, queue: str, start: str = START) -> list[dict[str, Any]] | None: ...
    def close(self) -> None: ...


def _worker_names(connections: list[str]) -> list[str]:
    return sorted(name.partition(":w:")[2] for name in connections)


class PythonBullMQ:
    """The client `bullmq` of PyPI; it shows no metrics."""

    FIELDS = (
        *("id", "name", "data", "opts", "progress", "delay", "priority", "timestamp", "processedOn", "finishedOn"),
        *("attemptsMade", "attemptsStarted", "stalledCounter", "failedReason", "stacktrace", "returnvalue"),
        *("repeatJobKey", "parentKey", "parent"),
    )

    def __init__(self, url: str) -> None:
        self.name = "bullmq for Python"
        self._url = url
        self._loop = asyncio.Runner()
        self._queues: dict[str, bullmq.Queue] = {}

    def counts(self, queue: str) -> dict[str, int]:
        return self._read(self._queue(queue).getJobCounts())

    def ids(self, queue: str, state: str) -> list[str]:
        jobs = self._read(self._queue(queue).getJobs([state], 0, -1, state not in NEWEST_FIRST))
        return [job.id for job in jobs]

    def job(self, queue: str, job_id: str) -> dict[str, Any] | None:
        job = self._read(self._queue(queue).getJob(job_id))
        if job is None:
            return None
        known = {field: getattr(job, field) for field in self.FIELDS}
        state = self._read(self._queue(queue).getJobState(job_id))
        return {**{field: value for field, value in known.items() if value is not None}, "state": state}

    def is_paused(self, queue: str) -> bool:
        return bool(self._read(self._queue(queue).isPaused()))

    def logs(self, queue: str, job_id: str) -> list[str]:
        return list(self._read(self._queue(queue).getJobLogs(job_id))["logs"])

    def workers(self, queue: str) -> list[str]:
        return _worker_names([client["rawname"] for client in self._read(self._queue(queue).get_workers())])

    def metrics(self, queue: str, kind: str) -> None:
        return None

    def events(self, queue: str, start: str = START) -> list[dict[str, Any]]:
        return self._read(self._heard(queue, start))

    def close(self) -> None:
        for queue in self._queues.values():
            self._loop.run(queue.close())
        self._loop.close()

    async def _heard(self, queue: str, start: str) -> list[dict[str, Any]]:
        client = self._client()
        last = await client.xrevrange(f"bull:{queue}:events", count=1)
        await client.aclose()
        if not last or _number(last[0][0]) <= _number(start):
            return []
        options = {"connection": self._client(), "autorun": False, "lastEventId": start}
        # It closes only once a read has come to its end, and after the last event no read has anything to come back with.
        consumer = _Recording(queue, {**options, "blockingTimeout": 50})
        running = asyncio.create_task(consumer.run())
        try:
            await asyncio.wait_for(consumer.heard_of(last[0][0]), DEADLINE_S)
        finally:
            await consumer.close()
            await asyncio.gather(running, return_exceptions=True)
        return consumer.heard

    def _queue(self, name: str) -> bullmq.Queue:
        if name not in self._queues:

            async def make() -> bullmq.Queue:
                return bullmq.Queue(name, {"connection": self._client()})

            self._queues[name] = self._loop.run(make())
        return self._queues[name]

    def _client(self) -> redis.asyncio.Redis:
        # A server that is away is told at once rather than waited for.
        return redis.asyncio.Redis.from_url(
            self._url, decode_responses=True, retry=Retry(NoBackoff(), 0), socket_timeout=DEADLINE_S
        )

    def _read(self, question: Coroutine[Any, Any, Read]) -> Read:
        try:
            return self._loop.run(question)
        except Exception as error:
            raise ReadFailed(f"{type(error).__name__}: {error}") from error


class _Recording(bullmq.QueueEvents):
    """A consumer that keeps what its listeners would hear."""

    def __init__(self, *arguments: Any) -> None:
        self.heard: list[dict[str, Any]] = []
        self._more = asyncio.Event()
        self._error: Exception | None = None
        super().__init__(*arguments)

    def emit(self, event_name: str, *arguments: Any, **_: Any) -> None:
        if event_name == "error":
            self._error = arguments[0]
        elif ":" not in event_name:  # each event is emitted twice, the second time under its job's own name
            fields = arguments[0] if len(arguments) > 1 else {}
            self.heard.append({"id": arguments[-1], "event": event_name, **fields})
        self._more.set()

    async def heard_of(self, event_id: str) -> None:
        while not self.heard or self.heard[-1]["id"] != event_id:
            if self._error is not None:
                raise self._error
            self._more.clear()
            await self._more.wait()


def _number(event_id: str) -> tuple[int, int]:
    ms, _, n = event_id.partition("-")
    return int(ms), int(n or 0)


class NodeBullMQ:
    """The client `bullmq` of npm, of one major version, in a Node process that readers may share."""

    def __init__(self, url: str, process: NodeProcess, version: int) -> None:
        self.name = f"bullmq {version} for Node"
        self._url = url
        self._process = process

    def counts(self, queue: str) -> dict[str, int]:
        return self.ask("counts", queue=queue)

    def ids(self, queue: str, state: str) -> list[str]:
        return self.ask("ids", queue=queue, state=state)

    def job(self, queue: str, job_id: str) -> dict[str, Any] | None:
        return self.ask("job", queue=queue, job=job_id)

    def is_paused(self, queue: str) -> bool:
        return self.ask("is_paused", queue=queue)

    def logs(self, queue: str, job_id: str) -> list[str]:
        return self.ask("logs", queue=queue, job=job_id)

    def workers(self, queue: str) -> list[str]:
        return _worker_names(self.ask("workers", queue=queue))

    def metrics(self, queue: str, kind: str) -> dict[str, Any]:
        return self.ask("metrics", queue=queue, kind=kind)

    def events(self, queue: str, start: str = START) -> list[dict[str, Any]]:
        return self.ask("events", queue=queue, start=start)

    def close(self) -> None:
        """Close its connections; the process goes on."""
        if self._process.running:
            self.ask("close")

    def ask(self, op: str, **asked: Any) -> Any:
        lines = self._process.lines
        before = len(lines)
        self._process.say(op=op, url=self._url, **asked)
        if not self._process.wait_for(lambda: len(lines) > before):
            running = self._process.running
            errors = self._process.errors
            self._process.close()  # a late answer would be taken for that to the next question
            raise ReadFailed(f"{self.name} did not answer in time" if running else f"{self.name} ended: {errors}")
        if "error" in lines[-1]:
            raise ReadFailed(lines[-1]["error"])
        return lines[-1]["result"]


class BullBoard:
    """The dashboard bull-board over HTTP, with BullMQ 6 behind it; it shows no events and lists the last to run first."""

    FIELDS: ClassVar = {"attempts": "attemptsMade", "returnValue": "returnvalue"}

    def __init__(self, url: str, process: NodeProcess) -> None:
        self.name = "bull-board"
        self._node = NodeBullMQ(url, process, 6)
        self._http = httpx.Client(timeout=DEADLINE_S, trust_env=False)

    def counts(self, queue: str) -> dict[str, int]:
        return self._queue(queue)["counts"]

    def ids(self, queue: str, state: str) -> list[str]:
        shown = self._queue(queue, activeQueue=queue, status=state, jobsPerPage=100)
        pages = range(2, shown["pagination"]["pageCount"] + 1)
        jobs = [*shown["jobs"], *(job for page in pages for job in self.page(queue, state, page, per_page=100))]
        return [job["id"] for job in jobs]

    def page(self, queue: str, state: str, page: int, *, per_page: int = 10) -> list[dict[str, Any]]:
        """The jobs of one page, as the dashboard's list shows them; the first page is 1."""
        return self._queue(queue, activeQueue=queue, status=state, page=page, jobsPerPage=per_page)["jobs"]

    def job(self, queue: str, job_id: str) -> dict[str, Any] | None:
        found = self._get(queue, f"/api/queues/{queue}/{job_id}")
        if found is None:
            return None
        known = {self.FIELDS.get(field, field): value for field, value in found["job"].items() if value is not None}
        # The dashboard shows the last failure first.
        return {**known, "stacktrace": known["stacktrace"][::-1], "state": found["status"]}

    def is_paused(self, queue: str) -> bool:
        return self._queue(queue)["isPaused"]

    def logs(self, queue: str, job_id: str) -> list[str]:
        return self._get(queue, f"/api/queues/{queue}/{job_id}/logs")

    def workers(self, queue: str) -> list[str] | None:
        workers = self._get(queue, f"/api/queues/{queue}/workers")["workers"]
        return None if workers is None else sorted(worker["name"] or "" for worker in workers)

    def metrics(self, queue: str, kind: str) -> dict[str, Any] | None:
        metrics = self._get(queue, f"/api/queues/{queue}/metrics")[kind]
        return metrics and {**metrics["meta"], "data": metrics["data"]}

    def events(self, queue: str, start: str = START) -> None:
        return None

    def close(self) -> None:
        self._http.close()
        self._node.close()

    def _queue(self, queue: str, **options: Any) -> dict[str, Any]:
        """The queue as the dashboard lists it, with jobs where it is told to be the one in view."""
        (shown,) = self._get(queue, "/api/queues", **options)["queues"]
        return shown

    def _get(self, queue: str, path: str, **options: Any) -> Any:
        port = self._node.ask("board", queue=queue)
        answer = self._http.get(f"http://127.0.0.1:{port}{path}", params=options)
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        if answer.is_error:
            raise ReadFailed(f"bull-board answered {answer.status_code}: {answer.text}")
        return answer.json()
