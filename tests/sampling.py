"""Owns the seed of a run, which it prints, and which of many cases of one kind the run plays: a sample, or with -m long all.

Seed and option are Hypothesis's own, so that one number repeats whatever chance has chosen.
"""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import pytest

OPTION = "--hypothesis-seed"


def seed_of(config: pytest.Config) -> int:
    return int(config.getoption(OPTION))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption(OPTION) is None:
        chosen = getattr(config, "workerinput", {}).get("seed", random.SystemRandom().randrange(2**32))
        config.option.hypothesis_seed = str(chosen)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Let each worker of xdist choose alike."""
    node.workerinput["seed"] = seed_of(node.config)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark as long what is beyond the sample of each test with the marker `sampled`; of a run of all that is long, each case."""
    cases = defaultdict(list)
    for item in items:
        if (marker := item.get_closest_marker("sampled")) is not None:
            cases[item.nodeid.partition("[")[0], *marker.args].append(item)
    for (name, count), found in cases.items():
        drawn = random.Random(f"{seed_of(config)} {name}").sample(found, min(count, len(found)))
        for item in found:
            if item not in drawn or "not long" not in config.option.markexpr:
                item.add_marker("long")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.line(f"the seed of this run was {seed_of(config)}; repeat it with {OPTION}={seed_of(config)}")
