"""Owns the revision page as a Flask application: what it shows and does; a visitor reaches only jobs of their own."""

import os
import secrets

from flask import Blueprint, Flask, Response, abort, redirect, render_template, request, session, url_for
from werkzeug.wrappers import Response as BaseResponse

from gpuqueue import JobHandle, UnknownJob
from gpuqueue.integrations.flask import FlaskGPUQueue

MODEL = "gemma4:e4b"
SYSTEM = "Revise the text: correct its mistakes and make it clear. Answer with the revised text alone."
LONGEST = 8000

queue = FlaskGPUQueue()
pages = Blueprint("revisions", __name__)


def create_app() -> Flask:
    app = Flask(__name__, static_folder="../page")
    app.config.from_mapping(
        SECRET_KEY=os.environ.get("SECRET_KEY", "for development only"),
        SESSION_COOKIE_SAMESITE="Lax",  # so that no other site's form is posted as this visitor
        GPUQUEUE_CONFIG="gpuqueue.toml",
    )
    queue.init_app(app)
    app.register_blueprint(pages)
    return app


@pages.get("/")
def start() -> str:
    return render_template("page.html")


@pages.post("/revisions")
def revise() -> BaseResponse | tuple[str, int]:
    text = request.form.get("text", "").strip()
    if not 0 < len(text) <= LONGEST:
        error = f"Write a text of 1 to {LONGEST} characters."
        return render_template("page.html", text=text, error=error), 400
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    job = queue.get().ollama.chat(MODEL, messages=messages, queue="ai-realtime", job={"tags": [_visitor()]})
    return redirect(url_for(".show", job_id=job.id))


@pages.get("/revisions/<int:job_id>")
def show(job_id: int) -> str:
    job = _own(job_id)
    return render_template("page.html", job=job, text=job.record.arguments["messages"][-1]["content"])


@pages.get("/revisions/<int:job_id>/events")
def events(job_id: int) -> Response:
    return queue.events(_own(job_id))


@pages.post("/revisions/<int:job_id>/cancel")
def cancel(job_id: int) -> BaseResponse:
    _own(job_id).cancel()
    return redirect(url_for(".show", job_id=job_id))


def _visitor() -> str:
    return session.setdefault("visitor", f"visitor:{secrets.token_hex(16)}")


def _own(job_id: int) -> JobHandle:
    """Find a job that this visitor asked for; the tag that it was stored with says so."""
    try:
        job = queue.get().job(job_id)
    except UnknownJob:
        abort(404)
    if _visitor() not in job.record.tags:
        abort(404)
    return job
