"""Owns the picture of what the card did: one lane for each scheme, as SVG; measures nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from xml.sax.saxutils import escape

from tests.benchmarks.scheduling.measure import LOAD, UNLOAD, Interval, Run
from tests.benchmarks.scheduling.schemes import SCHEMES
from tests.benchmarks.scheduling.traces import REALTIME, Trace

WIDTH, LEFT, RIGHT = 1000, 190, 10
LANE, GAP, HEAD, FOOT = 20, 8, 46, 34
SMALLEST = 0.6  # in the picture's units: what is shorter would not be seen
KINDS = {"realtime": "realtime answers", "batch": "batch answers", "load": "a model is loaded, or its memory comes back"}
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#3d444d}.h{font-weight:600}.r{fill:#e8590c}.b{fill:#74a9d8}.l{fill:#7048e8}"
    ".o{fill:#8884;}.g{stroke:#8888;stroke-width:.5}"
    "@media(prefers-color-scheme:dark){text{fill:#d1d7e0}.b{fill:#3f7cb0}.r{fill:#ff8c42}}"
)


def picture(runs: Mapping[str, Mapping[str, Run]], traces: Mapping[str, Trace], *, speed: float) -> str:
    """Draw all runs, the traces below each other on one scale of minutes."""
    longest_s = max((item.end_s for rows in runs.values() for run in rows.values() for item in run.intervals), default=60.0)
    scale = (WIDTH - LEFT - RIGHT) / longest_s
    parts: list[str] = []
    y = HEAD
    for name, rows in runs.items():
        parts.append(f'<text class="h" x="8" y="{y}">{escape(name)}: {escape(traces[name].about)}</text>')
        y += 10
        top = y
        for scheme, run in rows.items():
            parts += _lane(SCHEMES[scheme].title, run.intervals, y, scale, longest_s)
            y += LANE + GAP
        parts += _minutes(top, y - GAP, longest_s, scale)
        y += FOOT
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" role="img" aria-labelledby="title desc">\n'
        '<title id="title">What the card did under each scheme</title>\n'
        '<desc id="desc">One lane for each scheme, time in minutes of the card to the right, '
        f"simulated at {speed:g} times its speed. Colours: {'; '.join(KINDS.values())}.</desc>\n"
        f"<style>{STYLE}</style>"
    )
    return "\n".join([head, *_legend(), *parts, "</svg>\n"])


def _legend() -> Iterable[str]:
    x = 8
    for css, words in zip("rbl", KINDS.values(), strict=True):
        yield f'<rect class="{css}" x="{x}" y="10" width="12" height="12"/><text x="{x + 18}" y="20">{words}</text>'
        x += 40 + 7 * len(words)


def _lane(title: str, intervals: Sequence[Interval], y: float, scale: float, longest_s: float) -> Iterable[str]:
    yield f'<text x="8" y="{y + 14}">{escape(title)}</text>'
    yield f'<rect class="o" x="{LEFT}" y="{y}" width="{longest_s * scale:.1f}" height="{LANE}"/>'
    # The realtime answers last, so that none is hidden by what lies beside it.
    for css, chosen in (
        ("b", [item for item in intervals if item.kind not in (LOAD, UNLOAD) and item.queue != REALTIME]),
        ("l", [item for item in intervals if item.kind in (LOAD, UNLOAD)]),
        ("r", [item for item in intervals if item.kind not in (LOAD, UNLOAD) and item.queue == REALTIME]),
    ):
        path = "".join(
            f"M{LEFT + start:.1f} {y}h{end - start:.1f}v{LANE}h-{end - start:.1f}z" for start, end in _joined(chosen, scale)
        )
        if path:
            yield f'<path class="{css}" d="{path}"/>'


def _joined(intervals: Sequence[Interval], scale: float) -> list[tuple[float, float]]:
    """Bring the intervals of one job together, and make each long enough to be seen."""
    joined: list[tuple[float, float]] = []
    job: int | None = None
    for item in sorted(intervals, key=lambda item: item.start_s):
        start, end = item.start_s * scale, max(item.end_s * scale, item.start_s * scale + SMALLEST)
        if joined and item.job is not None and item.job == job and start - joined[-1][1] < SMALLEST:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
        job = item.job
    return joined


def _minutes(top: float, bottom: float, longest_s: float, scale: float) -> Iterable[str]:
    for minute in range(0, int(longest_s / 60) + 1, 5):
        x = LEFT + minute * 60 * scale
        yield f'<path class="g" d="M{x:.1f} {top}V{bottom}"/><text x="{x:.1f}" y="{bottom + 14}">{minute} min</text>'
