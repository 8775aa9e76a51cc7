"""How many steps an enqueue, a worker's turn and an explanation take inside the package: what nobody adds to unnoticed."""

from __future__ import annotations

import pytest

from tests.benchmarks import steps

pytestmark = pytest.mark.benchmark


@pytest.mark.parametrize(
    ("name", "calls", "files", "statements"), [("enqueue", 11, 9, 1), ("turn", 72, 28, 9), ("explain", 193, 37, 25)]
)
def test_the_steps_do_not_grow(name: str, calls: int, files: int, statements: int) -> None:
    found, _ = steps.typical(name)
    count = steps.Count.of(found)
    print(f"\n{name}: {count.calls} calls in {count.files} files, {count.statements} statements")
    assert count.calls <= calls
    assert count.files <= files
    assert count.statements <= statements
