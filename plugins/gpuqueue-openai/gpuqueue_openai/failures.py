"""Classifies and words every failure of the server; what happens to the job is decided elsewhere."""

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

LONGEST_RETRY_AFTER_S = 3600.0  # a longer Retry-After, intended or not, must not park a job
KEY_SETTINGS = "api_key in [openai], or GPUQUEUE_OPENAI_API_KEY"

_OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemory|cudaMalloc failed|insufficient (v?ram|memory|system resources)|"
    r"(failed|unable) to allocate|ErrorMemoryAllocation|ERROR_OUT_OF_(DEVICE_)?MEMORY",
    re.IGNORECASE,
)
_OUT_OF_CREDIT = "insufficient_quota"  # the code that OpenAI's own service sends with status 429 when credit runs out
_BUSY = (408, 429, 502, 503, 504)  # llama.cpp answers 503 while it loads its model
_NOT_BUILT = 501  # the server does not support the request, so a retry does not help


class ServerUnavailable(BackendUnavailable):
    """The server is unavailable or busy; `retry_after_s` is the wait that it asked for, or None."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, backend=NAME)
        self.retry_after_s = retry_after_s


class Failures:
    """Creates the errors of one server."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._who = f"the server at {shown_url(settings.url)}"

    def away(self, words: str) -> ServerUnavailable:
        return ServerUnavailable(f"{self._who} {words}")

    def crashed(self, words: str) -> RunnerCrashed:
        return RunnerCrashed(f"{self._who} {words}")

    def unreached(self, error: httpx.HTTPError) -> ServerUnavailable:
        """Say why the server sent no answer at all."""
        match error:
            case httpx.ConnectTimeout():
                return self.away(
                    f"could not be reached within {self._settings.connect_s:g} s (connect); check the host and the network"
                )
            case httpx.ConnectError() if was_refused(error):
                return self.away("refused the connection; start the server, or correct url in [openai]")
            case httpx.ConnectError():
                return self.away(f"cannot be reached ({error}); check that it is running, and check url in [openai]")
        return self.away(f"dropped the connection without an answer ({error}); it may be restarting")

    def refused(self, status: int, text: str, model: str, headers: Mapping[str, str] | None = None) -> ExecutionError:
        """Classify an error response by its status and its body."""
        said = self._without_key(reason_in(text))
        words = self._who + (f", model {model!r}" if model else "") + f": {said} (status {status})"
        if _OUT_OF_MEMORY.search(said):
            return OutOfMemory(f"{words}. Use a smaller model or context, or free memory on the card; see vram in [openai]")
        if _OUT_OF_CREDIT in text:
            return CallerFault(f"{words}. The account of the key ({KEY_SETTINGS}) has no credit left; a retry does not help")
        if status in _BUSY:
            return ServerUnavailable(words, _retry_after_s((headers or {}).get("retry-after", "")))
        if 300 <= status < 400:
            return self.away(f"answered with a redirect (status {status}); correct url in [openai]")
        if status == 401:
            which = "The key was rejected" if self._settings.api_key else "The server needs a key"
            return CallerFault(f"{words}. {which}; set {KEY_SETTINGS}")
        if status == 403:
            return CallerFault(f"{words}. The key does not allow this request; change {KEY_SETTINGS}")
        if status == 404:
            return CallerFault(f"{words}. Check the job's model, and url in [openai], which usually ends in /v1")
        if 400 <= status < 500 or status == _NOT_BUILT:
            return CallerFault(f"{words}; change the request")
        return RunnerCrashed(words)

    def refused_while_answering(self, found: Mapping[str, Any], model: str) -> ExecutionError:
        """Classify an error that came as a piece of the answer, after the status had been sent."""
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
    """Read the Retry-After header: seconds, or a date."""
    try:
        if text.strip().isdecimal():
            wait_s = float(text)
        else:
            at = parsedate_to_datetime(text)
            wait_s = ((at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None
    return min(max(1.0, wait_s), LONGEST_RETRY_AFTER_S)
