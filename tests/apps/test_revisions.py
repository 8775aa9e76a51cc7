"""The sample applications, each served for real and used through a real browser as a person would use it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

import pytest

from gpuqueue.testing.waiting import DEADLINE_S
from tests.apps.browsers import BrowserMissing, find_browser
from tests.apps.stage import SAMPLES, Stage, staged

playwright = pytest.importorskip("playwright.sync_api", reason="the development dependencies bring Playwright")
expect = playwright.expect
# Keeps each text that the page shows under "written", and whether the revision was done by then.
RECORD_STEPS = """
addEventListener("DOMContentLoaded", () => {
  window.steps = []
  const page = document.querySelector(".revision")
  if (page) new MutationObserver(() => {
    window.steps.push([page.querySelector(".written").textContent, page.dataset.state])
  }).observe(page, { subtree: true, childList: true, characterData: true })
})
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """A real browser; where there is none and none is to be had, the test is skipped."""
    try:
        found = find_browser()
    except BrowserMissing as missing:
        pytest.skip(str(missing))
    expect.set_options(timeout=DEADLINE_S * 1000)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=found.program, args=list(found.arguments), env={**os.environ, **found.variables}
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=SAMPLES)
def shared_stage(request: pytest.FixtureRequest, browser: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(SAMPLES[request.param], tmp_path_factory.mktemp(request.param)) as stage:
        yield stage


@pytest.fixture
def stage(shared_stage: Stage) -> Iterator[Stage]:
    """Each application in turn, with an idle worker; what a test did to it is undone at its end."""
    yield shared_stage
    shared_stage.clear()


@pytest.fixture
def visit(browser, stage: Stage) -> Iterator[Callable[..., object]]:
    """`visit()` is a page in front of a new visitor, with a narrow screen; an error in its script fails the test."""
    contexts, errors = [], []

    def visit():
        contexts.append(browser.new_context(viewport={"width": 400, "height": 800}))
        contexts[-1].add_init_script(RECORD_STEPS)
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(stage.address)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert errors == []


def ask(page, text: str = "Teh cat sat on a mat.") -> None:
    page.get_by_label("Your text").fill(text)
    page.get_by_role("button", name="Revise").click()
    page.wait_for_url(re.compile(r"/revisions/[0-9]+"))


def shown(page, name: str):
    return page.locator(f".{name}")


def test_the_words_arrive_one_after_another_and_stay(stage, visit):
    stage.gq.pause("ai-realtime", reason="the page is not open yet")  # or the answer may be there before it listens
    page = visit()
    ask(page)
    expect(shown(page, "reasons")).to_contain_text("the page is not open yet")
    stage.gq.resume("ai-realtime")
    expect(shown(page, "state")).to_have_text("Done.")
    answer = stage.answer_to(stage.newest_revision())
    expect(shown(page, "written")).to_have_text(answer)
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    while_running = [text for text, state in page.evaluate("steps") if state == "running"]
    lengths = sorted({len(text) for text in while_running})
    assert len([length for length in lengths if 0 < length < len(answer)]) >= 3, lengths
    assert all(answer.startswith(text) for text in while_running)
    page.reload()
    expect(shown(page, "state")).to_have_text("Done.")
    expect(shown(page, "written")).to_have_text(answer)


def test_a_page_that_waits_says_its_place_and_why_and_starts_when_the_batch_job_makes_room(stage, visit):
    stage.gq.pause("ai-realtime", reason="the card is being cleaned")
    first, second = visit(), visit()
    ask(first, "the first text")
    ask(second, "the second text")
    expect(shown(first, "state")).to_contain_text("Number 1 in the queue")
    expect(shown(second, "state")).to_contain_text("Number 2 in the queue")
    expect(shown(second, "reasons")).to_contain_text("the card is being cleaned")
    stage.ollama.faults.add("stall")  # of the batch job, which would keep the card for ever
    batch = stage.batch()
    expect(shown(first, "reasons")).to_contain_text(f"job {batch.id} (ai-batch)")
    stage.gq.resume("ai-realtime")
    expect(shown(second, "state")).to_have_text("Done.")
    expect(shown(first, "state")).to_have_text("Done.")
    expect(shown(first, "written")).to_contain_text("the first text")
    expect(shown(second, "written")).to_contain_text("the second text")
    expect(shown(second, "reasons")).to_be_empty()
    assert batch.refresh().record.preemptions >= 1


def test_cancel_stops_a_revision_that_is_being_written(stage, visit):
    stage.ollama.faults.add("stall", after_tokens=8)
    page = visit()
    ask(page)
    expect(shown(page, "written")).to_contain_text("cat sat on a mat.")
    page.get_by_role("button", name="Cancel").click()
    expect(shown(page, "state")).to_have_text("Cancelled.")
    expect(shown(page, "written")).to_contain_text("cat sat on a mat.")
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    assert stage.newest_revision().state == "cancelled"


def test_cancel_takes_a_revision_that_waits_out_of_the_queue(stage, visit):
    stage.gq.pause("ai-realtime")
    first, second = visit(), visit()
    ask(first)
    ask(second)
    expect(shown(second, "state")).to_contain_text("Number 2 in the queue")
    first.get_by_role("button", name="Cancel").click()
    expect(shown(first, "state")).to_have_text("Cancelled.")
    expect(shown(second, "state")).to_contain_text("Number 1 in the queue")


def test_a_visitor_hears_at_once_that_the_service_is_away_and_asks_again_when_it_is_back(stage, visit):
    stage.ollama.go_away()
    page = visit()
    ask(page, "while it is away")
    expect(shown(page, "state")).to_have_text("AI service temporarily unavailable")
    expect(page.get_by_label("Your text")).to_have_value("while it is away")
    stage.clear()
    page.get_by_role("button", name="Revise").click()
    expect(shown(page, "written")).to_contain_text("while it is away")
    expect(shown(page, "state")).to_have_text("Done.")


def test_a_page_that_is_loaded_again_goes_on_where_it_is(stage, visit):
    page = visit()
    ask(page)
    expect(shown(page, "written")).to_contain_text("cat sat on a mat.")
    page.reload()
    expect(shown(page, "state")).to_have_text("Done.")
    assert shown(page, "written").text_content() == stage.answer_to(stage.newest_revision())

    stage.ollama.faults.add("stall", after_tokens=8)
    ask(page, "a second text of eight words or more")
    expect(shown(page, "written")).to_contain_text("a second text of eight words or")
    before = shown(page, "written").text_content()
    page.reload()
    expect(shown(page, "state")).to_have_text("Writing…")
    expect(shown(page, "written")).to_have_text(before)


def test_markup_in_a_text_and_in_its_revision_is_shown_and_not_run(stage, visit):
    page = visit()
    text = "<script>document.title='run'</script><img/src/onerror=\"document.title='run'\"> </textarea></p>"
    ask(page, text)
    expect(shown(page, "written")).to_contain_text(text)
    expect(shown(page, "state")).to_have_text("Done.")
    for _ in range(2):
        expect(page.get_by_label("Your text")).to_have_value(text)
        expect(shown(page, "written")).to_contain_text(text)
        expect(page).to_have_title("Revise a text")
        page.reload()


def test_nobody_sees_or_cancels_what_another_visitor_asked_for(stage, visit):
    stage.gq.pause("ai-realtime")
    owner, stranger = visit(), visit()
    ask(owner, "between us")
    ask(stranger, "my own")
    address = owner.url.rstrip("/")
    job = stage.gq.jobs(queue="ai-realtime", limit=2)[1]
    form = {}
    if (token := stranger.locator("[name=csrfmiddlewaretoken]")).count():
        form["csrfmiddlewaretoken"] = token.first.input_value()
    for answer in (
        stranger.goto(owner.url),
        stranger.request.get(f"{address}/events"),
        stranger.request.post(f"{address}/cancel", form=form),
    ):
        assert answer.status == 404
        assert "between us" not in answer.text()
    assert job.refresh().state == "available"
    owner.reload()
    expect(owner.get_by_label("Your text")).to_have_value("between us")


def test_an_empty_text_is_not_asked_for(stage, visit):
    page = visit()
    before = len(stage.gq.jobs())
    page.get_by_label("Your text").evaluate("field => field.required = false")
    page.get_by_label("Your text").fill("   ")
    page.get_by_role("button", name="Revise").click()
    expect(page.get_by_role("alert")).to_be_visible()
    assert len(stage.gq.jobs()) == before
