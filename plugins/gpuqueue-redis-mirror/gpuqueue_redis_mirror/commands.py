"""Implements the commands `gpuqueue mirror …`: status, rebuild, verify, and the ACL line for readers."""

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

PATIENCE_S = 60.0  # for a worker to rebuild the mirror
SETTLE_S = 5.0  # for the mirror to catch up with the queue
MOST_SHOWN = 50  # differences
READER_RULES = (
    "-@all +@read +@transaction +@connection -client|kill -client|pause -client|unpause -client|unblock -client|no-evict "
    "-client|reply +eval +evalsha +script|load +script|exists +info"
)
Function = Callable[..., Any]


@click.group(short_help="Show, rebuild or verify the mirror in Redis or Valkey.")
def mirror() -> None:
    """Show, rebuild or verify the mirror of the queues in Redis or Valkey, for BullMQ's tools."""


def _with_target(function: Function) -> Function:
    """Pass the queue object, the settings and the target to a command, and word errors of Redis."""

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


@mirror.command(short_help="Show the mirror's state.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; its keys are listed above.")
@_with_target
def status(gq: GPUQueue, settings: Settings, target: Target, as_json: bool) -> None:
    """Show which worker writes the mirror, how far behind it is, its last error, and the counts on both sides.

    \b
    Keys: url, prefix, worker (null: no worker writes it), state, lag_s, behind
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
    click.echo(f"written by: {shape['worker'] or 'no worker; start one with this configuration'}")
    if told:
        click.echo(
            f"state: {told.get('state', 'failing')}, {told.get('behind', '?')} events behind, lag {told.get('lag_s', '?')} s"
        )
    if told.get("error"):
        click.echo(f"last error: {told['error']}")
    for queue in queues:
        same = queue["here"] == queue["there"]
        mark = "same as the queue" if same else f"the queue has {_counted(queue['here'])}"
        click.echo(f"  {queue['name']}{' (paused)' if queue['paused'] else ''}: {_counted(queue['there'])}; {mark}")


@mirror.command(short_help="Rebuild the mirror.")
@click.option("--replace", is_flag=True, help="Also replace keys of another program, which deletes its jobs.")
@_with_target
def rebuild(gq: GPUQueue, settings: Settings, target: Target, replace: bool) -> None:
    """Rebuild the whole mirror in one swap: in the worker that writes it or, if there is none, in this command."""
    found = next((item for item in gq.services() if item.name == "mirror"), None)
    if found is None or found.worker_id is None:
        workers = WorkerConnections(settings.url)
        here = Mirroring(gq, target, workers, settings, term=0 if found is None else found.term)
        count = here.rebuild(replace=replace)
        click.echo(f"{count} keys written to {shown_url(settings.url)}; start a worker to keep them up to date")
        return
    before = target.state()
    target.ask("replace" if replace else "rebuild")
    give_up_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up_s:
        state = target.state()
        if state is not None and not state.asked and state.rebuilt_s > (before.rebuilt_s if before is not None else 0.0):
            click.echo(f"worker {found.worker_id} has rebuilt the mirror")
            return
        time.sleep(0.1)
    raise UsageError(
        f"worker {found.worker_id} did not rebuild the mirror within {PATIENCE_S:.0f} s; run `gpuqueue mirror status`"
    )


@mirror.command(short_help="Compare the mirror with the queue.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; its keys are listed above.")
@_with_target
def verify(gq: GPUQueue, settings: Settings, target: Target, as_json: bool) -> None:
    """Compare the mirror with the queue, key by key; exit with status 1 if they differ.

    The mirror gets up to five seconds to catch up with the queue.

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
        click.echo(f"the mirror at {shown_url(settings.url)} matches the queue")
    for item in found[:MOST_SHOWN]:
        click.echo(f"{item.name}: {item.what}")
    if len(found) > MOST_SHOWN:
        click.echo(f"and {len(found) - MOST_SHOWN} more")
    if found:
        click.echo("→ gpuqueue mirror rebuild")


@mirror.command(short_help="Print the ACL line for a read-only user.")
@click.option("--user", default="reader", show_default=True, metavar="NAME", help="The reader's name.")
@_with_target
def acl(gq: GPUQueue, settings: Settings, target: Target, user: str) -> None:
    """Print the ACL line for a user that can read the mirror but change nothing.

    A BullMQ worker that connects to the mirror would take its jobs. Give readers this user, and set a password for the
    default user or disable it.
    """
    click.echo(reader_line(user, settings.prefix))


def reader_line(user: str, prefix: str, password: str = "PASSWORD") -> str:
    """Return the command that creates a reader."""
    return f"ACL SETUSER {user} on >{password} ~{prefix}:* {READER_RULES}"


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items())


def _iso(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).isoformat()
