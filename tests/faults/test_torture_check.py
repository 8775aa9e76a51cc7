"""The check of a torture run: what is well passes, and each broken promise is said."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.torture.check import Row, Run, Torture
from tests.faults.torture.torturer import Deed

FROZEN, DEAD, SOUND = 7, 8, 9  # pids of three workers


def run(
    job: int, lease: int, worker: int, began_s: float, ended_s: float | None, task: str = "narrow", in_child: bool = False
) -> Run:
    return Run(job, lease, task, "narrow" if task == "narrow" else "odd", in_child, began_s, ended_s)


@pytest.fixture
def torture(tmp_path: Path) -> Torture:
    """One job that ran once, one that was taken from a frozen worker and ended there all the same, and one that is poison."""
    rows = {
        1: Row("narrow", "a", "completed", None, 1, 0, {}),
        2: Row("narrow", "b", "completed", None, 3, 0, {1: ("crashed", f"host-{FROZEN}-x")}),
        3: Row(
            "poison",
            "c",
            "discarded",
            "crashed",
            6,
            3,
            {1: ("crashed", f"host-{DEAD}-x"), **dict.fromkeys((3, 4, 5), ("crashed", f"host-{SOUND}-x"))},
        ),
    }
    runs = [
        run(1, 1, SOUND, 0.0, 1.0),
        run(2, 1, FROZEN, 0.5, 9.0),
        run(2, 3, SOUND, 6.0, 7.0),
        run(3, 1, DEAD, 0.0, None, "poison"),
        *(run(3, lease, SOUND, float(lease), None, "poison", True) for lease in (3, 4, 5)),
    ]
    deeds = [Deed("freeze", "worker", FROZEN, 1.0, 8.0), Deed("poison", "worker", DEAD, 0.0)]
    stored = [{"job": job_id, "key": row.key, "task": row.task} for job_id, row in rows.items()]
    (tmp_path / "stored").write_text("".join(json.dumps(line) + "\n" for line in stored))
    (tmp_path / "refused").write_text(json.dumps({"key": "d"}) + "\n")
    return Torture(rows, runs, deeds)


def change_row(job_id: int, **values: Any) -> Callable[[Torture], None]:
    def change(torture: Torture) -> None:
        torture.rows[job_id] = torture.rows[job_id]._replace(**values)

    return change


def test_a_run_that_kept_all_promises_is_well(torture: Torture, tmp_path: Path) -> None:
    assert list(torture.wrong(tmp_path)) == []
    assert torture.repeated == 1


BROKEN: dict[str, tuple[Callable[[Torture], object], str]] = {
    "lost": (lambda torture: torture.rows.pop(1), "job 1 was lost"),
    "another in its place": (change_row(1, key="e"), "job 1 was lost"),
    "stored twice": (lambda torture: torture.rows.update({4: torture.rows[1]}), "a was stored twice"),
    "stored although refused": (change_row(2, key="d"), "d is stored, and was refused"),
    "not finished": (change_row(1, state="running"), "job 1 .narrow. ended as .'running'"),
    "charged": (change_row(2, crashes=1), "job 2 .narrow. is charged with 1 deaths"),
    "completed without running": (lambda torture: torture.runs.pop(0), "job 1 .narrow. should have finished in one run"),
    "repeated without a cause": (lambda torture: torture.deeds.clear(), "job 2 .narrow. ran again without a cause"),
    "repeated after the cause": (
        lambda torture: torture.deeds.__setitem__(0, Deed("freeze", "worker", FROZEN, 6.5, 8.0)),
        "job 2 .narrow. ran again without a cause",
    ),
    "killed two workers": (
        lambda torture: torture.runs.append(run(3, 2, SOUND, 2.0, None, "poison")),
        "job 3 .poison. killed more than one worker",
    ),
    "poison that was charged too little": (change_row(3, crashes=2), "job 3 .poison. crashed 2 times"),
    "above the limit": (
        lambda torture: torture.runs.extend(run(1, lease, SOUND, 0.1, 0.9) for lease in (8, 9)),
        "queue narrow ran 3 jobs at once, the limit is 2",
    ),
    "three suspects": (
        lambda torture: torture.runs.extend(run(1, lease, SOUND, 0.1, 0.9, "plain", True) for lease in (7, 8, 9)),
        "the suspects ran 3 jobs at once, the limit is 2",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_promise_is_said(torture: Torture, tmp_path: Path, name: str) -> None:
    break_it, sentence = BROKEN[name]
    break_it(torture)
    assert any(re.search(sentence, found) for found in torture.wrong(tmp_path))
