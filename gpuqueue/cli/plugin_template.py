"""Contains the files of a new plugin, a working distribution; writes none of them."""

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
description = "Holds the gpuqueue queues that are listed in its section"
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
"""Holds the queues that are listed in the section `[NAME]`."""

from __future__ import annotations

from gpuqueue.plugins import ConfigureDetails, Hold, QueueHoldDetails, hookimpl


class CLASS:
    """Holds the queues in `hold`; does nothing if it is empty."""

    @hookimpl
    def configure(self, details: ConfigureDetails) -> None:
        table = details.table
        table.expect(["hold"])
        self.hold = table.texts("hold", example='["mail"]')

    @hookimpl
    def queue_hold(self, details: QueueHoldDetails) -> Hold | None:
        if details.queue.name not in self.hold:
            return None
        return Hold("NAME", f"[NAME] hold lists {details.queue.name}")
'''

TEST_SUITE = '''\
"""Checks this plugin with the tests that every policy must pass."""

from MODULE import CLASS

from gpuqueue.testing.policies import PolicySuite


class TestSuite(PolicySuite):
    name = "NAME"
    toml = '[NAME]\\nhold = ["train"]'

    def make_plugin(self) -> object:
        return CLASS()
'''

TEST_HOLD = '''\
"""Checks what this plugin does."""

import pytest
from MODULE import CLASS


@pytest.fixture
def gpuqueue_toml():
    return '[NAME]\\nhold = ["mail"]\\n[queues.mail]\\n'


@pytest.fixture
def gpuqueue_plugins():
    return {"NAME": CLASS()}


def test_a_listed_queue_waits_and_another_runs(gpuqueue_db, run_worker_until_idle):
    mail = gpuqueue_db.task(name="send", queue="mail")(lambda: "sent").enqueue()
    other = gpuqueue_db.task(name="note")(lambda: "noted").enqueue()
    left = run_worker_until_idle(may_wait=True)
    assert [reason.detail for reason in left[mail.id].reasons] == ["[NAME] hold lists mail"]
    assert other.result(timeout_s=0) == "noted"
'''

README = """\
# DISTRIBUTION

A gpuqueue plugin. It holds the queues that are listed in its section of `gpuqueue.toml`:

```toml
[NAME]
hold = ["mail"]
```

- `MODULE.py` is the plugin: methods with the names of hooks, marked with `hookimpl`. `gpuqueue.contract.hookspecs` describes all
  hooks on one page, each with an example; `gpuqueue.plugins` has all names that a plugin needs.
- `pyproject.toml` registers it: the entry point `NAME` is the name of the plugin and of its section.
- `tests/test_suite.py` runs the tests that every policy must pass; the suites for executors and devices are in
  `gpuqueue.testing.executors` and `gpuqueue.testing.devices`. `tests/test_hold.py` tests what this plugin does.

```bash
python -m pip install -e ".[test]"
python -m pytest
gpuqueue plugins
```
"""


def distribution(name: str) -> str:
    """Return the name of a plugin's distribution and of its folder."""
    return f"{PREFIX}{name}"


def check_name(name: str) -> None:
    """Raises: UsageError if a new plugin cannot have this name."""
    if name.startswith((PREFIX, "gpuqueue_")):
        raise UsageError(f"a plugin's name must not start with gpuqueue: {name!r}. Leave it out; the distribution's name adds it")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or len(name) > LONGEST:
        likely = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")[:LONGEST].rstrip("-")
        raise UsageError(
            f"{name!r} is not a valid plugin name: use up to {LONGEST} lowercase letters, digits and single hyphens, "
            "starting with a letter" + (f", for example {likely}" if likely else "")
        )
    if name in ROOT_KEYS:
        raise UsageError(f"[{name}] is a section of gpuqueue's own configuration; use another name")
    if name.replace("-", "_") in (*default_policies(), *WORKER_POLICY_NAMES):
        raise UsageError(f"gpuqueue has a built-in plugin {name.replace('-', '_')!r}; use another name")
    for found in installed_plugins():
        if found.name == name:
            raise UsageError(f"plugin {name!r} is already installed (from {found.distribution}); use another name")


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
