"""Owns `python -m gpuqueue.cli.demo`, which is `gpuqueue demo`; does nothing when imported."""

from __future__ import annotations

import sys

from gpuqueue.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
