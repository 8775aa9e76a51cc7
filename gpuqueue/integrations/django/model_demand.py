"""Sizes the jobs of Django tasks with `model=` by what that model needs; sizes no other job."""

from __future__ import annotations

from dataclasses import replace

from gpuqueue.contract.hookspecs import JobDemandDetails, hookimpl
from gpuqueue.decisions.policies.vram import Memory
from gpuqueue.domain.answers import Demand
from gpuqueue.domain.models import GENERATE


class ModelDemand:
    """Sizes a job that names its model like gpuqueue's own requests to that model."""

    @hookimpl
    def job_demand(self, details: JobDemandDetails) -> Demand | None:
        job = details.job
        if not {"args", "kwargs", "model"} <= job.arguments.keys():
            return None
        request = replace(job, task=GENERATE.name, arguments={"model": job.arguments["model"]}, fallback=())
        return Memory().job_demand(replace(details, job=request))
