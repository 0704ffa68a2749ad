"""What a live page is answered: nothing, what changed, or that it has to be drawn anew; and nobody else is answered."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine.run import ActiveRun
from tests.app.test_live_speed import Page
from tests.written_run import log_steps, written_run


@pytest.fixture
def run() -> Iterator[ActiveRun]:
    run = written_run(1000)
    yield run
    run.close()


def test_numbers_at_once_and_charts_when_they_would_look_different(run: ActiveRun) -> None:
    page = Page(run)
    assert page.ask()[0].status_code == 204
    log_steps(run, 1001, 1001)
    _, news = page.ask(age_s=3.0)
    assert news["progress"]["text"].startswith("Step 1,001 of") and "charts" not in news
    assert page.ask(age_s=3.0)[0].status_code == 204
    assert [chart["title"] for chart in page.ask(age_s=11.0)[1]["charts"]][:2] == ["Loss", "Learning rate"]
    log_steps(run, 1002, 1010)
    assert "charts" not in page.ask(age_s=1.0)[1]
    assert "charts" in page.ask(age_s=3.0)[1]
    assert page.ask()[0].status_code == 204


@pytest.mark.parametrize("change", ["state", "log", "sample"])
def test_a_page_whose_surroundings_changed_is_drawn_anew(run: ActiveRun, change: str) -> None:
    page = Page(run)
    if change == "state":
        run.set_state("paused")
    elif change == "log":
        run.event("saved", "Saved.")
    else:
        run.log_sample({"step": 1000, "prompt": "", "text": "a"})
    assert page.ask()[0].status_code == 410


@pytest.mark.parametrize("token", ["", "x", "\u00e9"])
def test_who_does_not_know_the_token_is_refused(run: ActiveRun, token: str) -> None:
    assert Page(run).ask(token=token)[0].status_code == 403


@pytest.mark.parametrize(
    "odd", [{"x": "name"}, {"smoothing": "nan"}, {"smoothing": "1"}, {"step": "x"}, {"outline": ""}, {"run": "../a"}]
)
def test_an_odd_question_is_answered_without_a_traceback(run: ActiveRun, odd: dict[str, str]) -> None:
    page = Page(run)
    page.run_id = odd.pop("run", page.run_id)
    assert page.ask(**odd)[0].status_code == 410
