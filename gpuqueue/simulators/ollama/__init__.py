"""Owns the public names of the simulated Ollama; the rest of this package is its inside.

It speaks Ollama's HTTP contract over real sockets, computes on a `SimulatedCard`, and fails on demand. Beside Ollama's own
paths it answers `/simulator/card`, `/simulator/faults` and `/simulator/outage`, to be watched and driven from another process.
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
