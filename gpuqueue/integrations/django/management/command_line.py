"""Runs gpuqueue's command line on the queue of an entry of TASKS; defines no command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

from gpuqueue.cli.app import WRONG, main
from gpuqueue.cli.rendering import error_line
from gpuqueue.cli.session import AppSession
from gpuqueue.domain.errors import GPUQueueError
from gpuqueue.integrations.django.entries import configuration_beside
from gpuqueue.integrations.django.lookup import queue

WORKS = {"worker", "submit"}  # the commands that need to know the project's tasks


class ProjectSession(AppSession):
    """The session of `manage.py gpuqueue`."""

    @property
    def new_config_path(self) -> Path:
        return self.config_path or configuration_beside()

    def worker_command(self, queue: str) -> str:
        return self.queue().worker_command(queue)


def run(alias: str, words: Sequence[str], *, program: Sequence[str] = ("python", "manage.py")) -> int:
    """Run a command line and return its exit status."""
    try:
        gq = queue(alias)
        if WORKS & set(words):
            gq.discover()
    except (GPUQueueError, ImproperlyConfigured) as error:
        error_line(str(error))
        return WRONG
    return main(words, session=ProjectSession(gq, *program, "gpuqueue"))


def take_option(words: list[str], name: str) -> str | None:
    """Take `--name value` or `--name=value` out of the words, and return its value."""
    for index, word in enumerate(words):
        if word == name and index + 1 < len(words):
            value = words[index + 1]
            del words[index : index + 2]
            return value
        if word.startswith(f"{name}="):
            del words[index]
            return word.partition("=")[2]
    return None
