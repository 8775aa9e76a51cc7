"""Listens to a queue's events as applications do, in a process that dies when its consumer dies; writes no keys."""

from __future__ import annotations

from typing import Any

from mirror_scene.node_process import NodeProcess
from mirror_scene.readers import START, ReadFailed

__all__ = ["NodeQueueEvents"]


class NodeQueueEvents:
    """An application's listener: a `QueueEvents` of BullMQ for Node in a process of its own, which ends when its consumer dies.

    It hears what comes after the event with the id `start`: everything, when not told.
    """

    def __init__(self, url: str, queue: str, *, package: str = "bullmq", start: str = START) -> None:
        self._process = NodeProcess("events.mjs", package, url, queue, start)
        if not self._process.wait_for(lambda: {"ready": True} in self._process.lines):
            errors = self._process.errors
            self.close()
            raise ReadFailed(f"the listener did not begin: {errors}")

    @property
    def heard(self) -> list[dict[str, Any]]:
        """The events so far, each with its `id`, its `event` and its fields."""
        return [line["heard"] for line in self._process.lines if "heard" in line]

    @property
    def errors(self) -> list[str]:
        """The errors that its listeners would have been told of, and lived through."""
        return [line["error"] for line in self._process.lines if "error" in line]

    @property
    def died_of(self) -> str | None:
        """What ended the consumer, or None while it lives."""
        return next((line["died"] for line in self._process.lines if "died" in line), None)

    def wait_until_heard(self, event: str, **fields: Any) -> dict[str, Any]:
        """Wait for the first such event, with at least these fields.

        Raises: ReadFailed when the consumer dies before, or none comes in time.
        """

        def found() -> list[dict[str, Any]]:
            wanted = {"event": event, **fields}
            return [heard for heard in self.heard if wanted.items() <= heard.items()]

        if not self._process.wait_for(lambda: bool(found())):
            raise ReadFailed(f"{event} was not heard; heard {self.heard}, died of {self.died_of}, errors {self.errors}")
        return found()[0]

    def wait_until_dead(self) -> str:
        """Wait until the consumer has died and say what of."""
        if not self._process.wait_for(lambda: self.died_of is not None):
            raise ReadFailed(f"the consumer still lives; heard {self.heard}")
        return str(self.died_of)

    def close(self) -> None:
        self._process.close()
