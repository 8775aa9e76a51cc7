"""Owns a program that no queue knows of, which takes memory on a card and holds it until its input ends.

`python -m tests.gpu.other_program FILE BYTES HOW` writes its number into the file as soon as it has the memory.
"""

from __future__ import annotations

import os
import sys

from tests.executors.isolated_functions import tell
from tests.gpu.cuda import take


def main(file: str, size_bytes: str, how: str) -> None:
    held = take(int(size_bytes), how)
    tell(file, os.getpid())
    sys.stdin.read()  # which also ends when the tests are killed
    del held


if __name__ == "__main__":
    main(*sys.argv[1:])
