"""Plays the jobs around a waiting one forward, in the dispatcher's order: how many of each model are done before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MOST_STEPS = 500  # that are played one by one; what remains then starts in the order in which it came


@dataclass(slots=True)
class Line:
    """The jobs that wait for one model: those that came before the job that is asked about, and those behind it.

    `turn_s`: how long each takes in turn.
    """

    ahead: int
    behind: int
    turn_s: float
    started: int = 0
    rest_s: float = 0.0  # of one that was stopped
    passed_at_s: float | None = None  # since when others start before the next one

    @property
    def done(self) -> float:
        return self.started - (self.rest_s / self.turn_s if self.rest_s else 0.0)

    def next_age(self, most: int) -> float | None:
        """Return when the next job came: 0 for the first of all, 1 for the job that is asked about; None if there is none."""
        number = self.started - (self.rest_s > 0)
        if number < self.ahead:
            return (number + 0.5) / self.ahead
        return 1.0 + (number - self.ahead + 0.5) / most if number < self.ahead + self.behind else None


def done_before(
    model: str, lines: Mapping[str, Line], *, loaded: frozenset[str], affinity_s: float, every_s: Mapping[str, float]
) -> dict[str, float]:
    """Return how many jobs of each model are done when a job of `model` starts; one that was stopped counts in part.

    The next one is the oldest of those that were passed for `affinity_s`, else of those with a loaded model, else of all. A job
    that comes first needs a model of `every_s` so often, and stops the running one if that needs another. Only numbers are known:
    the jobs of each model are taken to have come evenly.
    """
    mine = lines[model]
    comes_s = {name: gap_s / 2 for name, gap_s in every_s.items()}
    most = max(1, *(line.ahead for line in lines.values()))
    now_s = 0.0
    for _ in range(MOST_STEPS):
        ages = {name: age for name, line in lines.items() if (age := line.next_age(most)) is not None}
        is_next = mine.started == mine.ahead and not mine.rest_s
        if is_next:
            ages[model] = 1.0
        overdue = [name for name in ages if (since := lines[name].passed_at_s) is not None and now_s - since >= affinity_s]
        oldest = min(ages, key=lambda name: ages[name])
        chosen = min(overdue or [name for name in ages if name in loaded] or [oldest], key=lambda name: ages[name])
        if chosen == model and is_next:
            break
        line = lines[chosen]
        if chosen != oldest and lines[oldest].passed_at_s is None:
            lines[oldest].passed_at_s = now_s
        line.started += not line.rest_s
        ends_s, line.rest_s, loaded = now_s + (line.rest_s or line.turn_s), 0.0, frozenset((chosen,))
        while comes_s and (comes_at_s := min(comes_s.values())) < ends_s:
            comer = min(comes_s, key=lambda name: comes_s[name])
            comes_s[comer] += every_s[comer]
            if comer != chosen:
                ends_s, line.rest_s, loaded = comes_at_s, ends_s - comes_at_s, frozenset((comer,))
                break
        else:
            line.passed_at_s = None
        now_s = ends_s
    else:
        return {name: max(line.done, line.ahead) for name, line in lines.items()}
    return {name: line.done for name, line in lines.items()}
