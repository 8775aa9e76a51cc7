"""Owns running a Python program whose NVML shows a simulator's card: `python with_card.py URL PROGRAM…`; decides nothing else."""

import runpy
import sys

from gpuqueue.simulators.nvml import install

if __name__ == "__main__":
    url, program, *_ = sys.argv[1:]
    install(url)
    sys.argv = sys.argv[2:]
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
