"""Owns the commands `gpuqueue mirror …`: how the mirror is, building it anew, comparing it, and the line that lets readers in."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import wraps
from itertools import islice
from typing import Any

import click
import redis

from gpuqueue import GPUQueue, State, UsageError
from gpuqueue.plugins import shown_url
from gpuqueue_redis_mirror.compare import Difference, differences
from gpuqueue_redis_mirror.layout import DELAYED, FAILED
from gpuqueue_redis_mirror.service import Mirroring, identity
from gpuqueue_redis_mirror.settings import Settings
from gpuqueue_redis_mirror.source import Kept, Source
from gpuqueue_redis_mirror.target import Occupied, Superseded, Target
from gpuqueue_redis_mirror.workers import WorkerConnections

PATIENCE_S = 60.0  # for a worker to build the mirror anew
SETTLE_S = 5.0  # for the mirror to come level with the queue
MOST_SHOWN = 50  # differences
READER_RULES = (
    "-@all +@read +@transaction +@connection -client|kill -client|pause -client|unpause -client|unblock -client|no-evict "
    "-client|reply +eval +evalsha +script|load +script|exists +info"
)
Function = Callable[..., Any]


@click.group(short_help="The mirror in Redis or Valkey: how it is, anew, compared.")
def mirror() -> None:
    """The mirror of the queues in Redis or Valkey, which BullMQ's tools read."""


def _with_target(function: Function) -> Function:
    """Give a command the queue object, the section and the target, and word what Redis says."""

    @wraps(function)
    def command(**options: Any) -> Any:
        session: Any = click.get_current_context().obj
        gq: GPUQueue = session.existing_queue()
        settings: Settings = gq.plugin("mirror").settings  # type: ignore[attr-defined]
        target = Target(settings.url, settings.prefix, identity(gq))
        try:
            return function(gq=gq, settings=settings, target=target, **options)
        except (redis.RedisError, OSError) as error:
            raise UsageError(f"the mirror at {shown_url(settings.url)}: {error}") from error
        except (Occupied, Superseded) as error:
            raise UsageError(str(error)) from error
        finally:
            target.close()

    return command


@mirror.command(short_help="Say how the mirror is.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; its keys are listed above.")
@_with_target
def status(gq: GPUQueue, settings: Settings, target: Target, as_json: bool) -> None:
    """Say who writes the mirror, how far behind it is, the last error, and the counts on both sides.

    \b
    Keys: url, prefix, worker (null: nobody writes it), state, lag_s, behind
      (events), error, noted_at, rebuilt_at,
      queues: [{name, paused, here: {wait, active, delayed, completed,
        failed}, there: {wait, active, delayed, completed, failed}}].
    """
    found = next((item for item in gq.services() if item.name == "mirror"), None)
    told = dict(found.status) if found is not None else {}
    state = target.state()
    queues: list[dict[str, Any]] = []
    for name, counts in gq.counts().items():
        base = f"{settings.prefix}:{name}"
        with target.client.pipeline(transaction=True) as pipe:
            pipe.llen(f"{base}:wait")
            pipe.zcard(f"{base}:prioritized")
            pipe.llen(f"{base}:active")
            for suffix in ("delayed", "completed", "failed"):
                pipe.zcard(f"{base}:{suffix}")
            pipe.hexists(f"{base}:meta", "paused")
            first, later, active, delayed, completed, failed, paused = pipe.execute()
        here = {
            "wait": counts.get(State.AVAILABLE, 0),
            "active": counts.get(State.RUNNING, 0),
            "delayed": sum(counts.get(item, 0) for item in DELAYED),
            "completed": min(counts.get(State.COMPLETED, 0), settings.keep_completed),
            "failed": min(sum(counts.get(item, 0) for item in FAILED), settings.keep_failed),
        }
        there = {"wait": first + later, "active": active, "delayed": delayed, "completed": completed, "failed": failed}
        queues.append({"name": name, "paused": bool(paused), "here": here, "there": there})
    shape = {
        "url": shown_url(settings.url),
        "prefix": settings.prefix,
        "worker": None if found is None else found.worker_id,
        "state": told.get("state"),
        "lag_s": told.get("lag_s"),
        "behind": told.get("behind"),
        "error": told.get("error"),
        "noted_at": None if found is None or found.noted_at is None else found.noted_at.isoformat(),
        "rebuilt_at": None if state is None or not state.rebuilt_s else _iso(state.rebuilt_s),
        "queues": queues,
    }
    if as_json:
        click.echo(json.dumps(shape, indent=2))
        return
    click.echo(f"{shape['url']}, prefix {settings.prefix}")
    click.echo(f"written by: {shape['worker'] or 'nobody; start a worker with this configuration'}")
    if told:
        click.echo(
            f"state: {told.get('state', 'failing')}, {told.get('behind', '?')} events behind, lag {told.get('lag_s', '?')} s"
        )
    if told.get("error"):
        click.echo(f"last error: {told['error']}")
    for queue in queues:
        same = queue["here"] == queue["there"]
        mark = "as the queue" if same else f"the queue has {_counted(queue['here'])}"
        click.echo(f"  {queue['name']}{' (paused)' if queue['paused'] else ''}: {_counted(queue['there'])}; {mark}")


@mirror.command(short_help="Build the mirror anew.")
@click.option("--replace", is_flag=True, help="Also where the keys are another program's, whose jobs are deleted.")
@_with_target
def rebuild(gq: GPUQueue, settings: Settings, target: Target, replace: bool) -> None:
    """Build the whole mirror anew, in one swap: by the worker that writes it, or here where none does."""
    found = next((item for item in gq.services() if item.name == "mirror"), None)
    if found is None or found.worker_id is None:
        workers = WorkerConnections(settings.url)
        here = Mirroring(gq, target, workers, settings, term=0 if found is None else found.term)
        count = here.rebuild(replace=replace)
        click.echo(f"{count} keys written to {shown_url(settings.url)}; no worker keeps them up to date now")
        return
    before = target.state()
    target.ask("replace" if replace else "rebuild")
    give_up_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up_s:
        state = target.state()
        if state is not None and not state.asked and state.rebuilt_s > (before.rebuilt_s if before is not None else 0.0):
            click.echo(f"worker {found.worker_id} has built it anew")
            return
        time.sleep(0.1)
    raise UsageError(f"worker {found.worker_id} did not build it anew within {PATIENCE_S:.0f} s; see `gpuqueue mirror status`")


@mirror.command(short_help="Compare the mirror with the queue.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; its keys are listed above.")
@_with_target
def verify(gq: GPUQueue, settings: Settings, target: Target, as_json: bool) -> None:
    """Compare the mirror with the queue, key by key; exit status 1 when they differ.

    What happens meanwhile is waited for, up to five seconds.

    \b
    Keys: same, differences: [{key, what}] (the first 1000).
    """
    source = Source(gq, Kept(settings.keep_completed, settings.keep_failed))
    give_up_s = time.monotonic() + SETTLE_S
    while True:
        with gq.read() as reader:
            found = list(islice(differences(reader, source, target, source.held()), 1000))
        if not found or time.monotonic() >= give_up_s:
            break
        time.sleep(0.2)
    if as_json:
        shape = {"same": not found, "differences": [{"key": item.name, "what": item.what} for item in found]}
        click.echo(json.dumps(shape, indent=2))
    else:
        _tell(found, settings)
    if found:
        raise SystemExit(1)


def _tell(found: list[Difference], settings: Settings) -> None:
    if not found:
        click.echo(f"the mirror at {shown_url(settings.url)} is as the queue says")
    for item in found[:MOST_SHOWN]:
        click.echo(f"{item.name}: {item.what}")
    if len(found) > MOST_SHOWN:
        click.echo(f"and {len(found) - MOST_SHOWN} more")
    if found:
        click.echo("→ gpuqueue mirror rebuild")


@mirror.command(short_help="Print the line that lets readers in and keeps them from writing.")
@click.option("--user", default="reader", show_default=True, metavar="NAME", help="The reader's name.")
@_with_target
def acl(gq: GPUQueue, settings: Settings, target: Target, user: str) -> None:
    """Print the ACL line of a user that may read the mirror and change nothing.

    A BullMQ worker that is pointed at a mirror would take its jobs: give the readers this user, and the default user a
    password, or turn it off.
    """
    click.echo(reader_line(user, settings.prefix))


def reader_line(user: str, prefix: str, password: str = "PASSWORD") -> str:
    """Word the command that makes a reader."""
    return f"ACL SETUSER {user} on >{password} ~{prefix}:* {READER_RULES}"


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items())


def _iso(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).isoformat()
