"""Enqueues a job and waits for it or follows it: the command `submit`."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from typing import Any

import click

from gpuqueue.cli.completion import queue_names
from gpuqueue.cli.jobs import show_explanation, whole_shape
from gpuqueue.cli.rendering import error_line, note, parse_moment, print_json
from gpuqueue.cli.session import SecondsRange, Session, app_option, pass_session
from gpuqueue.cli.shapes import explanation_shape, job_shape
from gpuqueue.client.handle import JobHandle
from gpuqueue.client.queue import GPUQueue
from gpuqueue.domain.errors import JobError, UnknownTask, UsageError
from gpuqueue.domain.explanation import Explanation
from gpuqueue.logs import ATTRIBUTE

INTERRUPTED = 130


@click.command(short_help="Enqueue a job and print its id, wait for it or follow it.")
@click.argument("queue", shell_complete=queue_names)
@click.option("--model", metavar="MODEL", help="The Ollama model to use; needs --prompt.")
@click.option("--prompt", metavar="TEXT", help="The prompt, or the text to embed; - reads it from stdin.")
@click.option("--chat", is_flag=True, help="Send the prompt as a chat message.")
@click.option("--system", metavar="TEXT", help="The system prompt.")
@click.option("--embed", is_flag=True, help="Create an embedding of the prompt.")
@click.option("--task", "task_name", metavar="NAME", help="Run this task of the application instead; needs --app.")
@click.option(
    "--arg", "arguments", multiple=True, metavar="KEY=VALUE", help="An argument of the task, as JSON or text; may be repeated."
)
@app_option
@click.option("--delay", metavar="TIME", help='Start no sooner than this time from now: "5m".')
@click.option(
    "--at", "at_text", metavar="WHEN", help='Start no sooner than this time: "18:00" or ISO 8601, local unless it has a zone.'
)
@click.option("--priority", type=int, metavar="N", help="Higher runs first; default 0.")
@click.option("--max-attempts", type=int, metavar="N", help="The maximum number of attempts.")
@click.option("--timeout", metavar="TIME", help="The time limit of each attempt.")
@click.option("--expires-in", metavar="TIME", help="Discard it if it is still waiting after this time.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="A tag; may be repeated.")
@click.option("--follow", is_flag=True, help="Print its output as it arrives, until it ends.")
@click.option("--wait", is_flag=True, help="Wait until it ends and print the result.")
@click.option("--timeout-s", type=SecondsRange(min=0), metavar="N", help="With --wait or --follow: stop waiting after N s.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; its keys are listed above.")
@pass_session
def submit(
    session: Session,
    queue: str,
    model: str | None,
    prompt: str | None,
    chat: bool,
    system: str | None,
    embed: bool,
    task_name: str | None,
    arguments: tuple[str, ...],
    app: str | None,
    delay: str | None,
    at_text: str | None,
    priority: int | None,
    max_attempts: int | None,
    timeout: str | None,
    expires_in: str | None,
    tags: tuple[str, ...],
    follow: bool,
    wait: bool,
    timeout_s: float | None,
    as_json: bool,
) -> int:
    """Enqueue a job in QUEUE and print its id.

    \b
    gpuqueue submit ai-realtime --model gemma4:e4b --prompt "Hello" --follow
    gpuqueue submit rfa-reminders --app shop.jobs:gq \\
      --task shop.jobs.send_reminder --arg rfa_id=7

    If it cannot start now, stderr says why and what to do. Ctrl-C stops waiting; the job continues. Exit status with --wait or
    --follow: 0 if it completed, 1 if it did not, 130 after Ctrl-C.

    \b
    Keys: job: {as `job --json`, without result, output, position,
      expected_start, expected_start_earliest, expected_start_latest,
      expected_finish, expected_finish_earliest, expected_finish_latest
      and attempts},
      explanation: {as `explain --json`}.
    Keys with --wait: as `job --json`.
    Keys with --follow, one object per line: text, lease.
    Keys with --follow, the last line: job: {as `job --json`}.
    """
    if follow and wait:
        raise UsageError("give --follow or --wait, not both")
    if timeout_s is not None and not (follow or wait):
        raise UsageError(
            "--timeout-s needs --wait or --follow; use --timeout to limit an attempt, --expires-in to limit the wait"
        )
    verb, payload = _request(model, prompt, chat, system, embed, task_name, arguments)
    gq = session.queue(app)
    try:
        handle = gq.enqueue(
            verb,
            payload,
            queue=queue,
            delay=delay,
            at=None if at_text is None else parse_moment(at_text, now=gq.now(), what="--at"),
            priority=priority,
            max_attempts=max_attempts,
            timeout=timeout,
            expires_in=expires_in,
            tags=tags,
        )
    except UnknownTask as error:
        if app is None:
            raise UsageError(f"{error} (to use a task of an application: --app module:attribute)") from None
        raise
    try:
        explanation = session.explanation(handle.explain(), queue)
        if follow or wait:
            note(f"job {handle.id}")
        elif as_json:
            print_json({"job": job_shape(handle.record), "explanation": explanation_shape(explanation)})
        else:
            click.echo(handle.id)
        if explanation.reasons:
            show_explanation(explanation, err=True)
        if not (follow or wait):
            return 0
        with NoRepetition() as quiet:
            quiet.tell(explanation)
            return _stay(session, gq, handle, follow=follow, timeout_s=timeout_s, as_json=as_json)
    except KeyboardInterrupt:
        note(f"\njob {handle.id} continues. Cancel it: {session.command('cancel', handle.id)}")
        return INTERRUPTED


def _stay(session: Session, gq: GPUQueue, handle: JobHandle, *, follow: bool, timeout_s: float | None, as_json: bool) -> int:
    """Wait for the job or follow it, and return the exit status."""
    try:
        if follow:
            _follow(handle, timeout_s, as_json)
        result = handle.result(timeout_s)
    except JobError as error:
        if as_json:
            _print_end(gq, handle, follow)
        error_line(str(error) if f"job {handle.id}" in str(error) else f"job {handle.id}: {error}")
        if error.code == "unavailable" and not gq.is_served(handle.queue):
            note(f"  no worker serves {handle.queue}. Start one: {session.worker_command(handle.queue)}")
        else:
            note(f"  details: {session.command('job', handle.id)}")
        return 1
    except TimeoutError:
        show_explanation(session.explanation(handle.explain(), handle.queue), err=True)
        error_line(
            f"job {handle.id} did not end within {timeout_s:g} s and continues. Cancel it: {session.command('cancel', handle.id)}"
        )
        return 1
    if as_json:
        _print_end(gq, handle, follow)
    elif not follow or not whole_shape(gq, handle.id)["output"]:
        click.echo(_worded(result))
    return 0


def _follow(handle: JobHandle, timeout_s: float | None, as_json: bool) -> None:
    lease, ends_line = 0, True
    try:
        for piece in handle.stream(timeout_s):
            if lease and piece.attempt_lease != lease:
                note("\n(another attempt started; its answer starts again)")
            lease = piece.attempt_lease
            if as_json:
                click.echo(json.dumps({"text": piece, "lease": lease}, ensure_ascii=False))
            else:
                click.echo(piece, nl=False)
                ends_line = piece.endswith("\n")
    finally:
        if not ends_line:
            click.echo()


def _print_end(gq: GPUQueue, handle: JobHandle, follow: bool) -> None:
    shape = whole_shape(gq, handle.id)
    if follow:
        click.echo(json.dumps({"job": shape}, ensure_ascii=False))
    else:
        print_json(shape)


def _worded(result: Any) -> str:
    """Format an answer as its text, anything else as JSON."""
    if isinstance(result, str):
        return result
    if isinstance(result, Mapping) and isinstance(result.get("text"), str) and result["text"]:
        return str(result["text"])
    return json.dumps(result, ensure_ascii=False)


def _request(
    model: str | None,
    prompt: str | None,
    chat: bool,
    system: str | None,
    embed: bool,
    task_name: str | None,
    arguments: tuple[str, ...],
) -> tuple[str, dict[str, Any]]:
    """Return the task's name and its arguments. Raises: UsageError when the options do not fit each other."""
    of_model = {"--model": model, "--prompt": prompt, "--chat": chat, "--system": system, "--embed": embed}
    given = [name for name, value in of_model.items() if value not in (None, False)]
    if task_name is not None:
        if given:
            raise UsageError(f"--task and {given[0]} cannot be combined: a job runs a task or asks a model")
        return task_name, dict(map(_argument, arguments))
    if arguments:
        raise UsageError("--arg needs --task NAME")
    if not model or prompt is None:
        raise UsageError("specify --model MODEL and --prompt TEXT, or --task NAME")
    if embed and (chat or system is not None):
        raise UsageError(f"--embed and {'--chat' if chat else '--system'} cannot be combined: an embedding uses only the prompt")
    if prompt == "-":
        prompt = sys.stdin.read()
    if not prompt.strip():
        raise UsageError("the prompt is empty")
    if embed:
        return "ollama.embed", {"model": model, "input": prompt}
    if chat:
        messages = [{"role": "system", "content": system}] if system is not None else []
        return "ollama.chat", {"model": model, "messages": [*messages, {"role": "user", "content": prompt}]}
    request = {"model": model, "prompt": prompt}
    return "ollama.generate", request if system is None else {**request, "system": system}


def _argument(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise UsageError(f"--arg must be KEY=VALUE, not {text!r}. Use for example --arg rfa_id=7 or --arg 'to=[\"a@b.c\"]'")
    try:
        return key, json.loads(value)
    except ValueError as error:
        # A typo in intended JSON must not become a string.
        if value.lstrip()[:1] in {"{", "[", '"'}:
            raise UsageError(f"--arg {key}: {value!r} looks like JSON but is not valid JSON: {error}") from None
        return key, value
    except RecursionError:
        raise UsageError(f"--arg {key}: the JSON is nested too deeply") from None


class NoRepetition(logging.Filter):
    """Suppresses the library's warning that no worker serves the queue if an explanation has just said so."""

    def __init__(self) -> None:
        super().__init__()
        self._is_told = False

    def tell(self, explanation: Explanation) -> None:
        """Remember whether the last explanation said so."""
        self._is_told = any(hold.source == "worker" for hold in explanation.reasons)

    def filter(self, record: logging.LogRecord) -> bool:
        return not (self._is_told and getattr(record, ATTRIBUTE, {}).get("event") == "queue_unserved")

    def __enter__(self) -> NoRepetition:
        logging.getLogger("gpuqueue").addFilter(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("gpuqueue").removeFilter(self)
