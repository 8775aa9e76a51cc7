"""Checks the `options` of a request, and finds those that make Ollama load a model again; loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpuqueue.simulators.ollama.models import ModelSpec

_SIZING = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread")
_INTEGERS = (*_SIZING, "num_keep", "seed", "num_predict", "top_k", "repeat_last_n", "draft_num_predict")
_FLOATS = ("top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty")
_TYPES = {**dict.fromkeys(_INTEGERS, "integer"), **dict.fromkeys(_FLOATS, "float32"), "use_mmap": "boolean", "stop": "array"}


class WrongOption(Exception):
    """An option has the wrong type; the message is Ollama's, to be answered with status 500."""


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """The options that size a runner's memory; two requests that differ in one of them need two loads."""

    num_ctx: int
    num_gpu: int
    num_batch: int
    num_thread: int
    main_gpu: int
    use_mmap: bool | None
    shift: bool


def check_options(options: Mapping[str, object]) -> None:
    """Refuse a known option of the wrong type; unknown ones are ignored.

    Raises: WrongOption.
    """
    for name, value in options.items():
        wanted = _TYPES.get(name)
        if wanted is None or value is None:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        fits = {"boolean": isinstance(value, bool), "array": isinstance(value, list)}
        if not fits.get(wanted, number):
            raise WrongOption(f'option "{name}" must be of type {wanted}')


def integer_option(options: Mapping[str, object], name: str, default: int | None = None) -> int | None:
    """Return one checked integer option; like Ollama, cut off a fraction."""
    value = options.get(name)
    return int(value) if isinstance(value, (int, float)) else default


def runner_options(spec: ModelSpec, options: Mapping[str, object], shift: bool) -> RunnerOptions:
    """Return the effective runner options that a request to `spec` needs."""
    use_mmap = options.get("use_mmap")
    return RunnerOptions(
        num_ctx=spec.effective_num_ctx(integer_option(options, "num_ctx")),
        num_gpu=integer_option(options, "num_gpu", -1) or 0,
        num_batch=integer_option(options, "num_batch", 512) or 0,
        num_thread=integer_option(options, "num_thread", 0) or 0,
        main_gpu=integer_option(options, "main_gpu", 0) or 0,
        use_mmap=use_mmap if isinstance(use_mmap, bool) else None,
        shift=shift,
    )
