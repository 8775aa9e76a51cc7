"""Owns `python -m gpuqueue`, which is the command line; does nothing when imported."""

from __future__ import annotations

import sys

from gpuqueue.cli import main

if __name__ == "__main__":
    sys.exit(main())
