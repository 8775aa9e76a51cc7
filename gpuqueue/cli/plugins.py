"""Lists plugins and writes the files of a new one: the command `plugins`. Loads nothing that a worker would not."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from gpuqueue.cli import plugin_template
from gpuqueue.cli.rendering import print_json, print_table, say
from gpuqueue.cli.session import Session, app_option, json_option, pass_session
from gpuqueue.contract.plugin_set import PluginInfo
from gpuqueue.decisions.policies import worker_policies
from gpuqueue.domain.errors import UsageError


@click.group(
    invoke_without_command=True,
    subcommand_metavar="[new NAME]",
    short_help="List plugins and their hooks, or write a new one.",
)
@app_option
@json_option
@click.pass_context
@pass_session
def plugins(session: Session, context: click.Context, app: str | None, as_json: bool) -> None:
    """List every plugin with the hooks it implements, in the order in which they are called; blocked plugins come last.

    Installed plugins are found by their entry points in the group `gpuqueue`. With --app, the plugins that the application
    gives to its queue object are listed too.

    \b
    Keys: plugins: [{name, kind ("default", "installed" or "given"),
                     distribution, version (null: no distribution of its own),
                     hooks, blocked}].
    """
    if context.invoked_subcommand is not None:
        if app is not None or as_json:
            raise UsageError(f"--app and --json apply to the list, not to `plugins {context.invoked_subcommand}`; remove them")
        return
    found = session.plugins() if app is None else session.queue(app).plugins
    found.add_defaults(worker_policies())
    if as_json:
        print_json({"plugins": [_shape(info) for info in found.infos()]})
        return
    rows = [(info.name, _origin(info), "blocked" if info.blocked else ", ".join(info.hooks)) for info in found.infos()]
    print_table({"plugin": "left", "from": "left", "hooks": "prose"}, rows)


@plugins.command("new", short_help="Write a new plugin's files.")
@click.argument("name")
@click.option(
    "--into",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Where to write them: a new or empty folder. Default: gpuqueue-NAME.",
)
def new(name: str, into: Path | None) -> None:
    """Write the files of a new plugin: a working distribution with a module, tests and a README.

    NAME is the name of the plugin and of its section in gpuqueue.toml: lowercase letters, digits and hyphens.
    """
    plugin_template.check_name(name)
    folder = Path(plugin_template.distribution(name)) if into is None else into.expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder.absolute()} already exists; nothing was written. Use another folder: --into FOLDER")
    files = plugin_template.files(name)
    try:
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            with open(folder / path, "x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise UsageError(f"cannot write {folder.absolute()}: {error.strerror}. Use another folder: --into FOLDER") from None
    say(f"{folder}: {', '.join(files)}")
    click.echo(
        f'  next: cd {shlex.quote(str(folder))} && python -m pip install -e ".[test]" && python -m pytest && gpuqueue plugins'
    )


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
