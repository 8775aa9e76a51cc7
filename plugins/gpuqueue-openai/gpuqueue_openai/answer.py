"""Assembles a streamed answer from its pieces."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any


class Answer:
    """The answer so far, and the figures from its latest pieces."""

    def __init__(self, model: str) -> None:
        self.count = 0  # pieces with content; with most servers a piece is one token
        self._model = model
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}
        self._logprobs: dict[str, list[Any]] = {}
        self._done_reason = ""
        self._usage: Mapping[str, Any] = {}
        self._began_s = time.monotonic()
        self._first_token_s = 0.0

    @property
    def output_tokens(self) -> int:
        """The server's count, or else the number of pieces."""
        return int(self._usage.get("completion_tokens") or 0) or self.count

    def take(self, event: Mapping[str, Any]) -> str:
        """Take one event of the stream; returns its text."""
        self._model = str(event.get("model") or self._model)
        self._usage = event.get("usage") or self._usage
        choices: Sequence[Mapping[str, Any]] = event.get("choices") or ()
        if not choices:
            return ""  # the last event has only the figures
        choice = choices[0]
        said: Mapping[str, Any] = choice.get("delta") or {}
        text = str(choice.get("text") or said.get("content") or "")
        thought = str(said.get("reasoning_content") or said.get("reasoning") or "")
        calls = said.get("tool_calls") or ()
        if text or thought or calls:
            self.count += 1
            self._first_token_s = self._first_token_s or time.monotonic() - self._began_s
        self._texts.append(text)
        self._thoughts.append(thought)
        for call in calls:
            self._join_call(call)
        for key, values in (choice.get("logprobs") or {}).items():
            if isinstance(values, list):
                self._logprobs.setdefault(key, []).extend(values)
        self._done_reason = str(choice.get("finish_reason") or self._done_reason)
        return text

    def result(self) -> dict[str, Any]:
        """Return the whole answer; call it after the answer has ended."""
        thinking = "".join(self._thoughts)
        calls = [self._calls[index] for index in sorted(self._calls)]
        more = {"thinking": thinking, "tool_calls": calls, "logprobs": self._logprobs}
        return {
            "text": "".join(self._texts),
            "model": self._model,
            "done_reason": self._done_reason,
            "prompt_tokens": int(self._usage.get("prompt_tokens") or 0),
            "output_tokens": self.output_tokens,
            "total_s": time.monotonic() - self._began_s,
            "first_token_s": self._first_token_s,
            **{key: value for key, value in more.items() if value},
        }

    def _join_call(self, piece: Mapping[str, Any]) -> None:
        """Join a piece of a tool call to the earlier ones: the name comes whole, the arguments as pieces of one string."""
        index = piece.get("index")
        call = self._calls.setdefault(len(self._calls) if index is None else int(index), {})
        function: Mapping[str, Any] = piece.get("function") or {}
        call.update({key: piece[key] for key in ("id", "type") if piece.get(key)})
        joined = call.setdefault("function", {"name": "", "arguments": ""})
        joined["name"] = function.get("name") or joined["name"]
        joined["arguments"] += function.get("arguments") or ""
