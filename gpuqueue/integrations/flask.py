"""Extends Flask with a queue object for each app, its tasks and its commands; keeps no app alive.

queue = FlaskGPUQueue()

@queue.task(queue="mail")
def remind(rfa_id: int) -> None: ...

def create_app() -> Flask:
    app = Flask(__name__)
    queue.init_app(app)
    return app
"""

from __future__ import annotations

import functools
import inspect
import os
import shlex
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, Unpack, cast, overload
from weakref import WeakSet

import click
from flask import Flask, Response, abort, current_app, request
from flask.cli import ScriptInfo

from gpuqueue.client.declarations import Declarations
from gpuqueue.client.handle import JobHandle
from gpuqueue.client.options import JobOptions
from gpuqueue.client.queue import GPUQueue
from gpuqueue.client.tasks import Task, TaskSettings
from gpuqueue.config.loading import Config
from gpuqueue.config.shared import SharedSettings
from gpuqueue.domain.errors import UnknownJob, UsageError
from gpuqueue.executors import child
from gpuqueue.integrations import sse
from gpuqueue.integrations.flask_settings import PREFIX, config_of
from gpuqueue.store.store import Store

__all__ = ["FlaskGPUQueue"]

NAME = "gpuqueue"
Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


class FlaskGPUQueue:
    """The extension: created once, next to the tasks, for any number of apps; each app has its own GPUQueue object.

    It acts on the current app. `plugins` are those of `GPUQueue`.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        plugins: Iterable[object] | Mapping[str, object] = (),
        discover_plugins: bool = True,
    ) -> None:
        self._plugins = plugins if isinstance(plugins, Mapping) else list(plugins)
        self._discover_plugins = discover_plugins
        self._declared = Declarations(SharedSettings({}, (), {}, ()))
        self._apps: WeakSet[Flask] = WeakSet()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Give an app its queue object, `app.extensions["gpuqueue"]`, and the commands `flask gpuqueue …`.

        Reads the config keys `GPUQUEUE_…` now. Raises: ConfigurationError; UsageError if the app already has a queue.
        """
        if NAME in app.extensions:
            raise UsageError(f"Flask app {app.name!r} already has a gpuqueue; call init_app once for each app")
        gq = _AppQueue(app, config_of(app), plugins=self._plugins, discover_plugins=self._discover_plugins)
        for task in self._declared.tasks.values():
            gq.add_task(_for_app(task, app, gq))
        app.extensions[NAME] = gq
        self._apps.add(app)
        app.cli.add_command(_commands)

    @overload
    def task(self, function: Callable[Parameters, Returned], /) -> Task[Parameters, Returned]: ...

    @overload
    def task(
        self, **settings: Unpack[TaskSettings]
    ) -> Callable[[Callable[Parameters, Returned]], Task[Parameters, Returned]]: ...

    def task(  # type: ignore[misc]  # mypy does not see that **settings covers a TypedDict
        self, function: Callable[..., Any] | None = None, /, **settings: Any
    ) -> Any:
        """Register a function, plain or async, as a task of every app, including later ones; like `GPUQueue.task`.

        A worker runs it inside an app context. An isolated task's process finds the app as `flask` does, through FLASK_APP.
        Raises: UsageError for a wrong setting or a name that is taken.
        """

        def register(function: Callable[..., Any]) -> Task[..., Any]:
            gq = cast(GPUQueue, _CurrentQueue(self))
            task: FlaskTask[..., Any] = FlaskTask.of(gq, function, cast(TaskSettings, settings))  # type: ignore[assignment]
            self._declared.add_task(task)
            for app in self._apps:
                own = app.extensions[NAME]
                own.add_task(_for_app(task, app, own))
            return task

        return register if function is None else register(function)

    def get(self, app: Flask | None = None) -> GPUQueue:
        """Return the queue object of an app, by default the current one. Raises: UsageError.

        While the app is under test (`app.testing`), its queue is a new, empty file, unless its config has GPUQUEUE_DATABASE, and
        its jobs run at once where they are enqueued, unless its config has GPUQUEUE_EAGER = False; with True they always do.
        """
        if app is None:
            if not current_app:
                raise UsageError(
                    "no Flask app is active here, so the queue is unknown. Work inside `with app.app_context():`, or pass the "
                    "app: get(app)"
                )
            app = cast(Flask, current_app._get_current_object())  # type: ignore[attr-defined]
        if app not in self._apps:
            other = " by this FlaskGPUQueue object but by another" if NAME in app.extensions else ""
            raise UsageError(f"Flask app {app.name!r} was not set up{other}. Call init_app(app) where the app is created")
        gq: _AppQueue = app.extensions[NAME]
        gq.heed_testing(app)
        return gq

    def events(self, job: JobHandle | int, *, timeout_s: float | None = None) -> Response:
        """Answer the current request with the events of a job, for a browser's EventSource: see `gpuqueue.integrations.sse`.

        Answers 404 for an unknown job. The response occupies a thread of the server while it lasts; `timeout_s` ends it, and
        the browser reconnects for the rest. Ids are consecutive numbers: the view must check whether this visitor may see
        this job.
        """
        after = request.headers.get("Last-Event-ID")
        if sse.heard_the_end(after):
            return Response(status=204)
        if isinstance(job, int):
            try:
                job = self.get().job(job)
            except UnknownJob:
                abort(404)
        return Response(sse.stream(job, after=after, timeout_s=timeout_s), headers=dict(sse.HEADERS))


class FlaskTask(Task[Parameters, Returned]):
    """A task of every app; its jobs belong to the current app."""

    @property
    def in_context(self) -> Callable[..., Any]:
        """The function as an isolated task's process calls it: inside a context of the app that FLASK_APP names."""
        assert self.function is not None
        if child.is_child:
            _found_app()  # before the task begins: a process without the app is one that cannot import the task
        return _inside(lambda: _found_app().app_context(), self.function)


class _CurrentQueue:
    """Takes the place of a task's queue object: passes its jobs to the current app's."""

    def __init__(self, extension: FlaskGPUQueue) -> None:
        self._extension = extension

    def submit(self, task: Task[..., Any], arguments: Mapping[str, Any], options: JobOptions) -> JobHandle:
        gq = self._extension.get()
        return gq.submit(gq.tasks[task.name], arguments, options)

    async def asubmit(self, task: Task[..., Any], arguments: Mapping[str, Any], options: JobOptions) -> JobHandle:
        gq = self._extension.get()
        return await gq.asubmit(gq.tasks[task.name], arguments, options)


class _AppQueue(GPUQueue):
    """The queue object of one app."""

    def __init__(self, app: Flask, config: Config, **options: Any) -> None:
        super().__init__(config=config, **options)
        self._import_name = app.import_name
        self._instance_folder = Path(app.instance_path)
        self._as_tested = (False, False)  # (has a separate file, is eager)
        self._leave_tests = ExitStack()
        self._heeding = threading.Lock()

    def open_store(self, *, patient: bool = False) -> Store:
        if self._instance_folder in self.database.parents:
            self._instance_folder.mkdir(parents=True, exist_ok=True)  # Flask names it but does not create it
        return super().open_store(patient=patient)

    def worker_command(self, queue: str) -> str:
        chosen = [] if os.environ.get("FLASK_APP") else ["--app", self._import_name]
        return shlex.join(["flask", *chosen, NAME, "worker"])

    def heed_testing(self, app: Flask) -> None:
        """Switch to a separate file for tests and back, and start or stop to run jobs where they are enqueued."""
        eagerness = app.config.get(f"{PREFIX}EAGER")
        has_own_file = app.testing and app.config.get(f"{PREFIX}DATABASE") is None
        wanted = (has_own_file, app.testing if eagerness is None else bool(eagerness))
        if wanted == self._as_tested:
            return
        with self._heeding:
            if wanted == self._as_tested:
                return
            from gpuqueue.testing import eager, fresh

            is_fresh, is_eager = wanted
            self._leave_tests.close()
            if is_fresh:
                self._leave_tests.enter_context(fresh(self))
            if is_eager:
                self._leave_tests.enter_context(eager(self))
            self._as_tested = wanted


def _for_app(task: Task[..., Any], app: Flask, gq: GPUQueue) -> Task[..., Any]:
    """Make one app's copy of a task."""
    assert task.function is not None
    function = _inside(app.app_context, task.function)
    # The name by which a process of the job's own finds what to call.
    function.__qualname__ += f".{FlaskTask.in_context.fget.__name__}"  # type: ignore[attr-defined]
    return Task(
        gq,
        task.name,
        function,
        task.defaults,
        signature=task.signature,
        rules=task.rules,
        isolate=task.isolate,
        preemptible=task.preemptible,
    )


def _inside(context: Callable[[], AbstractContextManager[Any]], function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the function, plain or async, so that each call runs inside its own context."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def acall(**arguments: Any) -> Any:
            with context():
                return await function(**arguments)

        return acall

    @functools.wraps(function)
    def call(**arguments: Any) -> Any:
        with context():
            return function(**arguments)

    return call


@functools.cache
def _found_app() -> Flask:
    """Find the app as `flask` does. Raises: UsageError."""
    try:
        return ScriptInfo(os.environ.get("FLASK_APP"), set_debug_flag=False).load_app()
    except click.ClickException as error:
        raise UsageError(
            f"an isolated task runs in a separate process, which finds the Flask app through FLASK_APP: {error.message}"
        ) from None


@click.command(
    NAME,
    short_help="Run workers, show and manage the queue.",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def _commands(context: click.Context, words: tuple[str, ...]) -> None:
    from gpuqueue.cli import main
    from gpuqueue.cli.session import AppSession

    found = context.ensure_object(ScriptInfo)
    chosen = []
    if found.app_import_path:
        chosen = ["--app", found.app_import_path]
        os.environ["FLASK_APP"] = found.app_import_path  # for the processes of isolated tasks
    gq: GPUQueue = found.load_app().extensions[NAME]
    sys.exit(main(words, session=AppSession(gq, "flask", *chosen, NAME)))
