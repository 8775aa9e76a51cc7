"""Compares what the processes of a torture run marked with the queue's file, and with what was done to them."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.faults.torture.kinds import EXPECTED, ISOLATED, LIMITS, MAX_CRASHES, MOST_SUSPECTS, POISON, SOUND
from tests.faults.torture.marks import marks
from tests.faults.torture.torturer import Deed, Torturer

TAKEN = ("crashed", "released")  # how an attempt ends that its worker could not finish


class Run(NamedTuple):
    """One run of a job's function under one lease, as it marked itself; `ended_s` is None if it did not come to its end."""

    job: int
    lease: int
    task: str
    queue: str
    in_child: bool
    began_s: float
    ended_s: float | None


class Row(NamedTuple):
    task: str
    key: str
    state: str
    code: str | None
    lease: int
    crashes: int
    attempts: dict[int, tuple[str, str]]  # {lease: (outcome, worker)} of those that did not complete


@dataclass
class Torture:
    """What a run of torture left behind."""

    rows: dict[int, Row]
    runs: list[Run]
    deeds: list[Deed]  # those of poison jobs too

    @property
    def repeated(self) -> int:
        return sum(run.ended_s is not None and run.lease in self._taken(run.job) for run in self.runs)

    def wrong(self, folder: Path) -> Iterator[str]:
        yield from self._lost(marks(folder, "stored"), marks(folder, "refused"))
        for job_id, row in self.rows.items():
            state = (row.state, row.code)
            if state != EXPECTED[row.task]:
                yield f"job {job_id} ({row.task}) ended as {state}, not as {EXPECTED[row.task]}: {row}"
        runs = defaultdict(list)
        for run in self.runs:
            runs[run.job].append(run)
        for job_id, row in self.rows.items():
            yield from self._poison(job_id, row, runs[job_id]) if row.task in POISON else self._sound(job_id, row, runs[job_id])
        for queue, limit in LIMITS.items():
            yield from self._above(limit, f"queue {queue}", (run for run in self.runs if run.queue == queue))
        # Those on a card have its slots as their limit.
        suspects = (run for run in self.runs if run.in_child and run.task not in ISOLATED and run.queue != "card")
        yield from self._above(MOST_SUSPECTS, "the suspects", suspects)

    def _lost(self, stored: Iterable[dict[str, object]], refused: Iterable[dict[str, object]]) -> Iterator[str]:
        """Each id that a producer got is a job; a key is stored once, and none that a producer was told was not stored."""
        seen: set[object] = set()
        for mark in stored:
            row = self.rows.get(int(str(mark["job"])))
            if row is None or (row.task, row.key) != (mark["task"], mark["key"]):
                yield f"job {mark['job']} was lost: {mark} and the file has {row}"
        for row in self.rows.values():
            if row.key in seen:
                yield f"{row.key} was stored twice"
            seen.add(row.key)
        yield from (f"{mark['key']} is stored, and was refused" for mark in refused if mark["key"] in seen)

    def _sound(self, job_id: int, row: Row, runs: list[Run]) -> Iterator[str]:
        """A job runs once. What at-least-once allows: it runs again, under a later lease, if its worker died, or was stopped for
        however short, between the run's begin and the next one's: in the run, or before its outcome was written.
        """
        if row.crashes:
            yield f"job {job_id} ({row.task}) is charged with {row.crashes} deaths: {row}"
        final = [run for run in runs if run.lease not in self._taken(job_id)]
        if len(final) != 1 or (row.state == "completed" and final[0].ended_s is None):
            yield f"job {job_id} ({row.task}) should have finished in one run: {row}, {runs}"
        for number, run in enumerate(runs):
            if run not in final and not self._has_cause(row.attempts[run.lease][1], run, runs[number + 1 : number + 2]):
                yield f"job {job_id} ({row.task}) ran again without a cause after {run}: {row}"

    def _poison(self, job_id: int, row: Row, runs: list[Run]) -> Iterator[str]:
        """A poison job kills one worker at most, and then its own processes: as many as are allowed."""
        if sum(not run.in_child for run in runs) > 1:
            yield f"job {job_id} ({row.task}) killed more than one worker: {runs}"
        if row.crashes != MAX_CRASHES or {outcome for outcome, _ in row.attempts.values()} - set(TAKEN):
            yield f"job {job_id} ({row.task}) crashed {row.crashes} times: {row}"

    def _has_cause(self, worker: str, run: Run, later: list[Run]) -> bool:
        pid = int(worker.split("-")[-2])
        until_s = later[0].began_s if later else float("inf")
        deeds = (deed for deed in self.deeds if deed.pid == pid and deed.began_s <= until_s)
        return any(deed.ended_s is None or deed.ended_s >= run.began_s for deed in deeds)

    def _above(self, limit: int, what: str, runs: Iterable[Run]) -> Iterator[str]:
        """Check the runs that came to their end under the lease they had all the time: those that lost it may run on."""
        sound = [run for run in runs if run.ended_s is not None and run.lease not in self._taken(run.job)]
        edges = sorted([(run.began_s, 1) for run in sound] + [(run.ended_s or 0.0, -1) for run in sound])
        now = most = 0
        for _, change in edges:
            now += change
            most = max(most, now)
        if most > limit:
            yield f"{what} ran {most} jobs at once, the limit is {limit}"

    def _taken(self, job_id: int) -> set[int]:
        return {lease for lease, (outcome, _) in self.rows[job_id].attempts.items() if outcome in TAKEN}


def read(torturer: Torturer) -> Torture:
    poisoned = [
        Deed("poison", "worker", mark["pid"], mark["at"])
        for mark in marks(torturer.folder, "runs")
        if mark["task"].rpartition(".")[2] in POISON and not mark["in_child"]
    ]
    with torturer.gq.store.engine.lent() as connection:
        return Torture(_rows(connection), _runs(torturer.folder), [*torturer.deeds, *poisoned])


def _rows(connection: sqlite3.Connection) -> dict[int, Row]:
    attempts: dict[int, dict[int, tuple[str, str]]] = defaultdict(dict)
    for job_id, lease, outcome, worker in connection.execute("SELECT job_id, lease, outcome, worker_id FROM attempts"):
        attempts[job_id][lease] = (outcome, worker)
    found = connection.execute(
        "SELECT id, task, json_extract(arguments, '$.key'), state, json_extract(error, '$.code'), lease, crashes FROM jobs"
    )
    return {
        job_id: Row(task.rpartition(".")[2], key, state, code, lease, crashes, attempts[job_id])
        for job_id, task, key, state, code, lease, crashes in found
    }


def _runs(folder: Path) -> list[Run]:
    found: dict[tuple[int, int], Run] = {}
    for mark in marks(folder, "runs"):
        key = (mark["job"], mark["lease"])
        if mark["what"] == "ended":
            found[key] = found[key]._replace(ended_s=mark["at"])
        else:
            assert key not in found, f"job {key[0]} began twice under lease {key[1]}: {json.dumps(mark)}"
            task = mark["task"].rpartition(".")[2]
            found[key] = Run(*key, task, mark["queue"], mark["in_child"], mark["at"], None)
    return sorted(found.values(), key=lambda run: (run.job, run.lease))


def check(torturer: Torturer) -> None:
    """Fail with all that is wrong."""
    torture = read(torturer)
    print(f"{torturer.account()}, {torture.repeated} runs came to their end and were repeated")
    wrong = list(torture.wrong(torturer.folder))
    allowed = {"worker": {0, 9, -9}, "producer": {0, -9}}
    for slot in torturer.slots:
        wrong += [f"a {slot.kind} ended with {status}" for status in slot.statuses if status not in allowed[slot.kind]]
    # A fork in the very moment in which another thread opens the file is told to the child.
    children = (mark["how"] for mark in marks(torturer.folder, "child"))
    wrong += [f"a forked child: {how}" for how in children if how != "done" and not how.startswith("ForkedWithOpenFile(")]
    assert not wrong, "\n".join([f"{len(wrong)} promises were broken ({torturer.account()}):", *wrong[:20]])
    torturer.history.check(completed=[job_id for job_id, row in torture.rows.items() if row.task in SOUND])
    assert not torturer.gq.workers(), "the workers have ended"
