"""Owns the command `plugins`: which there are and what they answer; loads nothing that a worker would not."""

from __future__ import annotations

import click

from gpuqueue.cli.rendering import print_json, print_table
from gpuqueue.cli.session import Session, app_option, json_option, pass_session
from gpuqueue.plugin_manager import PluginInfo
from gpuqueue.policies import worker_policies


@click.command(short_help="List every plugin with the hooks that it answers.")
@app_option
@json_option
@pass_session
def plugins(session: Session, app: str | None, as_json: bool) -> None:
    """List every plugin with the hooks that it answers, in the order in which they are asked; those blocked come last.

    Installed plugins are found by their entry points of group `gpuqueue`; those that an application gives to its queue object
    are shown with --app.

    \b
    Keys: plugins: [{name, kind: "default", "installed" or "given", distribution and version (null: not installed as one),
                     hooks: [name], blocked}].
    """
    found = session.plugins() if app is None else session.queue(app).plugins
    found.add_defaults(worker_policies())
    if as_json:
        print_json({"plugins": [_shape(info) for info in found.infos()]})
        return
    rows = [(info.name, _origin(info), "blocked" if info.blocked else ", ".join(info.hooks)) for info in found.infos()]
    print_table({"plugin": "left", "from": "left", "hooks": "left"}, rows)


def _origin(info: PluginInfo) -> str:
    return f"{info.distribution} {info.version}" if info.distribution else info.kind


def _shape(info: PluginInfo) -> dict[str, object]:
    return {
        "name": info.name,
        "kind": info.kind,
        "distribution": info.distribution,
        "version": info.version,
        "hooks": list(info.hooks),
        "blocked": info.blocked,
    }
