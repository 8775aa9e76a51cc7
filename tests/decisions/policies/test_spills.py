"""What becomes of a job whose model did not wholly fit the device."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpuqueue.contract.hookspecs import AttemptFailedDetails
from gpuqueue.decisions.policies.spills import WAIT_S, Spills
from gpuqueue.domain.errors import Spilled
from gpuqueue.domain.verdicts import Discard, Snooze
from gpuqueue.testing.views import BATCH, MODELS, NOW, OLLAMA, lease


def verdict(error, on_spill="wait", model="gemma4:e4b"):
    models = {name: replace(item, on_spill=on_spill) for name, item in MODELS.items()}
    return Spills().attempt_failed(AttemptFailedDetails(lease(model=model), BATCH, error, NOW, OLLAMA, models=models))


def test_the_job_waits_unspent_or_ends_as_its_model_says():
    spilled = Spilled("1 GB of it did not fit")
    assert verdict(spilled) == Snooze(WAIT_S)
    assert verdict(spilled, "fail") == Discard("1 GB of it did not fit", code="spilled")


@pytest.mark.parametrize("error", [RuntimeError("else"), ValueError("spilled")])
def test_other_failures_are_left_to_others(error):
    assert verdict(error) is None
