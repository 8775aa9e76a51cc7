"""While a Flask app is under test its jobs run where they are enqueued, unless its config says otherwise."""

from __future__ import annotations

import pytest
from flask import Flask, current_app

from gpuqueue.integrations.flask import FlaskGPUQueue
from tests.integrations.server_events import heard_in, text_of


@pytest.fixture
def made(tmp_path):
    """An extension with a task and its app, as a factory makes it, in tests or not."""
    queue = FlaskGPUQueue(discover_plugins=False)

    @queue.task(name="where", queue="mail")
    def where(greeting: str) -> str:
        from gpuqueue import current_job

        current_job().emit("on the way")
        return f"{greeting} from {current_app.name}"

    app = Flask("shop", instance_path=str(tmp_path))
    queue.init_app(app)

    @app.post("/greet")
    def greet():
        job = where.enqueue(greeting="hello")
        return {"job": job.id, "state": job.state}

    @app.get("/jobs/<int:job_id>/events")
    def events(job_id: int):
        return queue.events(job_id)

    yield app
    app.extensions["gpuqueue"].close()


def test_a_job_has_run_when_the_view_answers(made):
    made.config["TESTING"] = True  # after init_app, as fixtures do
    client = made.test_client()
    answer = client.post("/greet").json
    assert answer["state"] == "completed"
    told = list(heard_in([client.get(f"/jobs/{answer['job']}/events").data]))
    assert text_of(told) == "on the way"
    assert told[-1].data == {"result": "hello from shop"}


def test_outside_of_tests_a_job_waits_for_a_worker(made):
    assert made.test_client().post("/greet").json["state"] == "available"


@pytest.mark.parametrize(("testing", "eager", "state"), [(True, False, "available"), (False, True, "completed")])
def test_the_config_has_the_last_word(made, testing, eager, state):
    made.config.update(TESTING=testing, GPUQUEUE_EAGER=eager)
    assert made.test_client().post("/greet").json["state"] == state


def test_it_ends_with_the_tests(made):
    made.testing = True
    assert made.test_client().post("/greet").json["state"] == "completed"
    made.testing = False
    assert made.test_client().post("/greet").json["state"] == "available"


@pytest.mark.parametrize("eager", [True, False])
def test_what_tests_enqueue_is_not_in_the_apps_file(made, eager):
    gq = made.extensions["gpuqueue"]
    file = gq.database
    made.config.update(TESTING=True, GPUQUEUE_EAGER=eager)
    made.test_client().post("/greet")
    assert len(list(gq.jobs())) == 1
    assert gq.database != file and not file.exists()
    made.testing = False
    made.test_client().post("/greet")
    assert [job.id for job in gq.jobs()] == [1]
    assert gq.database == file and file.exists()


def test_a_file_that_the_config_names_is_kept_in_tests(made, tmp_path):
    made.config.update(TESTING=True, GPUQUEUE_DATABASE="tests.db")
    made.test_client().post("/greet")
    assert made.extensions["gpuqueue"].database == tmp_path / "gpuqueue.db", "it was read when init_app was called"
