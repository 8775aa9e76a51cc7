"""Writes a first configuration file for this machine: the command `init`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from gpuqueue.cli.completion import files
from gpuqueue.cli.rendering import note
from gpuqueue.cli.session import AppSession, Session, pass_session
from gpuqueue.config.initial import EMBEDDING_MODEL, initial_toml, local_timezone
from gpuqueue.config.loading import DEFAULT_FILE, Config
from gpuqueue.config.sections import ollama_url
from gpuqueue.domain.errors import ConfigurationError, UsageError
from gpuqueue.domain.settings import BackendSettings
from gpuqueue.domain.units import counted, format_size, parse_size

PROBE_S = 1.0
GB = 10**9
SCENARIO_BUDGET, SCENARIO_MARGIN = 5 * GB, 3 * GB
SCENARIO_MODEL, SCENARIO_VRAM = "gemma4:e4b", 4_500_000_000


@dataclass(frozen=True, slots=True)
class Card:
    """The first card as NVML reports it; when it cannot be read, `total_bytes` is None and `why` has the reason."""

    total_bytes: int | None
    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Ollama:
    """The models of an Ollama, {model: bytes on its disk}; when it does not answer, None and `why` has the reason."""

    url: str
    models: Mapping[str, int] | None
    why: str = ""


@click.command(short_help="Write a first configuration for this machine.")
@click.option("--path", metavar="FILE", shell_complete=files, help=f"Where to write it. Default: {DEFAULT_FILE}.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@click.option("--model", metavar="MODEL", help="The model for the AI queues. Default: one that Ollama has.")
@click.option("--budget", metavar="SIZE", help='GPU memory that jobs may use: "5GB". Default: what fits the card.')
@click.option("--margin", metavar="SIZE", help='GPU memory left to other programs: "3GB".')
@click.option("--ollama", "url", metavar="URL", help="The URL of Ollama. Default: $OLLAMA_HOST, else http://127.0.0.1:11434.")
@pass_session
def init(
    session: Session, path: str | None, force: bool, model: str | None, budget: str | None, margin: str | None, url: str | None
) -> None:
    """Write a first configuration for this machine, with its time zone, its GPU and a model of its Ollama.

    It defines an interactive queue and a background queue that share one GPU, and two queues without a GPU.
    """
    file = session.new_config_path if path is None else Path(os.path.abspath(Path(path).expanduser()))
    if file.exists() and not force:
        raise UsageError(f"{file} already exists; overwrite it with --force, or write another with --path FILE")
    card = find_card()
    ollama = ask_ollama(ollama_url(url or os.environ.get("OLLAMA_HOST") or BackendSettings().url))
    budget_bytes, margin_bytes = choose_memory(
        card.total_bytes,
        None if budget is None else parse_size(budget, what="--budget"),
        None if margin is None else parse_size(margin, what="--margin"),
    )
    chosen, vram_bytes = choose_model(model, ollama.models, budget_bytes)
    zone = local_timezone()
    text = initial_toml(
        timezone=zone,
        budget=budget_bytes,
        margin=margin_bytes,
        model=chosen,
        model_vram=vram_bytes,
        ollama_url=ollama.url,
        database=session.database_of_new(file),
    )
    _write(file, text)
    _tell(session, file, card, ollama, budget_bytes, margin_bytes, chosen, vram_bytes, zone)


def find_card() -> Card:
    """Ask NVML for the first card."""
    from gpuqueue.devices.nvml import NvmlDevice
    from gpuqueue.domain.settings import DeviceSettings

    device = NvmlDevice(DeviceSettings("gpu0", 0))
    reading = device.read()
    device.close()
    return Card(reading.total_bytes, reading.name or "a card", reading.lost or "")


def ask_ollama(url: str) -> Ollama:
    """Ask an Ollama, briefly, which models it has."""
    import httpx

    try:
        response = httpx.get(f"{url}/api/tags", timeout=PROBE_S, trust_env=False)
        response.raise_for_status()
        found = {str(item["name"]): int(item.get("size") or 0) for item in response.json().get("models") or ()}
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Ollama(url, None, str(error) or type(error).__name__)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Ollama(url, None, "it answers, but it is not an Ollama")
    return Ollama(url, found)


def choose_memory(total_bytes: int | None, budget_bytes: int | None, margin_bytes: int | None) -> tuple[int, int]:
    """Choose (budget, margin) in bytes so that both fit the card; given values are used unchanged.

    Raises: UsageError if they cannot fit.
    """
    if total_bytes is None:
        return budget_bytes or SCENARIO_BUDGET, SCENARIO_MARGIN if margin_bytes is None else margin_bytes
    if margin_bytes is None:
        # Three eighths, at most the 3 GB of the scenario; less if the given budget leaves less.
        fair = min(SCENARIO_MARGIN, _whole(total_bytes * 3 // 8, GB // 2))
        margin_bytes = fair if budget_bytes is None else max(0, min(fair, _whole(total_bytes - budget_bytes, GB // 10)))
    if budget_bytes is None:
        left = total_bytes - margin_bytes
        budget_bytes = _whole(left, GB if left >= SCENARIO_BUDGET else GB // 2)
    if budget_bytes <= 0 or budget_bytes + margin_bytes > total_bytes:
        raise UsageError(
            f"--budget and --margin do not fit the card: budget {format_size(budget_bytes)} + margin "
            f"{format_size(margin_bytes)} exceeds its {format_size(total_bytes)}"
        )
    return budget_bytes, margin_bytes


def choose_model(asked: str | None, models: Mapping[str, int] | None, budget_bytes: int) -> tuple[str, int]:
    """Choose (model, its bytes when loaded): the one given, else the scenario's if Ollama has it, else the largest that fits.

    Raises: UsageError if it cannot be loaded within the budget.
    """
    from gpuqueue.domain.models import full_name

    sizes = {full_name(name): loaded_bytes(name, size) for name, size in (models or {}).items()}
    if asked is None and full_name(SCENARIO_MODEL) not in sizes:
        fitting = [
            (size, name)
            for name, size in ((name, sizes[full_name(name)]) for name in models or ())
            if size <= budget_bytes and "embed" not in name
        ]
        if fitting:
            size, name = max(fitting)
            return name, size
    chosen = asked or SCENARIO_MODEL
    vram_bytes = sizes.get(full_name(chosen)) or min(SCENARIO_VRAM, budget_bytes if asked else SCENARIO_VRAM)
    if vram_bytes > budget_bytes:
        raise UsageError(
            f"{chosen} needs about {format_size(vram_bytes)} when loaded, but the budget is {format_size(budget_bytes)}; "
            "use a smaller --model or a larger --budget"
        )
    return chosen, vram_bytes


def loaded_bytes(name: str, size_bytes: int) -> int:
    """Estimate the memory of a model loaded with a context of 4096 tokens, from its size on disk."""
    if name == SCENARIO_MODEL or not size_bytes:
        return SCENARIO_VRAM
    return -_whole(-(size_bytes * 11 // 10 + GB // 2), GB // 10)


def _whole(size_bytes: int, unit: int) -> int:
    return size_bytes // unit * unit


def _write(file: Path, text: str) -> None:
    """Write the file whole or not at all, and only if it loads again."""
    try:
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=".toml")
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}") from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        try:
            Config.load(name, environ={})
        except ConfigurationError as error:
            raise UsageError(str(error).replace(f"{name}: ", "the configuration would be invalid: ")) from None
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, file)
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}; nothing was changed") from None
    finally:
        Path(name).unlink(missing_ok=True)


def _tell(
    session: Session,
    file: Path,
    card: Card,
    ollama: Ollama,
    budget_bytes: int,
    margin_bytes: int,
    model: str,
    vram_bytes: int,
    zone: str,
) -> None:
    from gpuqueue.domain.models import full_name

    click.echo(f"wrote {file}")
    memory = f"budget {format_size(budget_bytes)} + margin {format_size(margin_bytes)}"
    if card.total_bytes is None:
        click.echo(f"  card: none can be read here ({card.why}); check that the card has room for {memory}")
    else:
        click.echo(f"  card: {card.name}, {format_size(card.total_bytes)}; {memory}")
    if ollama.models is None:
        click.echo(f"  Ollama: {ollama.url} does not answer ({ollama.why})")
    else:
        click.echo(f"  Ollama: {ollama.url} has {counted(len(ollama.models), 'model')}")
    click.echo(f"  model: {model}, {format_size(vram_bytes)} when loaded")
    click.echo(f"  time zone: {zone}; background work pauses there 09:00-18:00")
    has = {full_name(name) for name in ollama.models or ()}
    missing = [name for name in (model, EMBEDDING_MODEL) if full_name(name) not in has]
    is_found = file == session.new_config_path
    if not is_found and not isinstance(session, AppSession):
        session = Session(str(file))
    worker = session.worker_command("") if isinstance(session, AppSession) else session.command("worker")
    click.echo("next:")
    for name in missing:
        click.echo(f"  ollama pull {name}")
    click.echo(f"  {session.command('doctor')}")
    click.echo(f"  {worker}")
    click.echo(f'  {session.command("submit", "ai-realtime", "--model", model)} --prompt "Say hello" --follow')
    if isinstance(session, AppSession):
        if not is_found:
            note(f"note: the application reads {session.new_config_path} unless its settings name another file")
    elif os.environ.get("GPUQUEUE_CONFIG") and is_found:
        note(f"note: GPUQUEUE_CONFIG names {os.environ['GPUQUEUE_CONFIG']}, which takes precedence over this file")
