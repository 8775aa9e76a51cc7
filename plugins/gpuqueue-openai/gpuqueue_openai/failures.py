"""Owns the class and the words of every failure of such a server; asks nobody, and decides nothing about the job."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from gpuqueue.plugins import (
    BackendUnavailable,
    CallerFault,
    ExecutionError,
    OutOfMemory,
    RunnerCrashed,
    reason_in,
    shown_url,
    was_refused,
)
from gpuqueue_openai.settings import NAME, Settings

LONGEST_RETRY_AFTER_S = 3600.0  # a header that asks for more, by mistake or not, must not park a job
KEY_SETTINGS = "api_key in [openai], or GPUQUEUE_OPENAI_API_KEY"

_OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemory|cudaMalloc failed|insufficient (v?ram|memory|system resources)|"
    r"(failed|unable) to allocate|ErrorMemoryAllocation|ERROR_OUT_OF_(DEVICE_)?MEMORY",
    re.IGNORECASE,
)
_OUT_OF_CREDIT = "insufficient_quota"  # the code with which OpenAI's own service answers 429 then
_BUSY = (408, 429, 502, 503, 504)  # 503 is also what llama.cpp says while it loads its model
_NOT_BUILT = 501  # the server lacks what was asked for, so asking again does not help


class ServerUnavailable(BackendUnavailable):
    """The server is away or busy; `retry_after_s` is when it said that it may be asked again, None where it did not say."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, backend=NAME)
        self.retry_after_s = retry_after_s


class Failures:
    """Makes the errors of one server."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._who = f"the server at {shown_url(settings.url)}"

    def away(self, words: str) -> ServerUnavailable:
        return ServerUnavailable(f"{self._who} {words}")

    def crashed(self, words: str) -> RunnerCrashed:
        return RunnerCrashed(f"{self._who} {words}")

    def unreached(self, error: httpx.HTTPError) -> ServerUnavailable:
        """Say why no answer came at all."""
        match error:
            case httpx.ConnectTimeout():
                return self.away(
                    f"could not be reached within {self._settings.connect_s:g} s (connect); check its host and network"
                )
            case httpx.ConnectError() if was_refused(error):
                return self.away("is not there: nothing listens; start it, or mend url in [openai]")
            case httpx.ConnectError():
                return self.away(f"cannot be reached ({error}); check that it runs, and url in [openai]")
        return self.away(f"dropped the connection without an answer ({error}); it may be restarting")

    def refused(self, status: int, text: str, model: str, headers: Mapping[str, str] | None = None) -> ExecutionError:
        """Class an answer that is an error, from its status and its body."""
        said = self._without_key(reason_in(text))
        words = self._who + (f", model {model!r}" if model else "") + f": {said} (status {status})"
        if _OUT_OF_MEMORY.search(said):
            return OutOfMemory(f"{words}. It needs a smaller model or context, or a card with less on it; see vram in [openai]")
        if _OUT_OF_CREDIT in text:
            return CallerFault(f"{words}. The account of {KEY_SETTINGS} has no credit left: asking again does not help")
        if status in _BUSY:
            return ServerUnavailable(words, _retry_after_s((headers or {}).get("retry-after", "")))
        if 300 <= status < 400:
            return self.away(f"answered {status}, a redirection; mend url in [openai]")
        if status == 401:
            which = "refuses the key" if self._settings.api_key else "wants a key"
            return CallerFault(f"{words}. It {which}: set {KEY_SETTINGS}")
        if status == 403:
            return CallerFault(f"{words}. It does not allow this with the key it was given: change {KEY_SETTINGS}")
        if status == 404:
            return CallerFault(f"{words}. Check the job's model, and url in [openai], which mostly ends in /v1")
        if 400 <= status < 500 or status == _NOT_BUILT:
            return CallerFault(f"{words}; the request must be changed")
        return RunnerCrashed(words)

    def refused_while_answering(self, found: Mapping[str, Any], model: str) -> ExecutionError:
        """Class an error that came as a piece of the answer, whose status had been sent before."""
        inner = found.get("error")
        code = str((inner if isinstance(inner, Mapping) else found).get("code"))
        status = int(code) if re.fullmatch("[45][0-9][0-9]", code) else 500
        return self.refused(status, json.dumps(found), model)

    def _without_key(self, text: str) -> str:
        key = self._settings.api_key
        return text.replace(key, "…") if key else text


def is_error(found: Mapping[str, Any]) -> bool:
    """Say whether a piece of an answer is an error."""
    return bool(found.get("error")) or found.get("object") == "error"


def _retry_after_s(text: str) -> float | None:
    """Read the header Retry-After: seconds, or a date."""
    try:
        if text.strip().isdecimal():
            wait_s = float(text)
        else:
            at = parsedate_to_datetime(text)
            wait_s = ((at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None
    return min(max(1.0, wait_s), LONGEST_RETRY_AFTER_S)
