"""Owns the jobs that clients ask for, and the ways in which they store them; stores nothing."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.properties.scene import GEMMA, NOMIC, ON_DEVICES, PLAIN, UNKNOWN

OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "priority": st.sampled_from([-1, 0, 3]),
        "max_attempts": st.sampled_from([1, 2, 4]),
        "timeout": st.sampled_from(["50s", 2]),
        # Many jobs that never start would leave little to happen.
        "expires_in": st.sampled_from([*[None] * 8, "20s", "5m", 0]),
        "tags": st.sampled_from([["a"], ["a", "b"]]),
        "delay": st.sampled_from([*[None] * 5, "10s", 90, "0s"]),
    },
)
PLAIN_JOBS = st.tuples(
    st.sampled_from(["work", "work", "awork", "picky"]),
    st.fixed_dictionaries({"n": st.integers(0, 3)}),
    st.sampled_from([None, *PLAIN]),
    OPTIONS,
)
COMPUTING_JOBS = st.tuples(
    st.sampled_from(["compute", "compute", "firm"]),
    st.fixed_dictionaries({"gb": st.sampled_from([0.5, 1, 1.003, 1.2, 2, 3, 5, 9]), "model": st.sampled_from(["", "m", "n"])}),
    st.sampled_from([None, *ON_DEVICES]),
    OPTIONS,
)
REQUESTS = st.tuples(
    st.just("ollama.generate"),
    st.fixed_dictionaries({"model": st.sampled_from([GEMMA, NOMIC, UNKNOWN]), "prompt": st.just("x")}),
    st.sampled_from(["ai", "batch"]),
    OPTIONS,
)
JOBS = PLAIN_JOBS | COMPUTING_JOBS | REQUESTS
WAYS = ["using", "by name", "many", "connection", "session", "many in a session"]
