"""How many jobs of each model are done before a waiting one starts, when loaded models go first for a while."""

from __future__ import annotations

from gpuqueue.decisions.playing import Line, done_before

LOADED = frozenset({"gemma"})


def played(lines, *, loaded=LOADED, affinity_s=120.0, every_s=()):
    return done_before("qwen", lines, loaded=loaded, affinity_s=affinity_s, every_s=dict(every_s))


def test_the_jobs_of_one_model_start_as_they_came():
    assert played({"qwen": Line(5, 3, 60.0)}) == {"qwen": 5}


def test_jobs_behind_it_with_the_loaded_model_go_first_for_as_long_as_affinity_lasts():
    assert played({"qwen": Line(0, 0, 60.0), "gemma": Line(1, 9, 60.0)}) == {"qwen": 0, "gemma": 3}
    assert played({"qwen": Line(0, 0, 60.0), "gemma": Line(1, 1, 60.0)}) == {"qwen": 0, "gemma": 2}, "there are no more"
    assert played({"qwen": Line(0, 0, 60.0), "gemma": Line(1, 9, 60.0)}, affinity_s=300.0) == {"qwen": 0, "gemma": 6}


def test_a_job_with_the_loaded_model_goes_before_older_ones():
    lines = {"qwen": Line(0, 0, 60.0), "gemma": Line(4, 0, 60.0)}
    assert played(lines, loaded=frozenset({"qwen"})) == {"qwen": 0, "gemma": 0}


def test_who_comes_first_brings_another_model_and_the_stopped_job_waits_again():
    lines = {"qwen": Line(4, 0, 100.0), "gemma": Line(4, 4, 100.0)}
    alone = played(lines)
    lines = {"qwen": Line(4, 0, 100.0), "gemma": Line(4, 4, 100.0)}
    disturbed = played(lines, every_s={"gemma": 40.0})
    assert disturbed["gemma"] > alone["gemma"]


def test_a_job_that_was_stopped_counts_for_what_it_has_done():
    lines = {"qwen": Line(0, 0, 100.0), "llama": Line(1, 0, 100.0)}
    assert played(lines, loaded=frozenset(), every_s={"qwen": 50.0}) == {"qwen": 0, "llama": 0.25}


def test_the_end_of_a_long_line_is_not_played_one_by_one():
    assert played({"qwen": Line(50_000, 0, 1.0), "gemma": Line(50_000, 0, 1.0)}) == {"qwen": 50_000, "gemma": 50_000}
