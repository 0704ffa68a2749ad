"""A run that goes on, as a browser shows it: it asks for news, and nothing is sent where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from engine.bench.browser import App
from engine.run import ActiveRun
from tests.browser.test_main_job import SLOW, expect_state, no_traceback, points, wait_for
from tests.written_run import log_steps, written_run

pytestmark = pytest.mark.timeout(180)
BEFORE = 600  # steps


@pytest.fixture
def run(app: App, monkeypatch: pytest.MonkeyPatch) -> Iterator[ActiveRun]:
    monkeypatch.setenv("LAB_RUNS", str(app.runs))
    run = written_run(BEFORE)
    yield run
    run.close()


def wait_for_points(page: Page, count: int) -> None:
    wait_for(lambda: points(page) == count, say=f"The chart does not get its {count} points.")


def test_news_without_scripts_a_reload_and_the_end(page: Page, run: ActiveRun) -> None:
    frames: list[int] = []
    answers: list[int] = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: frames.append(len(frame))))
    page.on("response", lambda answer: answers.append(answer.status) if "/lab/live/" in answer.url else None)
    page.goto("/pretraining")
    wait_for_points(page, BEFORE)
    expect(page.get_by_text(f"Step {BEFORE} of 200,000")).to_be_visible()
    page.wait_for_timeout(1000)

    # Without news the answers are empty and no script runs.
    frames.clear(), answers.clear()
    wait_for(lambda: page.wait_for_timeout(100) or len(answers) >= 3)
    assert set(answers) == {204} and not frames

    # News comes without a script, too; what is no number is seen.
    log_steps(run, BEFORE + 1, BEFORE + 99)
    log_steps(run, BEFORE + 100, BEFORE + 100, train_loss=float("nan"))
    wait_for_points(page, BEFORE + 100)
    expect(page.get_by_text(f"Step {BEFORE + 100} of 200,000")).to_be_visible()
    expect(page.locator(".lab-plot").first.get_by_text("not a number")).to_be_visible()
    assert 200 in answers and not frames

    # A reload shows the same; another tab follows beside it.
    page.reload()
    wait_for_points(page, BEFORE + 100)
    second = page.context.new_page()
    second.goto("/pretraining")
    wait_for_points(second, BEFORE + 100)
    log_steps(run, BEFORE + 101, BEFORE + 120)
    wait_for_points(second, BEFORE + 120)
    second.close()

    # The end: the last row, the new state, and no more questions.
    log_steps(run, BEFORE + 121, BEFORE + 121)
    run.event("completed", "Completed.")
    run.set_state("completed")
    run.finish()
    run.close()
    expect_state(page, "completed")
    wait_for_points(page, BEFORE + 121)
    answers.clear()
    page.wait_for_timeout(2500)
    assert not answers

    # Somewhere else it goes on: an open page sees that.
    again = ActiveRun(run.id, run.plan, dict(run.reader.info)).open()
    again.set_state("running")
    expect_state(page, "running")
    again.close()
    no_traceback(page)


def test_samples_are_stepped_through_and_a_finding_leads_to_its_setting(page: Page, run: ActiveRun) -> None:
    for step in (200, 400, 600):
        run.log_sample(
            {"step": step, "prompt": "Once", "text": f" upon <i>{step}</i>", "temperature": 0.8, "top_k": 50}
        )
    page.goto("/pretraining")
    shown = page.locator(".lab-texts article")
    expect(shown).to_have_count(3, timeout=SLOW)
    page.get_by_text("Step through", exact=True).click()
    expect(shown).to_have_count(1, timeout=SLOW)
    page.get_by_role("slider").last.press("End")
    expect(shown).to_contain_text("Once upon <i>600</i>")
    page.get_by_role("slider").last.press("ArrowLeft")
    expect(shown).to_contain_text("Once upon <i>400</i>")

    page.get_by_role("button", name="Gradient clipping").click()
    field = page.get_by_label("Gradient clipping", exact=True)
    expect(field).to_be_focused(timeout=SLOW)
    expect(field).to_be_in_viewport()
    no_traceback(page)
