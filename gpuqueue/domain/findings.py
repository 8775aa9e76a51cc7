"""Owns what a check of a database finds wrong."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """One thing that is wrong; `check` names the promise that is broken, `mend` says what to do."""

    check: str
    detail: str
    mend: str
