"""Shared fixtures: a real llama.cpp for all, others for one test, and servers that fail as a test tells them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from gpuqueue_openai.server import Server
from gpuqueue_openai.settings import Settings
from openai_scene.llama import Llama, is_installed
from openai_scene.model_file import write_model
from openai_scene.scripted import Reply, Scripted


@pytest.fixture(scope="session")
def make_llama(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Llama]:
    """`make_llama(*, thinks=False, api_key="", embeds=True)` starts one; it ends with its block."""
    if not is_installed():
        pytest.skip("llama.cpp is not here: xllamacpp has wheels for Linux on x86-64, and is in the extra `test`")
    folder = tmp_path_factory.mktemp("models")
    failed: list[AssertionError] = []

    def make(*, thinks: bool = False, **options: object) -> Llama:
        model = folder / ("thinking.gguf" if thinks else "counting.gguf")
        if not model.exists():
            write_model(model, thinks=thinks)
        if failed:  # it takes long to find out, so one test does
            raise failed[0]
        try:
            return Llama(model, thinks=thinks, **options)
        except AssertionError as error:
            failed.append(error)
            raise

    return make


@pytest.fixture(scope="session")
def llama(make_llama: Callable[..., Llama]) -> Iterator[Llama]:
    """A llama.cpp that counts: after any prompt it says one two three one two …, and it embeds texts."""
    with make_llama() as shared:
        yield shared


@pytest.fixture
def start_llama(make_llama: Callable[..., Llama]) -> Iterator[Callable[..., Llama]]:
    """`start_llama(*, thinks=False, api_key="", embeds=True)` starts one of the test's own."""
    with ExitStack() as leaving:
        yield lambda **options: leaving.enter_context(make_llama(**options))


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    """`scripted(reply, …)` starts a server that answers with these, one after another; all are ended after the test."""
    with ExitStack() as leaving:

        def start(*replies: Reply) -> Scripted:
            return leaving.enter_context(Scripted(*replies))

        yield start


@pytest.fixture
def server_at() -> Callable[..., Server]:
    """`server_at(url, **limits)` makes the plugin's side of a server."""
    return lambda url, **limits: Server(Settings(url=url, **limits))
