"""Interrupts a thread at a chosen step of the store: at each one at which Python may run a signal handler."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import gpuqueue.store

STORE = str(Path(gpuqueue.store.__file__).parent)
BEFORE = ("CALL", "JUMP_BACKWARD", "RESUME")  # instructions after which Python looks whether a signal came


class Interrupt(Exception):
    """As a library raises that limits a call's time by a signal."""


def reached(step: int, work: Callable[[], object], react: Callable[[], object]) -> bool:
    """Do the work, and react in the middle of it; returns whether it has so many steps."""
    steps = iter(range(step, -1, -1))
    has_reacted = False

    def at_each_step() -> None:
        nonlocal has_reacted
        if next(steps, None) == 0:
            has_reacted = True
            react()

    def trace(frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.startswith(STORE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        last = ""

        def trace_instruction(frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
            nonlocal last
            if event == "opcode":
                before, last = last, dis.opname[frame.f_code.co_code[frame.f_lasti]]
                if before.startswith(BEFORE):
                    at_each_step()
            return trace_instruction

        at_each_step()
        return trace_instruction

    real = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except Interrupt:
        pass
    finally:
        sys.settrace(real)
    return has_reacted
