"""`gpuqueue top` in a real terminal, on a real queue with a real worker: what it shows, and what its keys do."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuqueue import GPUQueue, Worker, current_job
from gpuqueue.simulators.ollama import OllamaSimulator
from gpuqueue.testing.waiting import DEADLINE_S
from tests.cli.conftest import CONFIGURATION
from tests.cli.emulator import Terminal

TOP = [sys.executable, "-m", "gpuqueue", "top", "--interval", "0.2"]
Open = Callable[..., Terminal]


@pytest.fixture
def gq(folder: Path, ollama_server: OllamaSimulator, make_gate: Any) -> Iterator[GPUQueue]:
    """The queue that `top` looks at, with tasks that stay until their gate opens or somebody stops them."""
    (folder / "gpuqueue.toml").write_text(CONFIGURATION.format(url=ollama_server.url), encoding="utf-8")
    gates = [make_gate() for _ in range(2)]
    with GPUQueue.from_config("gpuqueue.toml", discover_plugins=False) as gq:

        @gq.task(name="shop.letters", queue="mail")
        def letters(note: str = "Ben") -> None:
            job = current_job()
            job.progress(0.625, note=note)
            job.log("to the architect\x1b[2J")
            job.emit("Dear architect,\n\tall is \x1b[31mwell.\n")
            while not gates[0].opened.wait(0.01):
                job.check()

        gq.counts()  # the file is there, also before a worker is
        yield gq
        for gate in gates:
            gate.open()


@pytest.fixture
def worker(gq: GPUQueue, start_worker: Callable[..., Worker]) -> Worker:
    """A worker that serves two of the queues."""
    return start_worker(gq, queues=["mail", "ai-realtime"])


@pytest.fixture
def top(folder: Path, gq: GPUQueue) -> Iterator[Open]:
    """Open `top` in a terminal of some size; what still runs is ended."""
    opened: list[Terminal] = []

    def open_top(columns: int = 80, lines: int = 24, *options: str, **rest: Any) -> Terminal:
        opened.append(Terminal([*TOP, *options], folder, columns=columns, lines=lines, **rest))
        opened[-1].wait("state")
        return opened[-1]

    yield open_top
    for terminal in opened:
        terminal.__exit__()


def running(gq: GPUQueue, until: Any, note: str = "Ben") -> Any:
    """Enqueue a job that stays, and wait until it says how far it is."""
    handle = gq.enqueue("shop.letters", {"note": note})
    until(lambda: handle.refresh().progress)
    return handle


def settled(terminal: Terminal, modes_of_the_screen_before: dict[str, bool]) -> None:
    """The terminal is as `top` found it."""
    assert terminal.modes_now == terminal.modes_before
    assert terminal.grid.modes == modes_of_the_screen_before


# --- what it shows ---


def test_each_queue_shows_its_state_and_why_and_until_when(gq: GPUQueue, worker: Worker, top: Open) -> None:
    gq.pause("ai-batch", reason="the card is needed", until="2d", by="ana")
    for _ in range(3):
        gq.ollama.generate("gemma4:e4b", prompt="x", queue="ai-batch")
    text = top(columns=100).wait("1 worker")
    assert re.search(r"ai-batch +3 +- +- +- paused until [A-Z]\w\w \d\d:\d\d by ana \(the card is needed", text)
    assert re.search(r"held .* held: at all times: ", text)
    assert re.search(r"mail +- +- +- +- idle", text)
    assert str(gq.database)[-20:] in text


def test_what_nobody_serves_says_so(gq: GPUQueue, top: Open) -> None:
    gq.enqueue("shop.letters")
    text = top().wait("0 workers")
    assert re.search(r"mail +1 +- +- +- no worker", text)


def test_a_running_job_shows_how_far_it_is_and_what_it_says(gq: GPUQueue, worker: Worker, top: Open, until: Any) -> None:
    handle = running(gq, until, note="Ben\nand \x1b[7mCarl")
    terminal = top()
    terminal.wait("62%")
    assert re.search(rf"{handle.id} mail +letters · Ben and .*███·· +62% +\d+s +~\d+s", terminal.line("62%"))
    terminal.press("\t")
    text = terminal.wait(f"job {handle.id} (mail): shop.letters, Ben and [7mCarl, attempt 1 of 1")
    assert worker.id in text


def test_a_model_that_writes_shows_its_rate_and_what_is_left(
    gq: GPUQueue, worker: Worker, top: Open, ollama_server: OllamaSimulator
) -> None:
    def ask(tokens: int) -> Any:
        return gq.ollama.generate("gemma4:e4b", prompt="x", queue="ai-realtime", options={"num_predict": tokens})

    ask(5).result(timeout_s=DEADLINE_S)
    handle = ask(200_000)
    terminal = top()
    terminal.wait_for(
        lambda text: re.search(rf"{handle.id} ai-realtime +generate gemma4:e4b +\d+\.\d +\d+s +~\d", text), "a rate"
    )
    assert "gemma4:e4b in use" in terminal.line("°C")
    assert "4.5 GB of 5 GB reserved" in terminal.line("gpu0 ")
    handle.cancel()


def test_a_lost_card_stands_out(gq: GPUQueue, worker: Worker, top: Open, simulated_card: Any, until: Any) -> None:
    simulated_card.lost = True
    until(lambda: (reading := gq.view().devices["gpu0"].reading) and reading.lost)
    text = top().wait("LOST")
    assert "gpu0 LOST: " in text


def test_the_next_job_of_a_queue_says_what_it_waits_for(gq: GPUQueue, worker: Worker, top: Open, until: Any) -> None:
    first = gq.ollama.generate("gemma4:e4b", prompt="x", queue="ai-realtime", options={"num_predict": 200_000})
    until(lambda: first.refresh().state == "running")
    second = gq.ollama.generate("gemma4:e4b", prompt="x", queue="ai-realtime")
    terminal = top()
    terminal.wait_for(lambda text: re.search(rf"{second.id} ai-realtime +generate gemma4:e4b +next: concurrency", text), "it")
    terminal.press("\tj")
    limit = f"ai-realtime is at its concurrency limit: 1 of 1 running (job {first.id})"
    told = f"job {second.id} (ai-realtime): ollama.generate gemma4:e4b is next; {limit}"
    terminal.wait_for(lambda text: told in " ".join(text.split()), "why it waits")
    first.cancel()


def test_a_change_is_seen_without_a_key_and_before_the_interval_is_over(gq: GPUQueue, top: Open) -> None:
    terminal = top(80, 24, "--interval", "3600")
    terminal.wait("no running or waiting jobs")
    gq.enqueue("shop.letters")
    terminal.wait("letters", "next: no worker")


# --- sizes ---


@pytest.mark.parametrize(("columns", "lines"), [(40, 20), (9, 3)])
def test_a_terminal_of_any_size_gets_lines_that_fit(
    gq: GPUQueue, worker: Worker, folder: Path, until: Any, columns: int, lines: int
) -> None:
    running(gq, until, note="日本 " * 30)
    with Terminal(TOP, folder, columns=columns, lines=lines) as terminal:
        terminal.wait_for(lambda text: terminal.grid.is_other_screen and text.strip(), "a picture")
        terminal.press("\tf")  # followed, it must fit too
        terminal.press("q?")
        terminal.press("qq")
        assert terminal.end() == 0
        assert terminal.text is not None  # nothing was written beyond its edges


def test_forty_columns_show_each_state_and_the_progress(gq: GPUQueue, worker: Worker, top: Open, until: Any) -> None:
    running(gq, until)
    gq.pause("ai-batch", by="ana")
    terminal = top(40, 20)
    assert re.search(r"ai-batch .*paused by ana", terminal.wait("62%"))
    assert re.search(r"letters · Ben +62% +~?\d+s", terminal.line("62%"))


def test_what_has_no_room_is_counted_and_can_be_reached(gq: GPUQueue, top: Open) -> None:
    for number in range(40):
        gq.queue(f"queue-{number:02d}")
    gq.store.engine.writer.run(
        lambda connection: connection.executemany(
            "INSERT INTO queues (name) VALUES (?)", [(f"queue-{number:02d}",) for number in range(40)]
        )
    )
    terminal = top()
    text = terminal.wait("more")
    rows = len(re.findall(r"^(?:▸| ) (?:queue-\d\d|ai-|held|mail)", text, flags=re.M))
    assert f"+ {44 - rows} more" in text
    terminal.press("\x1b[F")  # End
    assert "▸ queue-39" in terminal.wait("queue-39")
    assert "above" in terminal.line("more")


def test_another_size_is_drawn_at_once(gq: GPUQueue, folder: Path) -> None:
    with Terminal([*TOP[:-1], "3600"], folder) as terminal:
        terminal.wait("Tab list", "state")
        terminal.resize(80, 20)
        terminal.wait("Tab list", "state")
        terminal.resize(40, 20)
        terminal.wait("p pause r resume", "state", without="Tab list")
        terminal.resize(100, 30)
        terminal.wait("Tab list", "state")


def test_a_terminal_without_unicode_is_no_hindrance(gq: GPUQueue, worker: Worker, top: Open, until: Any) -> None:
    running(gq, until, note="日本 °")
    text = top(environ={"PYTHONIOENCODING": "ascii"}).wait("62%")
    assert text.isascii()
    assert re.search(r"^> ai-batch ", text, flags=re.M)
    assert "###.." in text


# --- keys ---


def test_p_pauses_at_once_and_says_how_to_undo_it(gq: GPUQueue, worker: Worker, top: Open) -> None:
    terminal = top()
    terminal.press("p")
    terminal.wait("ai-batch is paused; running jobs continue. Undo: r, or gpuqueue resume ai-batch")
    assert gq.view().queues["ai-batch"].paused is not None
    terminal.wait_for(lambda text: re.search(r"ai-batch .* paused by ", text), "the state")
    terminal.press("r")
    terminal.wait("ai-batch is resumed; it was paused by ")
    assert gq.view().queues["ai-batch"].paused is None
    terminal.press("r")
    terminal.wait("ai-batch was not paused")


def test_p_leaves_the_pause_of_another_as_it_is(gq: GPUQueue, worker: Worker, top: Open) -> None:
    gq.pause("ai-realtime", reason="it smokes", by="ana", until="1h")
    before = gq.view().queues["ai-realtime"].paused
    terminal = top()
    terminal.press("jp")
    terminal.wait("ai-realtime is already paused by ana (it smokes) until")
    assert gq.view().queues["ai-realtime"].paused == before


def test_p_in_the_list_of_jobs_pauses_the_queue_of_the_chosen_one(gq: GPUQueue, worker: Worker, top: Open, until: Any) -> None:
    running(gq, until)
    terminal = top()
    terminal.press("\tp")
    terminal.wait("mail is paused")
    assert gq.view().queues["mail"].paused


def test_c_cancels_only_after_y(gq: GPUQueue, worker: Worker, top: Open, until: Any) -> None:
    handle = running(gq, until)
    terminal = top()
    terminal.press("c")
    terminal.wait("only a job can be cancelled")
    terminal.press("\t")
    for answer in ("n", "\x1b", "q", "\r"):
        terminal.press("c")
        terminal.wait(f"Cancel job {handle.id} in mail (letters)? y/n")
        terminal.press(answer)
        terminal.wait(f"job {handle.id} was not cancelled")
    assert not handle.refresh().record.cancel_requested
    terminal.press("c")
    terminal.wait("? y/n")
    terminal.press("y")
    said = terminal.wait(f". Run it again: gpuqueue retry {handle.id}")
    assert f"job {handle.id} was asked to stop" in said or f"job {handle.id} is cancelled" in said  # if its worker was quicker
    until(lambda: handle.refresh().state == "cancelled")
    terminal.wait("no running or waiting jobs")


def test_a_job_that_ended_meanwhile_is_not_taken_for_another(gq: GPUQueue, worker: Worker, top: Open, until: Any) -> None:
    first, second = running(gq, until), running(gq, until)
    terminal = top()
    terminal.press("\tc")
    terminal.wait(f"Cancel job {first.id} ")
    first.cancel()
    until(lambda: first.refresh().state == "cancelled")
    terminal.press("y")
    terminal.wait(f"job {first.id} is already cancelled")
    assert not second.refresh().record.cancel_requested


def test_a_text_that_is_pasted_cancels_nothing(gq: GPUQueue, worker: Worker, top: Open, until: Any) -> None:
    handle = running(gq, until)
    terminal = top()
    terminal.press("\tcyyy")
    terminal.wait("? y/n")
    terminal.press("n")
    terminal.wait("was not cancelled")
    assert not handle.refresh().record.cancel_requested


def test_f_follows_what_a_job_writes_and_logs_and_q_goes_back(gq: GPUQueue, worker: Worker, top: Open, until: Any) -> None:
    handle = running(gq, until)
    terminal = top()
    terminal.press("\tf")
    text = terminal.wait("Dear architect,", "to the architect [2J", f"job {handle.id} mail: shop.letters")
    assert "    all is  [31mwell." in text  # the tab is spaces, and no sign moves the cursor
    assert "running, attempt 1 of 1" in text
    terminal.press("q")
    terminal.wait("Tab list")
    terminal.press("\r")
    terminal.wait("Dear architect,")
    terminal.press("\x1b")
    terminal.wait("Tab list")


def test_a_followed_answer_comes_as_it_is_written_until_the_job_ends(gq: GPUQueue, worker: Worker, top: Open, until: Any) -> None:
    handle = gq.ollama.generate("gemma4:e4b", prompt="x", queue="ai-realtime", options={"num_predict": 200_000})
    until(lambda: handle.refresh().record.output_tokens)
    terminal = top()
    terminal.press("jf")  # the queue's running job
    first = terminal.wait("running, attempt 1 of 3", " tokens", "holds")
    terminal.wait_for(lambda text: text != first, "more of it")
    terminal.press("c")
    terminal.wait(f"Cancel job {handle.id} in ai-realtime (generate gemma4:e4b)? y/n")
    terminal.press("y")
    until(lambda: handle.refresh().state == "cancelled")
    terminal.wait("cancelled")


def test_a_followed_job_that_waits_says_why(gq: GPUQueue, top: Open) -> None:
    gq.enqueue("shop.letters")
    terminal = top()
    terminal.press("\tf")
    terminal.wait("available, attempt 0 of 1", "no worker serves queue 'mail'")


def test_what_is_long_can_be_scrolled_back(gq: GPUQueue, start_worker: Callable[..., Worker], top: Open, until: Any) -> None:
    @gq.task(name="count", queue="mail")
    def count() -> None:
        current_job().emit("\n".join(f"line {number}" for number in range(500)))

    start_worker(gq, queues=["mail"])
    gq.enqueue("count").result(timeout_s=DEADLINE_S)
    gq.store.engine.writer.run(lambda connection: connection.execute("UPDATE jobs SET state = 'running', finished_at = NULL"))
    terminal = top()
    terminal.press("\tf")
    terminal.wait("line 499")
    terminal.press("kkk")
    terminal.wait("line 496", without="line 497")
    terminal.press("\x1b[H")  # Home
    terminal.wait("line 0\n", "line 1\n")
    terminal.press("\x1b[F")  # End
    terminal.wait("line 499")


def test_the_help_says_what_the_keys_do(gq: GPUQueue, top: Open) -> None:
    terminal = top()
    terminal.press("?")
    terminal.wait("pause the queue: no more of its jobs start", "press any key to go back")
    terminal.press("x")
    terminal.wait("Tab list")
    assert terminal.process.poll() is None


def test_ctrl_l_draws_over_what_another_program_wrote(gq: GPUQueue, top: Open) -> None:
    terminal = top()
    terminal.disturb("\x1b[3;5HA message of the kernel")
    terminal.wait("A message of the kernel")
    terminal.press("\x0c")
    terminal.wait("state", without="kernel")


# --- its end ---


def test_q_gives_the_terminal_back_as_it_was(gq: GPUQueue, top: Open) -> None:
    terminal = top()
    before = {"1049": False, "25": True, "7": True}
    assert terminal.grid.modes == {"1049": True, "25": False, "7": False}
    assert terminal.modes_now != terminal.modes_before
    terminal.press("q")
    assert terminal.end() == 0
    settled(terminal, before)
    assert terminal.grid.shown == ""


@pytest.mark.parametrize(("name", "status"), [("ctrl-c", 130), ("SIGTERM", 143)])
def test_a_signal_gives_the_terminal_back_too(gq: GPUQueue, top: Open, name: str, status: int) -> None:
    terminal = top()
    before = {"1049": False, "25": True, "7": True}
    if name == "ctrl-c":
        terminal.press("\x03")
    else:
        os.kill(terminal.process.pid, getattr(signal, name))
    assert terminal.end() == status
    settled(terminal, before)
    assert "Traceback" not in terminal.grid.shown


def test_a_failure_gives_the_terminal_back_and_says_what_happened(gq: GPUQueue, top: Open) -> None:
    terminal = top()
    for file in gq.database.parent.glob("jobs.db*"):
        file.unlink()
    assert terminal.end() == 2
    terminal.wait_for(lambda _: "was deleted or replaced" in terminal.grid.shown, "the error")
    settled(terminal, {"1049": False, "25": True, "7": True})
    assert "Traceback" not in terminal.grid.shown


def test_ctrl_z_gives_the_terminal_back_until_it_goes_on(gq: GPUQueue, folder: Path) -> None:
    script = f"set -m; {' '.join(TOP)}; echo stopped; read -r line; fg"
    with Terminal(["bash", "-c", script], folder) as terminal:
        terminal.wait("state", "mail")
        terminal.press("\x1a")
        terminal.wait_for(lambda _: "stopped" in terminal.grid.shown, "that it stopped")
        assert not terminal.grid.is_other_screen
        assert terminal.modes_now == terminal.modes_before
        terminal.press("\n")
        terminal.wait_for(lambda text: terminal.grid.is_other_screen and "mail" in text, "the screen")
        terminal.press("q")
        assert terminal.end() == 0
        assert terminal.modes_now == terminal.modes_before


def test_what_is_wrong_at_the_start_is_said_without_a_screen(folder: Path) -> None:
    with Terminal(TOP, folder) as terminal:
        assert terminal.end() == 2
        terminal.wait_for(lambda _: "no configuration found: no --config" in terminal.grid.shown, "the error")
        assert not terminal.grid.is_other_screen
