"""The public names: each says what it is, and its methods say what they take and return."""

from __future__ import annotations

import importlib
import inspect
import threading
import typing
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import gpuqueue
from gpuqueue import plugins
from gpuqueue.client.declarations import QueueOptions
from gpuqueue.client.ollama import ChatRequest, EmbedRequest, GenerateRequest, OllamaTasks
from gpuqueue.domain.models import CHAT, EMBED, GENERATE, Verb
from gpuqueue.domain.settings import QueueSettings

PACKAGE = Path(gpuqueue.__file__).parent
# What comes back from the database as JSON has no type that could be known.
RETURN_ANY = {"JobHandle.result", "JobHandle.aresult"}
NAMES = {**{name: getattr(gpuqueue, name) for name in gpuqueue.__all__}, "OllamaTasks": OllamaTasks}


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """The functions behind the public names: {name as in the source: function}."""
    for name, value in NAMES.items():
        members = vars(value).items() if isinstance(value, type | ModuleType) else [("", value)]
        for member, found in members:
            function = getattr(found, "__func__", found)  # of a class method
            if isinstance(found, property):
                function = found.fget
            elif isinstance(found, cached_property):
                function = found.func
            is_own = getattr(function, "__module__", "").startswith("gpuqueue")
            if inspect.isfunction(function) and is_own and (not member.startswith("_") or member in ("__init__", "__call__")):
                yield f"{name}.{member}".rstrip("."), function


FUNCTIONS = dict(functions())


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_public_name_says_what_it_is(name: str) -> None:
    value = NAMES[name]
    inherited = value.__mro__[1].__doc__ if isinstance(value, type) else None
    assert value.__doc__ and value.__doc__ != inherited


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_a_public_function_says_what_it_takes_and_returns(name: str) -> None:
    function = FUNCTIONS[name]
    stated = typing.get_overloads(function) or [function]
    for signature in map(inspect.signature, stated):
        parameters = [parameter for parameter in signature.parameters.values() if parameter.name not in ("self", "cls")]
        assert [parameter.name for parameter in parameters if parameter.annotation is parameter.empty] == []
        assert signature.return_annotation is not signature.empty
        assert (signature.return_annotation == "Any") == (name in RETURN_ANY)


def test_the_functions_are_all_found() -> None:
    assert FUNCTIONS.keys() >= {
        "current_job",
        "backoff.exponential",
        "GPUQueue.from_config",
        "GPUQueue.store",
        "GPUQueue.task",
        "GPUQueue.aenqueue",
        "JobHandle.state",
        "JobHandle.result",
        "JobHandle.astream",
        "Task.__call__",
        "Task.using",
        "Worker.__init__",
        "OllamaTasks.agenerate",
    }


def test_a_queue_may_be_made_with_every_setting_that_there_is() -> None:
    assert QueueOptions.__annotations__.keys() | {"name"} == inspect.signature(QueueSettings).parameters.keys()


@pytest.mark.parametrize(
    ("verb", "request_type"),
    [(GENERATE, GenerateRequest), (CHAT, ChatRequest), (EMBED, EmbedRequest)],
    ids=["generate", "chat", "embed"],
)
def test_a_request_may_have_every_field_that_its_verb_takes(verb: Verb, request_type: type) -> None:
    method = inspect.signature(getattr(OllamaTasks, verb.name.removeprefix("ollama.")))
    named = method.parameters.keys() - {"self", "queue", "job", "request"}
    assert named == verb.required
    assert request_type.__annotations__.keys() == verb.allowed - verb.required


MODULES = sorted(
    ".".join(("gpuqueue", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for room in ("testing", "integrations", "simulators")
    for path in (PACKAGE / room).rglob("*.py")
    if "__main__" not in path.name and "django" not in path.parts
)
ATTRIBUTES = [
    "gpuqueue.backoff.exponential",
    "gpuqueue.cli.main",
    "gpuqueue.decisions.policies.spills.WAIT_S",
    "gpuqueue.devices.nvml.open_device",
    "gpuqueue.integrations.django.Backend",
    "gpuqueue.logs.EVENTS",
    "gpuqueue.plugins.hookimpl",
    "gpuqueue.worker.maintenance.RETENTION_EVERY_S",
]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_users_name_is_there(name: str) -> None:
    importlib.import_module(name)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_name_that_users_import_is_where_it_was(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    if "django" in module:
        pytest.importorskip("django")
        assert attribute in importlib.import_module(module).__all__
    else:
        assert hasattr(importlib.import_module(module), attribute)


def test_every_public_name_of_the_package_is_imported_as_users_do() -> None:
    for name in gpuqueue.__all__:
        exec(f"from gpuqueue import {name}", {})


def test_the_names_in_capitals_that_plugins_use_are_classes_or_types() -> None:
    """A plugin's author makes them in tests and asks `isinstance`, which a class with its parameters filled in refuses."""
    names = {name: getattr(plugins, name) for name in plugins.__all__ if name[0].isupper()}
    assert [name for name, value in names.items() if typing.get_args(value) and name != "Service"] == []
    gq, stopping = object(), threading.Event()
    context = plugins.ServiceContext(gq, stopping, 1, print)
    assert isinstance(context, plugins.ServiceContext)
    assert isinstance(plugins.RegisterServicesDetails(gq), plugins.RegisterServicesDetails)
