"""Streams a job's state and output as server-sent events, for a browser's EventSource; knows no web framework.

| event | data | sent |
| --- | --- | --- |
| `state` | {"job", "state", "reasons", "position", "progress", …} | first, and when any of it changes, until the job has ended |
| `piece` | {"text"} | output, as it comes |
| `restart` | {} | the output starts again in another attempt: discard the pieces so far |
| `done` | {"result"} | last: the job completed |
| `failed` | {"code", "message"} | last: the job did not complete |

The keys of `state` are those of `gpuqueue explain --json` and `gpuqueue job --json`: `reasons` explains why the job does not
run yet, each {"reason", "detail", "until"}; `position` is its place in its queue, from 1. In addition there are `attempt`,
`progress_note`, `summary`, `expected_start` and `expected_finish`, each also with `_earliest` and `_latest`: eight of ten jobs
start and finish between those. Unknown values are null.

A browser that lost its connection reconnects by itself and sends the `id` of the last event as `Last-Event-ID`: pass it as
`after`, and the output continues where it stopped. The browser reconnects after the last event too, unless the page closes its
EventSource: if `heard_the_end(after)`, answer 204, which makes it stop.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncGenerator, Generator, Hashable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from gpuqueue.client.async_twins import in_thread
from gpuqueue.client.handle import JobHandle, Piece, Watch
from gpuqueue.domain.errors import UnknownJob
from gpuqueue.domain.job import FINISHED, JobStatus, State

HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Content-Type": "text/event-stream",
        "Cache-Control": "no-cache, no-transform",
        "X-Accel-Buffering": "no",  # nginx passes each event on at once
    }
)
KEEP_ALIVE_S = 15.0  # proxies close silent connections after a minute, and a server notices that a client left when it writes
REFRESH_S = 1.0  # how often values that depend on other jobs, such as the position, are read: it takes a millisecond
RECHECK_S = 5.0  # the same if nothing has happened, and only time can have changed something, such as a window's edge
RECONNECT_MS = 1000
END = "end"  # the id of the last event
_PIECE_ID = re.compile(r"([0-9]{1,18})\.([0-9]{1,18})")


def stream(
    job: JobHandle, *, after: str | None = None, timeout_s: float | None = None, keep_alive_s: float = KEEP_ALIVE_S
) -> Generator[bytes]:
    """Yield the job's events until it has ended; the calling thread waits for them.

    `after` is the browser's Last-Event-ID; anything else counts as none. After `timeout_s` it ends silently, and the browser
    reconnects for the rest: under WSGI that briefly frees the thread for other requests. Waiting here counts as waiting for
    the result: a job in a rejecting queue that no worker serves is refused. Close the generator to release all it holds, as
    servers do when a client leaves. Raises: StoreError.
    """
    with _Telling(job, after, timeout_s, keep_alive_s) as telling:
        while not telling.is_over:
            yield from telling.look()
            while not telling.has_news(telling.listener.wait(telling.patience_s)):
                pass


async def astream(
    job: JobHandle, *, after: str | None = None, timeout_s: float | None = None, keep_alive_s: float = KEEP_ALIVE_S
) -> AsyncGenerator[bytes]:
    """The async twin of `stream`: waits on the event loop without a thread, and borrows one for each read of the database."""
    with _Telling(job, after, timeout_s, keep_alive_s) as telling:
        while not telling.is_over:
            for event in await in_thread(telling.look):
                yield event
            while not telling.has_news(await telling.listener.await_ring(telling.patience_s)):
                pass


def heard_the_end(after: str | None) -> bool:
    """Say whether a browser with this Last-Event-ID has received everything: answer it 204, and it stops reconnecting."""
    return after == END


class _Telling:
    """Follows one job for one client: what to send now, how long to wait, and whether there is news or a keep-alive is due."""

    def __init__(self, job: JobHandle, after: str | None, timeout_s: float | None, keep_alive_s: float) -> None:
        now_s = time.monotonic()
        self._job = job
        self._keep_alive_s = keep_alive_s
        self._ends_s = None if timeout_s is None else now_s + timeout_s
        self._lease, seq = _position(after)  # of the output that the client has
        self._state: dict[str, Any] = {}  # as last sent
        self._state_of: tuple[State, int] | None = None
        self._refreshed_s = now_s
        self._version: Hashable = None  # of the file at that time
        self._is_stale = False  # something happened since
        self._spoke_s: float | None = None
        self.is_over = heard_the_end(after)
        self._watch = Watch(job, after=seq)
        self.listener = self._watch.listener

    def __enter__(self) -> _Telling:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()

    def look(self) -> list[bytes]:
        """Read what is new and return it as events."""
        events = [] if self._spoke_s is not None else [f"retry: {RECONNECT_MS}\n\n".encode()]
        try:
            pieces, ending = self._watch.look_for_output()
            if not ending.is_finished:
                events += self._changed_state(ending)
            events += self._output(pieces)
            if ending.is_finished:
                events.append(_end_of(ending))
                self.is_over = True
        except UnknownJob as error:  # its transaction was rolled back, or it was pruned meanwhile
            events.append(_event("failed", _json({"code": "unknown_job", "message": str(error)}), END))
            self.is_over = True
        now_s = time.monotonic()
        if not events and now_s >= self._silent_until_s:
            events.append(b":\n\n")
        if events:
            self._spoke_s = now_s
        if self._ends_s is not None and now_s >= self._ends_s:
            self.is_over = True
        return events

    @property
    def patience_s(self) -> float:
        """How long to wait for a wakeup."""
        return max(0.0, min(self._watch.patience_s, self._due_s - time.monotonic()))

    def has_news(self, rang: bool) -> bool:
        """Say, after a wait, whether to check again."""
        return self.is_over or time.monotonic() >= self._due_s or self._watch.has_news(rang)

    @property
    def _silent_until_s(self) -> float:
        return (self._spoke_s or 0.0) + self._keep_alive_s

    @property
    def _due_s(self) -> float:
        """When time alone is a reason to check again."""
        due_s = self._silent_until_s
        if self._is_stale:
            due_s = min(due_s, self._refreshed_s + REFRESH_S)
        return due_s if self._ends_s is None else min(due_s, self._ends_s)

    def _changed_state(self, ending: JobStatus) -> list[bytes]:
        now_s = time.monotonic()
        is_new = (ending.state, ending.lease) != self._state_of
        version = self._watch.version
        has_happened = is_new or version != self._version
        self._is_stale = not is_new and has_happened and now_s < self._refreshed_s + REFRESH_S
        if self._is_stale or (not has_happened and now_s < self._refreshed_s + RECHECK_S):
            return []
        self._version = version
        self._state_of, self._refreshed_s = (ending.state, ending.lease), now_s
        state = _state(self._job)
        if state == self._state or state["state"] in FINISHED:  # ended since the look: the next one reports its end
            return []
        self._state = state
        return [_event("state", _json(state))]

    def _output(self, pieces: list[Piece]) -> list[bytes]:
        if not pieces:
            return []
        lease, seq = pieces[-1].attempt_lease, pieces[-1].seq
        starts_again = self._lease not in (0, lease)
        self._lease = lease
        text = "".join(piece for piece in pieces if piece.attempt_lease == lease)
        events = [_event("restart", "{}")] if starts_again else []
        return [*events, _event("piece", _json({"text": text}), f"{lease}.{seq}")]


def _state(job: JobHandle) -> dict[str, Any]:
    explanation = job.explain()
    record = job.refresh().record
    expected = explanation.expected
    return {
        "job": job.id,
        "state": str(explanation.state),
        "attempt": record.attempt,
        "progress": record.progress,
        "progress_note": record.progress_note or None,
        "summary": explanation.summary,
        "reasons": [{"reason": hold.reason, "detail": hold.detail, "until": _iso(hold.until)} for hold in explanation.reasons],
        "position": expected.position if expected else None,
        "expected_start": _iso(expected.start_at) if expected else None,
        "expected_start_earliest": _iso(expected.start_earliest) if expected else None,
        "expected_start_latest": _iso(expected.start_latest) if expected else None,
        "expected_finish": _iso(expected.finish_at) if expected else None,
        "expected_finish_earliest": _iso(expected.finish_earliest) if expected else None,
        "expected_finish_latest": _iso(expected.finish_latest) if expected else None,
    }


def _end_of(ending: JobStatus) -> bytes:
    if ending.state is State.COMPLETED:
        return _event("done", f'{{"result": {ending.result or "null"}}}', END)  # stored as JSON in one line
    code, message = (ending.error.code, ending.error.message) if ending.error else (str(ending.state),) * 2
    if ending.state is State.CANCELLED:
        code, message = "cancelled", "the job was cancelled"
    return _event("failed", _json({"code": code, "message": message}), END)


def _position(after: str | None) -> tuple[int, int]:
    """Read a Last-Event-ID: the lease and number of the last piece, zeros for anything else."""
    found = _PIECE_ID.fullmatch(after or "")
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _event(name: str, data: str, event_id: str = "") -> bytes:
    number = f"id: {event_id}\n" if event_id else ""
    return f"event: {name}\n{number}data: {data}\n\n".encode()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
