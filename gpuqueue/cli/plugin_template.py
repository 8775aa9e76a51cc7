"""Owns the files of a new plugin, a distribution that works as it is; writes none of them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from gpuqueue import __version__
from gpuqueue.config.loading import ROOT_KEYS
from gpuqueue.contract.installed import installed_plugins
from gpuqueue.decisions.policies import WORKER_POLICY_NAMES, default_policies
from gpuqueue.domain.errors import UsageError

__all__ = ["check_name", "distribution", "files"]

PREFIX = "gpuqueue-"
LONGEST = 40

PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "DISTRIBUTION"
version = "0.1.0"
description = "Holds the queues of gpuqueue that its section names"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["gpuqueue>=VERSION"]

[project.optional-dependencies]
test = ["pytest>=8"]

[project.entry-points.gpuqueue]
NAME = "MODULE:CLASS"

[tool.setuptools]
py-modules = ["MODULE"]

[tool.pytest.ini_options]
testpaths = ["tests"]
addopts = "-p gpuqueue.testing.pytest_plugin"
"""

MODULE = '''\
"""Holds the queues that the section `[NAME]` names."""

from __future__ import annotations

from gpuqueue.plugins import ConfigureDetails, Hold, QueueHoldDetails, hookimpl


class CLASS:
    """Holds the queues in `hold`; without any it does nothing."""

    @hookimpl
    def configure(self, details: ConfigureDetails) -> None:
        table = details.table
        table.expect(["hold"])
        self.hold = table.texts("hold", example='["mail"]')

    @hookimpl
    def queue_hold(self, details: QueueHoldDetails) -> Hold | None:
        if details.queue.name not in self.hold:
            return None
        return Hold("NAME", f"[NAME] hold names {details.queue.name}")
'''

TEST_SUITE = '''\
"""What every policy must do, done by this one."""

from MODULE import CLASS

from gpuqueue.testing.policies import PolicySuite


class TestSuite(PolicySuite):
    name = "NAME"
    toml = '[NAME]\\nhold = ["train"]'

    def make_plugin(self) -> object:
        return CLASS()
'''

TEST_HOLD = '''\
"""What this plugin is for."""

import pytest
from MODULE import CLASS


@pytest.fixture
def gpuqueue_toml():
    return '[NAME]\\nhold = ["mail"]\\n[queues.mail]\\n'


@pytest.fixture
def gpuqueue_plugins():
    return {"NAME": CLASS()}


def test_a_queue_in_its_section_waits_and_another_goes_on(gpuqueue_db, run_worker_until_idle):
    mail = gpuqueue_db.task(name="send", queue="mail")(lambda: "sent").enqueue()
    other = gpuqueue_db.task(name="note")(lambda: "noted").enqueue()
    left = run_worker_until_idle(may_wait=True)
    assert [reason.detail for reason in left[mail.id].reasons] == ["[NAME] hold names mail"]
    assert other.result(timeout_s=0) == "noted"
'''

README = """\
# DISTRIBUTION

A plugin of gpuqueue. It holds the queues that its section of `gpuqueue.toml` names:

```toml
[NAME]
hold = ["mail"]
```

- `MODULE.py` is the plugin: methods that are named like hooks and marked with `hookimpl`. `gpuqueue.contract.hookspecs` has all
  hooks on one page, each with an example; `gpuqueue.plugins` has all names that a plugin needs.
- `pyproject.toml` names it to gpuqueue: its entry point `NAME` is the plugin's name, and that of its section.
- `tests/test_suite.py` is what every policy must do; executors and devices have their own, in `gpuqueue.testing.executors` and
  `gpuqueue.testing.devices`. `tests/test_hold.py` is what this one is for.

```bash
python -m pip install -e ".[test]"
python -m pytest
gpuqueue plugins
```
"""


def distribution(name: str) -> str:
    """Name the distribution of a plugin, which is that of its folder too."""
    return f"{PREFIX}{name}"


def check_name(name: str) -> None:
    """Raises: UsageError for what can name no new plugin."""
    if name.startswith((PREFIX, "gpuqueue_")):
        raise UsageError(f"the name {name!r} begins with gpuqueue, which the distribution's does anyway; leave it out")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or len(name) > LONGEST:
        likely = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")[:LONGEST].rstrip("-")
        raise UsageError(
            f"{name!r} is no name for a plugin: write up to {LONGEST} small letters, digits and single hyphens, a letter first"
            + (f", such as {likely}" if likely else "")
        )
    if name in ROOT_KEYS:
        raise UsageError(f"[{name}] is a section of gpuqueue's own configuration; give the plugin another name")
    if name.replace("-", "_") in (*default_policies(), *WORKER_POLICY_NAMES):
        raise UsageError(f"gpuqueue has a plugin {name.replace('-', '_')!r} of its own; give this one another name")
    for found in installed_plugins():
        if found.name == name:
            raise UsageError(f"the plugin {name!r} is installed already, from {found.distribution}; give this one another name")


def files(name: str) -> Mapping[str, str]:
    """Return the files of a new plugin: {path: text}."""
    module = distribution(name).replace("-", "_")
    words = {
        "DISTRIBUTION": distribution(name),
        "VERSION": ".".join(__version__.split(".")[:2]),
        "MODULE": module,
        "CLASS": "".join(word.capitalize() for word in name.split("-")) + "Plugin",
        "NAME": name,
    }
    texts = {
        "pyproject.toml": PYPROJECT,
        f"{module}.py": MODULE,
        "tests/test_suite.py": TEST_SUITE,
        "tests/test_hold.py": TEST_HOLD,
        "README.md": README,
    }
    pattern = re.compile(rf"\b({'|'.join(words)})\b")
    return {path: pattern.sub(lambda found: words[found[0]], text) for path, text in texts.items()}
