"""Errors in words, whatever another's class makes of its text."""

from __future__ import annotations

import pytest

from gpuqueue.domain.errors import PluginFailed, describe


class Unreadable(Exception):
    def __str__(self) -> str:
        raise LookupError("no text")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("too hot"), "ValueError: too hot"),
        (ValueError(), "ValueError"),
        (Unreadable("too hot"), "Unreadable: <Unreadable: its __str__ raised LookupError>"),
    ],
)
def test_an_error_is_described_by_its_class_and_its_text(error: Exception, words: str) -> None:
    assert describe(error) == words
    failed = PluginFailed("thermal", "queue_hold", error)
    assert str(failed) == f"plugin 'thermal' failed in queue_hold: {words}"
    assert (failed.plugin, failed.hook, failed.__cause__) == ("thermal", "queue_hold", error)
