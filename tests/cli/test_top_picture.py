"""The picture of `top`: exactly the terminal's size, whatever there is to show, and the most important things first."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from rich.text import Text

from gpuqueue.cli import top_words
from gpuqueue.cli.top_figures import DeviceFigures, Edge, Figures, JobFigures, QueueFigures, ServiceFigures
from gpuqueue.cli.top_picture import ASCII, Choice, picture
from gpuqueue.cli.top_screen import warnings_to
from gpuqueue.domain.answers import Hold

NOW = datetime(2026, 7, 1, 2, 13, 7, tzinfo=UTC)
GB = 10**9
WINDOW = Hold("window", "paused 09:00-18:00 Asia/Bangkok", NOW + timedelta(hours=3))
CARD = DeviceFigures(
    name="gpu0",
    card="NVIDIA GeForce RTX 2060 SUPER",
    budget_bytes=5 * GB,
    total_bytes=8 * GB,
    used_bytes=6 * GB,
    reserved_bytes=5 * GB,
    resident_bytes=4 * GB,
    promised_bytes=GB,
    others_bytes=GB,
    models=("gemma4:e4b",),
    models_in_use=(),
    cleaning=(),
    temperature_c=62,
    utilisation_percent=97,
    read_at=NOW - timedelta(seconds=1),
    lost=None,
)


def queue(name: str, state: str = "idle", *holds: Hold, waiting: int = 0, running: int = 0, done: int = 0) -> QueueFigures:
    return QueueFigures(name, state, waiting, running, done, 0, 0, holds)  # type: ignore[arg-type]


def job(number: int, **rest: object) -> JobFigures:
    known = {"queue": "mail", "task": "shop.jobs.send", "model": "", "attempt": 1, "max_attempts": 3, "elapsed_s": 12.0}
    return JobFigures(id=number, **{**known, **rest})  # type: ignore[arg-type]


def figures(**rest: object) -> Figures:
    known = {
        "now": NOW,
        "database": "/srv/shop/var/gpuqueue.db",
        "workers": ("w1", "w2"),
        "queues": (queue("ai-batch", "held", WINDOW, waiting=12), queue("mail", "running", running=1)),
        "jobs": (job(7, progress=0.5, note="Ben", left_s=90.0),),
        "more_running": 0,
        "devices": (CARD,),
        "edges": (),
        "services": (),
    }
    return Figures(**{**known, **rest})  # type: ignore[arg-type]


def drawn(found: Figures, width: int = 80, height: int = 24, **rest: object) -> list[str]:
    """The lines without colours; they fit the size."""
    choice = Choice(**rest)  # type: ignore[arg-type]
    choice.settle(found)
    lines = picture(found, choice, None, width=width, height=height)
    assert len(lines) == height
    assert all(line.cell_len <= width for line in lines)
    return [line.plain.rstrip() for line in lines]


def line_with(lines: list[str], word: str) -> str:
    return next(line for line in lines if word in line)


MUCH = figures(
    database="/srv/" + "日本/" * 40 + "gpuqueue.db",
    queues=tuple(queue(f"queue-{number}-日本" + "x" * number, "held", WINDOW, waiting=10**number) for number in range(30)),
    jobs=tuple(
        job(10**number, note="\x1b[31m" + "日本\n" * 50, model="m" * 50, progress=0.3, tokens_per_s=1e6, left_s=1e9)
        for number in range(15)
    ),
    more_running=1234,
    devices=tuple(replace(CARD, name=f"gpu{number}", lost="x" * 200 if number % 2 else None) for number in range(8)),
    edges=(Edge("ai-batch" * 9, NOW + timedelta(hours=9), "pause begins"),) * 3,
    services=tuple(ServiceFigures(f"mirror{number}" * 9, "w", 1.5, None, NOW) for number in range(9)),
)
NOTHING = figures(workers=(), queues=(), jobs=(), devices=())


@pytest.mark.parametrize("found", [figures(), MUCH, NOTHING], ids=["some", "much", "nothing"])
@pytest.mark.parametrize("focus", ["queues", "jobs"])
def test_every_size_gets_a_picture_that_fits(found: Figures, focus: str) -> None:
    for width in (1, 2, 5, 9, 20, 28, 36, 40, 59, 60, 80, 99, 100, 140, 300):
        for height in (1, 2, 3, 5, 8, 11, 12, 16, 20, 24, 30, 60, 100):
            for line in drawn(found, width, height, focus=focus):
                assert line.isprintable()


def test_the_usual_terminal_shows_everything() -> None:
    lines = drawn(
        figures(
            edges=(Edge("ai-batch", WINDOW.until or NOW, "pause ends"),),
            services=(ServiceFigures("mirror", "w1", 1.5, None, NOW),),
        )
    )
    text = "\n".join(lines)
    assert re.match(r"gpuqueue top  /srv/shop/var/gpuqueue\.db +2 workers  \d\d:\d\d:\d\d", text)
    assert re.search(r"▸ ai-batch +12 +- +- +- held until \d\d:\d\d: 09:00-18:00 Asia/Bangkok", text)
    assert re.search(r" 7 mail +send · Ben +██··· +50% +12s +~90s", text)
    assert "gpu0 " in text and "5 GB of 5 GB reserved · others 1 GB" in text
    assert "62 °C · 97 % busy · gemma4:e4b loaded · read 1 s ago" in text
    assert re.search(r"ai-batch: paused until .* \(3h from now\)", text)
    assert "mirror: 1.5 s behind, on w1" in text
    assert lines[-1].startswith("Tab list")


def test_the_chosen_row_is_told_in_full_at_the_bottom() -> None:
    lines = drawn(figures())
    assert lines[-3].startswith("ai-batch: held; paused 09:00-18:00 Asia/Bangkok until ")
    assert lines[-3].endswith("(3h from now)")
    assert drawn(figures(), focus="jobs")[-3] == "job 7 (mail): shop.jobs.send, Ben, attempt 1 of 3, done in about 1m 30s"


def test_a_long_message_takes_the_place_of_what_is_chosen() -> None:
    found = figures()
    choice = Choice()
    choice.settle(found)
    message = Text("ai-batch is paused; running jobs continue. Undo: r, or gpuqueue resume ai-batch", "green")
    for _ in range(2):  # the message is not cut by being drawn
        lines = [line.plain for line in picture(found, choice, message, width=40, height=20)]
    assert lines[-3:] == ["ai-batch is paused; running jobs", "continue. Undo: r, or gpuqueue resume", "ai-batch"]
    assert lines[-4].startswith("ai-batch: held")
    assert len(lines) == 20
    lines = [line.plain for line in picture(found, choice, message, width=80, height=24)]
    assert lines[-1] == message.plain
    (last,) = (line.plain for line in picture(found, choice, message, width=20, height=8)[-1:])
    assert last == "ai-batch is paused;…"


def test_without_a_worker_the_head_says_so_in_red() -> None:
    found = figures(workers=())
    choice = Choice()
    choice.settle(found)
    head = picture(found, choice, None, width=80, height=24)[0]
    assert "0 workers" in head.plain
    assert any("red" in str(span.style) for span in head.spans)


@pytest.mark.parametrize(("chosen", "shown", "rest"), [("queue-0-日本", 0, ""), ("queue-29-日本" + "x" * 29, 29, "above")])
def test_the_chosen_row_is_always_among_those_shown(chosen: str, shown: int, rest: str) -> None:
    lines = drawn(MUCH, queue=chosen)
    assert line_with(lines, "▸").startswith(f"▸ queue-{shown}-")
    counted = line_with(lines, "more")
    assert rest in counted
    rows = sum(bool(re.match(r"(▸| ) queue-", line)) for line in lines)
    assert f"+ {30 - rows} more" in counted


def test_running_jobs_that_were_not_read_are_counted_too() -> None:
    assert "  + 5 more" in drawn(figures(more_running=5))


def test_what_is_chosen_stays_when_the_list_changes() -> None:
    choice = Choice(queue="mail", job=8)
    choice.settle(figures(queues=(queue("new"), queue("ai-batch"), queue("mail")), jobs=(job(7), job(8))))
    assert (choice.queue, choice.job) == ("mail", 8)
    choice.settle(figures(queues=(queue("new"),), jobs=(job(7),)))
    assert (choice.queue, choice.job) == ("new", 7)
    choice.settle(NOTHING)
    assert (choice.queue, choice.job) == ("", 0)


def test_a_bar_has_models_promises_the_budget_and_others() -> None:
    bar = line_with(drawn(figures(), width=86), "reserved").split()[1]
    assert re.fullmatch("█{20}▒{5}┃·{9}▓{5}", bar), bar
    found = figures(
        devices=(replace(CARD, total_bytes=None, others_bytes=None, used_bytes=None, resident_bytes=0, promised_bytes=0),)
    )
    assert "▓" not in "".join(drawn(found))
    assert "memory unknown" in "".join(drawn(found))


def test_a_terminal_without_such_signs_gets_others() -> None:
    found = figures()
    choice = Choice()
    choice.settle(found)
    text = "\n".join(line.plain for line in picture(found, choice, None, width=80, height=24, signs=ASCII))
    assert not set("▸█▒▓┃") & set(text)


def test_old_readings_and_lost_cards_stand_out() -> None:
    found = figures(devices=(replace(CARD, read_at=NOW - timedelta(minutes=3)), replace(CARD, name="gpu1", lost="gone")))
    text = "\n".join(drawn(found))
    assert "read 3m ago" in text
    assert "gpu1 LOST: gone" in text


@pytest.mark.parametrize(
    ("loaded", "used", "words"),
    [
        ((), (), "no model loaded"),
        (("a:latest", "b"), ("a",), "a in use, b loaded"),
        ((), ("a", "b"), "a in use, b in use"),
        (("a", "b"), (), "a, b loaded"),
    ],
)
def test_a_card_names_the_models_in_use_and_those_that_are_loaded_besides(
    loaded: tuple[str, ...], used: tuple[str, ...], words: str
) -> None:
    assert top_words.models_words(replace(CARD, models=loaded, models_in_use=used)) == words


def test_a_service_that_nobody_runs_or_that_failed_says_so() -> None:
    found = figures(
        services=(
            ServiceFigures("a", None, 1.5, None, NOW),
            ServiceFigures("b", "w", None, "no Redis", NOW),
            ServiceFigures("c", "w", None, None, None),
            ServiceFigures("d", "w", 2.0, None, NOW - timedelta(minutes=2)),
        )
    )
    lines = drawn(found)
    assert [line for line in lines if re.match("[a-d]: ", line)] == [
        "a: no worker runs it",
        "b: no Redis",
        "c: running, on w",
        "d: 2 s behind (reported 2m ago), on w",
    ]


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "-"),
        (7, "7"),
        (99_999, "99999"),
        (100_000, "100k"),
        (1_234_567, "1.2M"),
        (99_949_999, "99.9M"),
        (99_960_000, "99M"),
        (5 * 10**9, "5.0G"),
    ],
)
def test_a_count_takes_five_columns_at_most(count: int, words: str) -> None:
    assert top_words.number(count) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0s"), (99.4, "99s"), (187, "3m07"), (5999, "99m59"), (6000, "1h40"), (18_000, "5h00"), (10**6, "11d")],
)
def test_a_time_takes_five_columns_at_most(seconds: float, words: str) -> None:
    assert top_words.length(seconds) == words


def test_a_path_is_cut_at_its_beginning() -> None:
    assert top_words.ending("/srv/shop/jobs.db", 10) == "…p/jobs.db"
    assert top_words.ending("/srv/shop/jobs.db", 17) == "/srv/shop/jobs.db"
    assert top_words.ending("/日本/日本/x", 5) == "…本/x"
    assert top_words.ending("/srv", 0) == ""


def test_a_warning_of_the_library_comes_to_the_screen_and_not_over_it(capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    logger = logging.getLogger("gpuqueue")
    before = list(logger.handlers)
    with warnings_to(said.append):
        logging.getLogger("gpuqueue.plugins").warning("queue %s keeps its limits", "mail")
    assert said == ["queue mail keeps its limits"]
    assert logger.handlers == before
    assert capsys.readouterr().err == ""
