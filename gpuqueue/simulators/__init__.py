"""Owns the simulators: a card, an Ollama and NVML that behave like the real ones.

The real path never imports them; they import nothing else of gpuqueue.
"""

from __future__ import annotations
