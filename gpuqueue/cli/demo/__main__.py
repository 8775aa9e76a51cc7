"""Runs `gpuqueue demo` as `python -m gpuqueue.cli.demo`."""

from __future__ import annotations

import sys

from gpuqueue.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
