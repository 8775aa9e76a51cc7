"""Runs the command line as `python -m gpuqueue`."""

from __future__ import annotations

import sys

from gpuqueue.cli import main

if __name__ == "__main__":
    sys.exit(main())
