"""Gives the threads of a process turns at something, one at a time; knows nothing of what they do with them.

A signal handler may raise between any two steps of the thread that it interrupts, except between the taking of a plain lock by
`with` and the first step of the block. So a turn is held as locks of its own, taken that way before it is asked for: whatever is
raised, and wherever, leaving the block gives the turn back.
"""

from __future__ import annotations

from threading import Lock, get_ident

from gpuqueue.domain.errors import UsageError

# A plain tuple, because every enqueue makes one:
# - ended: a lock that those who wait until the turn has ended take for an instant
# - running: a lock that no other thread takes, so it is locked only while the turn lasts
# - the thread, which asks inside `with ended, running`
# - the turns that were asked for after this one ended; the first has it: appending decides that in one step
Turn = tuple[Lock, Lock, int, "list[Turn]"]


def new_turn() -> Turn:
    return Lock(), Lock(), get_ident(), []


class Turns:
    """Who has the turn. `refusal` is what a thread is told that asks again during its own turn: it would wait for itself."""

    def __init__(self, refusal: str) -> None:
        self.last = new_turn()  # the latest known; those of interrupted threads may have come later
        self._refusal = refusal

    def ask(self, mine: Turn) -> Turn:
        """Take the turn if it is free; returns who has it now: `mine`, or the turn whose end to wait for.

        Raises: UsageError if a signal handler or a finalizer asks in the middle of its own thread's turn.
        """
        while True:
            turn = self.last
            while turn[3]:
                turn = turn[3][0]
            _, running, thread, later = turn
            if running.locked():
                if thread == mine[2]:
                    raise UsageError(self._refusal)
                return turn
            later.append(mine)
            if later[0] is mine:
                self.last = mine
                return mine
