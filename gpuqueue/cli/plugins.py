"""Owns the command `plugins`: which there are and what they answer; loads nothing that a worker would not."""

from __future__ import annotations

import click

from gpuqueue.cli.rendering import print_json, print_table
from gpuqueue.cli.session import Session, app_option, json_option, pass_session
from gpuqueue.policies import default_policies, worker_policies


@click.command(short_help="List every plugin with the hooks that it answers.")
@app_option
@json_option
@pass_session
def plugins(session: Session, app: str | None, as_json: bool) -> None:
    """List every plugin with the hooks that it answers, in the order in which they are asked.

    \b
    Keys: plugins: [{name, kind ("default" or "installed"), hooks}].
    """
    found = session.plugins() if app is None else session.queue(app).plugins
    found.add_defaults(worker_policies())
    defaults = default_policies().keys() | worker_policies().keys()
    rows = [(name, "default" if name in defaults else "installed", hooks) for name, hooks in reversed(found.names())]
    if as_json:
        print_json({"plugins": [{"name": name, "kind": kind, "hooks": hooks} for name, kind, hooks in rows]})
        return
    print_table(
        {"plugin": "left", "kind": "left", "hooks": "prose"}, [(name, kind, ", ".join(hooks)) for name, kind, hooks in rows]
    )
