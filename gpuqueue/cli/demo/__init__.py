"""Runs `gpuqueue demo`: plays the scenario for real on a simulated card, watches it and judges it.

Nothing that runs in production imports it.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from gpuqueue.cli.demo.display import Display
from gpuqueue.cli.demo.evidence import Check, checklist, holds, summary
from gpuqueue.cli.demo.recorder import Recorder
from gpuqueue.cli.demo.scenario import Scenario
from gpuqueue.cli.demo.stage import SPEED, DemoFailed, Request, Stage

__all__ = ["exit_status", "run"]

FAILED, INTERRUPTED = 1, 130
LONGEST_S = 240.0
LONGEST_REAL_S = 1800.0


def run(*, json_output: bool, ollama_url: str | None, model: str | None, keep: Path | None) -> int:
    """Run the demo and print what happened.

    `ollama_url` with `model` uses a real Ollama; `keep` is a folder for the configuration, database, log and files.
    Returns: 0; 1 if a rule was broken or the demo could not continue; 130 after Ctrl-C.
    Raises: UsageError for wrong options.
    """
    began_s = time.monotonic()
    console = Console()
    try:
        with _terminated_as_interrupt(), Stage(Request(ollama_url, model, keep)) as stage:
            display = Display(console, title=_title(stage), quiet=json_output)
            display.say(*_opening(stage, is_kept=keep is not None))
            longest_s = LONGEST_S if stage.is_simulated else LONGEST_REAL_S
            with (
                display,
                Recorder(stage, deadline_s=began_s + longest_s, on_line=display.line, on_sample=display.sample) as recorder,
            ):
                scenario = Scenario(stage, recorder, display.act)
                scenario.play()
            found = scenario.evidence()
            checks = checklist(found)
            if json_output:
                print(json.dumps(summary(found), indent=2))
            display.checklist(checks, time.monotonic() - began_s, clock=_clock(stage))
            if keep is not None:
                display.say(f"Kept in {stage.folder}: gpuqueue.toml, gpuqueue.db, worker.log and rfa/")
            elif stage.is_simulated:
                display.say("Next: `gpuqueue init` writes a gpuqueue.toml for this machine.")
            return exit_status(checks)
    except KeyboardInterrupt:
        print("interrupted; the worker was stopped", file=sys.stderr)
        return INTERRUPTED
    except DemoFailed as error:
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
        print(f"Error: {error}{notes}", file=sys.stderr)
        if error.worker_log:
            print(f"Last output of the worker:\n{error.worker_log}", file=sys.stderr)
        return FAILED


def exit_status(checks: Sequence[Check]) -> int:
    """Return 1 if a rule was broken, else 0."""
    return 0 if holds(checks) else FAILED


def _title(stage: Stage) -> str:
    if stage.simulator is None:
        return f"gpuqueue demo · {stage.model} on {stage.backend.url}"
    return f"gpuqueue demo · simulated {stage.simulator.card.name.removeprefix('NVIDIA ')}, {SPEED:g}× speed"


def _opening(stage: Stage, *, is_kept: bool) -> tuple[str, ...]:
    configuration = f"configuration: {stage.config_file}" + ("" if is_kept else " (removed at the end; --keep FOLDER keeps it)")
    if stage.simulator is None:
        return (_title(stage), configuration)
    changed = "as init writes it, except retry_every 3s, probe_every 500ms and a time zone where it is evening"
    return (_title(stage), configuration, changed)


def _clock(stage: Stage) -> str:
    if stage.simulator is None:
        return "Overlaps are measured by leases, memory by Ollama's own figures."
    return f"Times are real; the simulated card runs at {SPEED:g}× speed."


@contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end the demo as Ctrl-C does, so that its worker ends too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
