"""Owns the simulators' place in the package: a GPU card, an Ollama server and NVML that behave like the real ones; the real path never imports them."""

from __future__ import annotations
