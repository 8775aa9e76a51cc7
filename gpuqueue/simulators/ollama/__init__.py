"""Exposes the public names of the simulated Ollama; the other modules of this package are internal.

It serves Ollama's HTTP contract over real sockets, computes on a `SimulatedCard`, and fails on demand. In addition to Ollama's
own paths it serves `/simulator/card`, `/simulator/faults` and `/simulator/outage`, to watch and control it from another process.
"""

from __future__ import annotations

from gpuqueue.simulators.ollama.answers import expected_answer, expected_embedding
from gpuqueue.simulators.ollama.faults import KINDS as FAULT_KINDS
from gpuqueue.simulators.ollama.faults import Fault, Faults
from gpuqueue.simulators.ollama.models import DEFAULT_MODELS, GEMMA4_E4B, NOMIC_EMBED_TEXT, ModelSpec
from gpuqueue.simulators.ollama.simulator import OllamaSimulator, Served

__all__ = [
    "DEFAULT_MODELS",
    "FAULT_KINDS",
    "GEMMA4_E4B",
    "NOMIC_EMBED_TEXT",
    "Fault",
    "Faults",
    "ModelSpec",
    "OllamaSimulator",
    "Served",
    "expected_answer",
    "expected_embedding",
]
