"""How the log is written: an object for each line, whoever says it, and where gpuqueue's lines go."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from gpuqueue.domain.errors import UsageError
from gpuqueue.logs import ATTRIBUTE, EVENTS, KEYS, JSONFormatter, configure_logging, tell


@contextmanager
def nobody_else_listens() -> Iterator[None]:
    """As in a process in which nobody has configured logging; pytest has handlers of its own."""
    root = logging.getLogger()
    before, root.handlers = root.handlers, []
    try:
        yield
    finally:
        root.handlers = before


def formatted(record: logging.LogRecord, **options: Any) -> dict[str, Any]:
    text = JSONFormatter(**options).format(record)
    assert "\n" not in text
    found: dict[str, Any] = json.loads(text)
    assert tuple(found)[: len(KEYS)] == KEYS
    return found


def record(message: str = "words", *args: Any, **said: Any) -> logging.LogRecord:
    made = logging.LogRecord("shop", logging.WARNING, __file__, 1, message, args, None)
    if said:
        setattr(made, ATTRIBUTE, said)
    return made


def test_an_event_is_an_object_with_its_keys_and_then_its_own_fields() -> None:
    found = formatted(record("job 7", event="job_completed", worker="w", job=7, lease=2, queue="q", task="t", run_s=0.5))
    assert found == {
        "at": found["at"],
        "level": "warning",
        "logger": "shop",
        "event": "job_completed",
        "worker": "w",
        "job": 7,
        "lease": 2,
        "queue": "q",
        "task": "t",
        "message": "job 7",
        "traceback": None,
        "run_s": 0.5,
    }


def test_a_time_is_utc_with_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    made = record()
    made.created = datetime(2026, 3, 2, 12, 0, 0, 4_000, UTC).timestamp()
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Bangkok")
        time.tzset()
        assert formatted(made)["at"] == "2026-03-02T12:00:00.004Z"
    time.tzset()


def test_a_line_that_is_no_event_has_all_the_keys_and_the_worker_that_is_named_for_it() -> None:
    found = formatted(record("%d of %s", 3, "x"), worker=lambda: "w")
    assert found["message"] == "3 of x"
    assert {key: found[key] for key in ("event", "job", "lease", "traceback", "worker")} == {
        **dict.fromkeys(("event", "job", "lease", "traceback")),
        "worker": "w",
    }
    assert formatted(record(worker="other"), worker=lambda: "w")["worker"] == "other"
    assert formatted(record(worker=None), worker=lambda: "w")["worker"] == "w"
    assert formatted(record(), worker=lambda: "")["worker"] is None


def test_what_json_does_not_know_is_written_as_text_and_every_line_stays_one_line() -> None:
    found = formatted(record("two\nlines “…” \udcff", event="x", at_least=datetime(2026, 1, 1, tzinfo=UTC), path=object))
    assert found["message"] == "two\nlines “…” \udcff"
    assert found["at_least"] == "2026-01-01T00:00:00.000Z"
    assert found["path"] == "<class 'object'>"


def test_an_errors_traceback_stands_inside_whoever_logs_it() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONFormatter())
    other = logging.Logger("shop")
    other.addHandler(handler)
    try:
        raise ValueError("no stock")
    except ValueError:
        other.exception("failed")
        other.warning("seen", stack_info=True)
    error, stack = (json.loads(line)["traceback"] for line in stream.getvalue().splitlines())
    assert error.startswith("Traceback (most recent call last)")
    assert error.endswith("ValueError: no stock")
    assert stack.startswith("Stack (most recent call last)")
    assert formatted(record(event="job_discarded", traceback="far away"))["traceback"] == "far away"


def test_an_event_is_data_on_its_record_for_a_formatter_of_ones_own(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("gpuqueue.test")
    with caplog.at_level(logging.INFO, "gpuqueue.test"):
        tell(logger, logging.INFO, "job_completed", "100 % done", job=7)
        tell(logger, logging.DEBUG, "job_completed", "not told")
    (made,) = caplog.records
    assert made.getMessage() == "100 % done"
    assert made.gpuqueue == {"event": "job_completed", "job": 7}  # type: ignore[attr-defined]


def test_configured_once_everything_is_written_once_and_taken_back_again() -> None:
    stream = io.StringIO()
    own, other = logging.getLogger("gpuqueue.worker"), logging.getLogger("shop.of.a.test")
    before = logging.getLogger("gpuqueue").level
    with nobody_else_listens():
        restore = configure_logging("json", level="debug", stream=stream)
        own.debug("ours")
        other.warning("theirs")
        other.info("below their level")
        restore()
        assert not logging.getLogger().handlers
    own.error("afterwards")
    assert [(line["logger"], line["message"]) for line in map(json.loads, stream.getvalue().splitlines())] == [
        ("gpuqueue.worker", "ours"),
        ("shop.of.a.test", "theirs"),
    ]
    assert logging.getLogger("gpuqueue").level == before


def test_an_application_that_has_handlers_of_its_own_keeps_its_lines() -> None:
    theirs, ours = io.StringIO(), io.StringIO()
    with nobody_else_listens():
        logging.getLogger().addHandler(logging.StreamHandler(theirs))
        restore = configure_logging(stream=ours)
        logging.getLogger("gpuqueue.worker").info("ours")
        logging.getLogger("shop.of.a.test").warning("theirs")
        restore()
    assert theirs.getvalue() == "theirs\n"
    assert ours.getvalue().endswith(" INFO ours\n")
    assert logging.getLogger("gpuqueue").propagate


def test_a_format_that_does_not_exist_is_named() -> None:
    with pytest.raises(UsageError, match=r"log format must be text or json, not 'jsn' \(did you mean 'json'\?\)"):
        configure_logging("jsn")  # type: ignore[arg-type]


def test_an_events_own_fields_are_none_of_the_keys_of_every_line() -> None:
    assert [name for name, kind in EVENTS.items() if set(kind.fields) & set(KEYS)] == []
