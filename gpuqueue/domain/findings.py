"""Defines the findings of a database check."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """One problem; `check` names the broken invariant, `mend` says how to repair it."""

    check: str
    detail: str
    mend: str
