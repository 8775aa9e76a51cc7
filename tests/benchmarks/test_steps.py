"""How many steps inside the package an enqueue takes: what nobody adds to without noticing."""

from __future__ import annotations

import pytest

from tests.benchmarks import steps

pytestmark = pytest.mark.benchmark


def test_an_enqueue_takes_few_steps() -> None:
    found, counts = steps.typical("enqueue")
    count = steps.Count.of(found)
    print(f"\nenqueue: {count.calls} calls in {count.files} files, {count.statements} statement")
    assert counts == [count] * len(counts)
    assert count.calls <= 11
    assert count.files <= 9
    assert count.statements == 1
