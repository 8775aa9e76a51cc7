"""Simulates a card, an Ollama and NVML that behave like the real ones.

Production code never imports the simulators; they import nothing else of gpuqueue.
"""

from __future__ import annotations
