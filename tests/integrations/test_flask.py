"""The Flask extension: factories and several apps, tasks before and after init_app, contexts in the worker, configuration."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import pytest
from flask import Flask, abort, current_app, g

from gpuqueue import ConfigurationError, GPUQueue, UnknownTask, UsageError, Worker
from gpuqueue.integrations.flask import FlaskGPUQueue
from gpuqueue.testing.waiting import DEADLINE_S
from tests.integrations.server_events import heard_in, text_of

TOML = """
database = "of-the-file.db"
[queues.mail]
concurrency = 3
"""


@pytest.fixture
def make_app(tmp_path, monkeypatch):
    """Make apps by a factory, each in an instance folder of its own; their queues are closed at the end."""
    for name in ("GPUQUEUE_CONFIG", "GPUQUEUE_DATABASE", "FLASK_APP", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)
    made = []

    def make(queue: FlaskGPUQueue, name: str = "shop", **config: object) -> Flask:
        app = Flask(name, instance_path=str(tmp_path / name), root_path=str(tmp_path))
        app.config.update({f"GPUQUEUE_{key}": value for key, value in config.items()})
        queue.init_app(app)
        made.append(app)
        return app

    yield make
    for app in made:
        app.extensions["gpuqueue"].close()


@pytest.fixture
def queue():
    return FlaskGPUQueue(discover_plugins=False)


def test_a_task_that_was_declared_before_any_app_runs_in_a_context_of_the_app_that_enqueued_it(queue, make_app):
    @queue.task(name="where", queue="mail")
    def where(greeting: str) -> str:
        assert not hasattr(g, "used")
        g.used = True
        return f"{greeting} from {current_app.name}"

    @queue.task(name="awhere", queue="mail")
    async def awhere() -> str:
        return current_app.name

    one, two = make_app(queue, "one"), make_app(queue, "two")
    for app in (one, two):
        with app.app_context():
            assert where.using(priority=3, delay="1h").enqueue(greeting="later").record.priority == 3
            jobs = [where.enqueue(greeting="hello"), where.using(priority=3).enqueue(greeting="ahoy"), awhere.enqueue()]
        with Worker(queue.get(app)):
            assert [job.result(timeout_s=DEADLINE_S) for job in jobs] == [
                f"hello from {app.name}",
                f"ahoy from {app.name}",
                app.name,
            ]
    assert queue.get(one).database != queue.get(two).database
    assert queue.get(one).counts()["mail"] == {"completed": 3, "scheduled": 1}


def test_the_context_is_torn_down_after_each_job_with_what_it_raised(queue, make_app):
    app = make_app(queue)
    torn_down = []
    app.teardown_appcontext(lambda error: torn_down.append(type(error)))

    @queue.task(name="fail")
    def fail() -> None:
        raise LookupError("nothing here")

    @queue.task(name="do_well")
    def do_well() -> None: ...

    with app.app_context():
        jobs = [fail.enqueue(), do_well.enqueue()]
    torn_down.clear()
    with Worker(queue.get(app), threads=1):
        for job in jobs:
            for _ in job.watch(timeout_s=DEADLINE_S):
                pass
    assert torn_down == [LookupError, type(None)]


def test_a_task_that_was_declared_after_the_app_is_known_to_it(queue, make_app):
    app = make_app(queue)

    @queue.task
    def late() -> str:
        return "came late"

    with app.app_context():
        job = late.enqueue()
    with Worker(queue.get(app)):
        assert job.result(timeout_s=DEADLINE_S) == "came late"
    assert queue.get(app).tasks[late.name] is not late


def test_a_task_is_called_as_the_function_that_it_is(queue):
    @queue.task(name="add")
    def add(a: int, b: int = 2) -> int:
        """Add."""
        return a + b

    assert add(1) == 3
    assert add.__doc__ == "Add."


def test_several_jobs_are_stored_at_once(queue, make_app):
    @queue.task(name="add")
    def add(a: int) -> int:
        return a

    app = make_app(queue)
    jobs = queue.get(app).enqueue_many([(add, {"a": 1}), ("add", {"a": 2})])
    with Worker(queue.get(app)):
        assert [job.result(timeout_s=DEADLINE_S) for job in jobs] == [1, 2]


def test_a_view_awaits_and_enqueues(queue, make_app):
    import asyncio

    @queue.task(name="add")
    def add(a: int) -> int:
        return a

    app = make_app(queue)

    async def enqueue() -> int:
        with app.app_context():
            return (await add.aenqueue(a=3)).id

    assert queue.get(app).job(asyncio.run(enqueue())).record.arguments == {"a": 3}


def test_no_app_is_kept_alive(queue, make_app, tmp_path):
    app = Flask("short-lived", instance_path=str(tmp_path))
    queue.init_app(app)

    @queue.task(name="add")
    def add(a: int) -> int:
        return a

    with app.app_context():
        add.enqueue(a=1)
    app.extensions["gpuqueue"].close()
    gone = weakref.ref(app)
    del app
    gc.collect()
    assert gone() is None


# --- what is refused ---


def test_an_app_is_set_up_once(queue, make_app):
    app = make_app(queue)
    with pytest.raises(UsageError, match="'shop' already has a gpuqueue"):
        queue.init_app(app)
    with pytest.raises(UsageError, match="'shop' already has a gpuqueue"):
        FlaskGPUQueue(app)


def test_outside_of_any_app_it_says_what_to_do(queue, make_app):
    @queue.task(name="add")
    def add(a: int) -> int:
        return a

    make_app(queue)
    for wrong in (queue.get, lambda: add.enqueue(a=1)):
        with pytest.raises(UsageError, match="app_context"):
            wrong()


def test_an_app_that_was_not_set_up_is_named(queue, make_app, tmp_path):
    other = FlaskGPUQueue(discover_plugins=False)
    with pytest.raises(UsageError, match=r"'bare' was not set up\. Call init_app"):
        queue.get(Flask("bare", instance_path=str(tmp_path)))
    with pytest.raises(UsageError, match="'shop' was not set up by this FlaskGPUQueue object"):
        queue.get(make_app(other))


def test_two_functions_cannot_have_one_name(queue):
    @queue.task(name="add")
    def add() -> None: ...

    with pytest.raises(UsageError, match="'add' already exists"):

        @queue.task(name="add")
        def other() -> None: ...


def test_a_wrong_argument_is_refused_where_it_is_enqueued(queue, make_app):
    @queue.task(name="add")
    def add(a: int) -> int:
        return a

    with make_app(queue).app_context(), pytest.raises(UsageError, match="'b'"):
        add.enqueue(b=1)


def test_a_wrong_setting_is_refused_where_it_is_written(queue):
    with pytest.raises(UsageError, match="max_attempt"):
        queue.task(max_attempt=3)(lambda: None)


# --- configuration ---


def test_without_configuration_the_database_is_in_the_instance_folder(queue, make_app, tmp_path):
    assert queue.get(make_app(queue)).database == tmp_path / "shop" / "gpuqueue.db"


def test_the_file_that_the_config_names_is_read_from_where_the_apps_files_are(queue, make_app, tmp_path):
    (tmp_path / "queues.toml").write_text(TOML)
    gq = queue.get(make_app(queue, CONFIG="queues.toml"))
    assert gq.database == tmp_path / "of-the-file.db"
    assert gq.queue_settings("mail").concurrency == 3
    assert gq.config.path == tmp_path / "queues.toml"


def test_keys_of_the_config_go_before_the_file_and_that_before_the_environment_goes(queue, make_app, tmp_path, monkeypatch):
    (tmp_path / "queues.toml").write_text(TOML + "[worker]\nthreads = 1\n")
    monkeypatch.setenv("GPUQUEUE_WORKER_THREADS", "5")
    monkeypatch.setenv("GPUQUEUE_WORKER_GRACE", "7s")
    app = make_app(
        queue,
        CONFIG=Path("queues.toml"),
        DATABASE="own.db",
        WORKER_THREADS=2,
        OLLAMA_URL="http://10.0.0.1:11434",
        QUEUES={"slow": {"concurrency": 1}},
        MAX_PAYLOAD=None,
    )
    config = queue.get(app).config
    assert queue.get(app).database == tmp_path / "shop" / "own.db"
    assert (config.worker.threads, config.worker.grace_s) == (2, 7.0)
    assert set(config.queues) >= {"mail", "slow"}


def test_the_environment_names_the_file_where_the_config_does_not(queue, make_app, tmp_path, monkeypatch):
    (tmp_path / "queues.toml").write_text(TOML)
    monkeypatch.setenv("GPUQUEUE_CONFIG", str(tmp_path / "queues.toml"))
    assert queue.get(make_app(queue)).database == tmp_path / "of-the-file.db"


def test_a_section_may_be_given_in_part_and_in_whole(queue, make_app):
    for number, given in enumerate(
        ({"WORKER": {"threads": 2}, "WORKER_GRACE": "4s"}, {"WORKER_GRACE": "4s", "WORKER": {"threads": 2}})
    ):
        config = queue.get(make_app(queue, f"app{number}", **given)).config
        assert (config.worker.threads, config.worker.grace_s) == (2, 4.0)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"DATABSE": "x.db"}, "GPUQUEUE_DATABSE (did you mean 'GPUQUEUE_DATABASE'?)"),
        ({"WORKER_THREAD": 2}, "GPUQUEUE_WORKER_THREAD (did you mean 'GPUQUEUE_WORKER_THREADS'?)"),
        ({"QUEUES": {"mail": {"concurency": 1}}}, "did you mean 'concurrency'?"),
        ({"CONFIG": "nowhere.toml"}, "nowhere.toml"),
        ({"DATABASE": "postgresql://x"}, "is not an SQLite file"),
        ({"THERMAL": {"limit": 80}}, "thermal"),
    ],
)
def test_a_wrong_configuration_is_refused_when_the_app_is_made(queue, make_app, config, said):
    with pytest.raises(ConfigurationError) as refused:
        make_app(queue, **config)
    assert said in str(refused.value)


def test_each_app_has_the_extensions_plugins(make_app):
    class Plugin:
        pass

    queue = FlaskGPUQueue(plugins={"mine": Plugin()}, discover_plugins=False)
    for name in ("one", "two"):
        assert isinstance(queue.get(make_app(queue, name)).plugin("mine"), Plugin)


# --- the events of a job, as an answer ---


@pytest.fixture
def told(queue, make_app):
    """An app with a view of a job's events, and a job that has completed."""

    @queue.task(name="speak")
    def speak() -> str:
        from gpuqueue import current_job

        current_job().emit("well")
        return "done"

    app = make_app(queue)

    @app.get("/jobs/<int:job_id>/events")
    def events(job_id: int):
        return queue.events(job_id)

    with app.app_context():
        job = speak.enqueue()
    with Worker(queue.get(app)):
        job.result(timeout_s=DEADLINE_S)
    return app.test_client(), job.id


def test_a_view_answers_with_the_events_of_a_job(told):
    client, job_id = told
    answer = client.get(f"/jobs/{job_id}/events")
    assert answer.status_code == 200
    assert answer.content_type == "text/event-stream"
    assert answer.headers["X-Accel-Buffering"] == "no"
    events = list(heard_in([answer.data]))
    assert text_of(events) == "well"
    assert events[-1].data == {"result": "done"}
    again = client.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": events[-2].last_id})
    assert [event.name for event in heard_in([again.data])] == ["done"]


def test_a_browser_that_has_heard_the_end_is_told_to_stay_away(told):
    client, job_id = told
    answer = client.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": "end"})
    assert (answer.status_code, answer.data) == (204, b"")


def test_a_job_that_is_not_there_is_not_found(told):
    assert told[0].get("/jobs/77/events").status_code == 404


# --- the command line ---


def test_the_whole_command_line_works_with_the_apps_queue(queue, make_app):
    @queue.task(name="greet", queue="mail")
    def greet(name: str) -> str:
        return f"{current_app.name} greets {name}"

    run = make_app(queue).test_cli_runner().invoke

    assert run(args=["gpuqueue", "submit", "mail", "--task", "greet", "--arg", "name=Ana"]).output.startswith("1\n")
    assert run(args=["gpuqueue", "worker", "--burst", "--log-level", "error"]).exit_code == 0
    shown = run(args=["gpuqueue", "job", "1", "--json"])
    assert json.loads(shown.output)["result"] == "shop greets Ana"
    wrong = run(args=["gpuqueue", "jobs", "--queue", "male"])
    assert wrong.exit_code == 2
    assert "did you mean 'mail'?" in wrong.output
    assert "--database" in run(args=["gpuqueue", "--help"]).output
    assert "gpuqueue" in run(args=["--help"]).output


def test_a_wait_is_explained_with_the_flask_command(queue, make_app):
    @queue.task(name="greet", queue="mail")
    def greet() -> None: ...

    with make_app(queue).app_context():
        assert greet.enqueue().explain().advice == "start a worker: flask --app shop gpuqueue worker"


def test_an_unknown_task_is_refused_by_its_name(queue, make_app):
    gq: GPUQueue = queue.get(make_app(queue))
    with pytest.raises(UnknownTask):
        gq.enqueue("nothing")


def test_aborting_in_a_task_fails_the_job_and_not_the_worker(queue, make_app):
    @queue.task(name="teapot")
    def teapot() -> None:
        abort(418)

    app = make_app(queue)
    with app.app_context():
        job = teapot.enqueue()
    with Worker(queue.get(app)):
        assert [record.state for record in job.watch(timeout_s=DEADLINE_S)][-1] == "discarded"
