"""Says which queues and tasks the torture run has, and how each job of a task ends."""

from __future__ import annotations

CONFIG = """
database = "jobs.db"
[gpu]
budget = "5GB"
slots = 2
max_models = 2
[queues.work]
[queues.narrow]
concurrency = 2
[queues.isolated]
concurrency = 2
[queues.card]
gpu = true
backend = "none"
[queues.odd]
[worker]
lease = "{lease_s}s"
grace = "2s"
"""
STEPS = "TORTURE_STEPS"  # a seed: the process's clock steps
LONGEST_STEP_S = 20.0
LIMITS = {"narrow": 2, "isolated": 2, "card": 2}  # {queue: jobs at once}, as configured above
MAX_CRASHES = 3  # of a process that runs one suspect
MOST_SUSPECTS = 2  # at once

SOUND = ("plain", "asynchronous", "narrow", "isolated", "on_card", "again", "snoozes")
ISOLATED = ("isolated", "half_a_reason", "poison_isolated")  # in a process that runs one after another
POISON = ("poison", "poison_on_the_loop", "poison_on_card")  # each kills at most one worker
EXPECTED: dict[str, tuple[str, str | None]] = {  # {task: (the state it ends in, the error's code)}
    **dict.fromkeys(SOUND, ("completed", None)),
    **dict.fromkeys(POISON, ("discarded", "crashed")),
    "wordless": ("discarded", "failed"),
    "wordless_on_the_loop": ("discarded", "failed"),
    "half_a_character": ("completed", None),
    "half_a_reason": ("discarded", "\\udc81"),
    "talks_much": ("completed", None),
    "no_json": ("discarded", "result"),
    "leaves_the_loop": ("discarded", "failed"),
    "stops_the_loop": ("discarded", "failed"),
    "poison_isolated": ("discarded", "process_died"),
}
