"""Compares how fast this checkout is with another commit, in samples taken in turn, each in a process of its own.

Run as `python -m tests.benchmarks.against [REV] [--pairs N] [NAME …]`. REV is sampled twice in each turn: what differs between
the two is the machine's own. 1 is returned when anything is slower by more than that and by more than 3 %.
"""

from __future__ import annotations

import argparse
import compileall
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).parents[2]
BASE = Path(__file__).with_name("base.txt")
SAMPLES: Mapping[str, tuple[str, ...]] = {
    "enqueue-normal": ("enqueue", "normal"),
    "enqueue-full": ("enqueue", "full"),
    "drain-16": ("drain", "16"),
    "drain-1": ("drain", "1"),
    "pickup": ("pickup",),
    "import": ("importing",),
}
IN_MS = ("import",)  # the others are ratios to a floor
ALLOWED = 0.03
ORIGIN = """
import sys, tempfile
from gpuqueue import Config, GPUQueue
with tempfile.TemporaryDirectory() as folder:
    GPUQueue(config=Config.load(None, environ={}, database=f"{folder}/queue.db"), discover_plugins=False).counts()
print(*(module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "gpuqueue"), sep="\\n")
"""


class NotComparable(Exception):
    """A side cannot be prepared or measured."""


# --- the sides ---


def base_commit() -> str:
    """Read which commit is compared with when none is named."""
    lines = BASE.read_text(encoding="utf-8").splitlines()
    return next(line.strip() for line in lines if line.strip() and not line.startswith("#"))


@contextmanager
def checked_out(rev: str) -> Iterator[Path]:
    """Check a commit out in a folder of its own, which is gone at the end."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "worktree"
        _git("worktree", "add", "--detach", str(path), rev)
        try:
            yield path
        finally:
            _git("worktree", "remove", "--force", str(path))


def lay_out(source: Path, folder: Path) -> Path:
    """Copy the package out of a source tree to where an installation would have it; returns the folder to import it from.

    A checkout finds its migrations through the import hook of its own environment, which leads no other to them.
    """
    settings = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    for package, place in {"gpuqueue": "gpuqueue", **settings.get("package-dir", {})}.items():
        shutil.copytree(
            source / place,
            folder.joinpath(*package.split(".")),
            ignore=shutil.ignore_patterns("__pycache__"),
            dirs_exist_ok=True,
        )
    compileall.compile_dir(folder, quiet=1)  # as installed: the modules are compiled once, not at every start
    foreign = [file for file in _run(folder, "-c", ORIGIN).split() if not Path(file).is_relative_to(folder)]
    if foreign:
        raise NotComparable(f"of {source} not all is imported from the copy: {', '.join(foreign)}")
    return folder


def _git(*words: str) -> None:
    ran = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    if ran.returncode:
        raise NotComparable(f"git {' '.join(words)}: {ran.stderr.strip()}")


def _run(folder: Path, *words: str) -> str:
    """Run Python with the package in this folder; returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "PYTHONSAFEPATH": "1"}
    ran = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    if ran.returncode:
        raise NotComparable(f"python {' '.join(words)} in {folder}:\n{ran.stderr}")
    return ran.stdout


# --- the figures ---


@dataclass(frozen=True, slots=True)
class Ratios:
    """The median of some pairs' ratios, and half their interquartile range."""

    median: float
    spread: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Ratios:
        found = [a / b for a, b in zip(ours, theirs, strict=True)]
        lower, _, upper = quantiles(found, n=4, method="inclusive")
        return cls(median(found), (upper - lower) / 2)

    def __str__(self) -> str:
        return f"{self.median:.3f} ±{self.spread:.3f}"


def verdict(same: Ratios, other: Ratios) -> str:
    """Judge A/B by A/A, whose median says as much of the machine as its spread."""
    slower = other.median - 1
    return "within" if slower <= max(ALLOWED, same.spread, abs(same.median - 1)) else f"slower by {slower:.1%}"


@dataclass(frozen=True, slots=True)
class Row:
    """What one measurement found by one clock."""

    name: str
    level: float
    same: Ratios
    other: Ratios

    @property
    def verdict(self) -> str:
        return verdict(self.same, self.other)

    def __str__(self) -> str:
        level = f"{self.level:.1f} ms" if self.name.split()[0] in IN_MS else f"{self.level:.2f} ×"
        return f"{self.name:<20}{level:>9}   {self.same!s:<14}   {self.other!s:<14}   {self.verdict}"


def sample(name: str, folder: Path) -> dict[str, float]:
    """Measure once; returns {clock: value}."""
    module, *words = SAMPLES[name]
    printed = _run(folder, "-m", f"tests.benchmarks.samples.{module}", *words)
    return {clock: float(value) for clock, value in map(str.split, printed.splitlines())}


def compare(name: str, pairs: int, *, sides: Sequence[Path]) -> list[Row]:
    """Sample the three sides in turn: A, A again, and B. Each comes first as often as the others."""
    found: dict[Path, list[dict[str, float]]] = {side: [] for side in sides}
    for number in range(pairs):
        first = number % len(sides)
        for side in (*sides[first:], *sides[:first]):
            found[side].append(sample(name, side))

    def row(clock: str) -> Row:
        base, again, ours = ([values[clock] for values in found[side]] for side in sides)
        both = [(first + second) / 2 for first, second in zip(base, again, strict=True)]
        return Row(f"{name} {clock}", median(both), Ratios.of(again, base), Ratios.of(ours, both))

    return [row(clock) for clock in found[sides[0]][0]]


# --- the command ---


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _asked(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        try:
            with checked_out(asked.rev) as source:
                base, again = (lay_out(source, Path(temporary) / name) for name in ("base", "again"))
            sides = [base, again, lay_out(ROOT, Path(temporary) / "ours")]
            print(f"A is {asked.rev}, B is this checkout. More is slower: × of a plain floor, or ms.")
            print(f"A/A and B/A are medians of {asked.pairs} pairs, ± half the interquartile range; B is held against both A.")
            print(f"{'':<20}{'A':>9}   {'A/A':<14}   B/A", flush=True)
            is_slower = False
            for name in asked.names:
                for row in compare(name, asked.pairs, sides=sides):
                    print(row, flush=True)
                    is_slower |= row.verdict != "within"
        except NotComparable as error:
            print(error, file=sys.stderr)
            return 2
    return int(is_slower)


def _asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.against", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="[REV] [NAME …]", help=f"names: {', '.join(SAMPLES)}; all when none is given")
    parser.add_argument("--pairs", type=int, default=5, metavar="N", help="how many pairs, two or more (%(default)s)")
    asked = parser.parse_intermixed_args(arguments)
    names = list(asked.words)
    asked.rev = names.pop(0) if names and names[0] not in SAMPLES else base_commit()
    if unknown := [name for name in names if name not in SAMPLES]:
        parser.error(f"there is no {', '.join(unknown)}: one commit, then names of {', '.join(SAMPLES)}")
    if asked.pairs < 2:
        parser.error("--pairs: two or more")
    asked.names = names or list(SAMPLES)
    return asked


if __name__ == "__main__":
    sys.exit(main())
