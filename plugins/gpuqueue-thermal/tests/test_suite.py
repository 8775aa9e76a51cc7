"""Runs the suite that every policy must pass."""

from gpuqueue_thermal import Thermal

from gpuqueue.testing.policies import PolicySuite


class TestThermal(PolicySuite):
    name = "thermal"
    toml = "[thermal]\nlimit = 80"

    def make_plugin(self) -> object:
        return Thermal()
