"""What every executor must do, done by the three verbs: chat and complete on a real llama.cpp."""

from __future__ import annotations

import pytest
from gpuqueue_openai.server import Server
from gpuqueue_openai.settings import Settings
from gpuqueue_openai.verbs import Chat, Complete, Embed, OpenAIVerb
from openai_scene.scripted import Reply, Scripted, plain

from gpuqueue.testing.executors import ExecutorSuite

NOBODY = "http://127.0.0.1:9/v1"  # the port of "discard", which nobody serves
ASKED = [{"role": "user", "content": "count"}]


class OnLlama(ExecutorSuite):
    backend = "openai"
    verb: type[OpenAIVerb]

    @pytest.fixture
    def executor(self, llama):
        return self.verb(Server(Settings(url=llama.url)))

    def make_executor_without_backend(self):
        return self.verb(Server(Settings(url=NOBODY)))


class TestChat(OnLlama):
    verb = Chat
    arguments = {"messages": ASKED, "max_tokens": 8}
    endless = {"messages": ASKED, "max_tokens": -1}
    failing = {"messages": ASKED, "max_tokens": "eight"}
    emits = True


class TestComplete(OnLlama):
    verb = Complete
    arguments = {"prompt": "count", "max_tokens": 8}
    endless = {"prompt": "count", "max_tokens": -1}
    failing = {"prompt": "count", "max_tokens": "eight"}
    emits = True


class Embedder(Scripted):
    """Answers by the job's model: "endless" never, "wrong" with a refusal. No real one takes a minute for a text."""

    def next(self, request) -> Reply:
        if request.body.get("model") == "endless":
            return Reply(begins=False, then="mute")
        if request.body.get("model") == "wrong":
            return plain({"error": {"message": "no such model"}}, 404)
        return plain({"data": [{"index": 0, "embedding": [0.5]}]})


class TestEmbed(ExecutorSuite):
    backend = "openai"
    arguments = {"input": "one"}
    endless = {"input": "one", "model": "endless"}
    failing = {"input": "one", "model": "wrong"}

    @pytest.fixture
    def executor(self):
        with Embedder() as embedder:
            yield Embed(Server(Settings(url=embedder.url)))

    def make_executor_without_backend(self):
        return Embed(Server(Settings(url=NOBODY)))
