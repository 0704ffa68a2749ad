"""Every page, with no run, with damaged ones and with finished ones: never a traceback, always a sentence."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from app.widgets.formats import plain
from app.widgets.machine import machine
from engine import session
from engine.checkpoint import FILES, FORMAT
from engine.config import SETTINGS, TrainConfig
from engine.corpora import jobs
from engine.environment import GIB
from engine.errors import RunBusyError
from engine.memory import estimate_memory

Open = Callable[..., AppTest]
Make = Callable[..., Path]

PAGES = ("home", "pretraining", "exercises", "corpora", "runs")
DONE = "20261122-153012-nano-verdict-0001"
OTHER = "20261122-153013-nano-verdict-0002"


def component(page: AppTest, name: str) -> Any:
    """What the one component of this name was given."""
    [data] = [json.loads(c.proto.json) for c in page.get("bidi_component") if name in c.proto.component_name]
    return data


def texts(page: AppTest) -> str:
    """All text of a page."""
    kinds = (page.title, page.subheader, page.markdown, page.caption, page.text, page.code, page.error, page.warning)
    shown = [str(element.value) for kind in kinds for element in kind]
    return "\n".join([*shown, *(f"{m.label}: {m.value}" for m in page.metric)])


def numbers(page: AppTest) -> dict[str, str]:
    """What the live view shows of a run in numbers."""
    return {number["label"]: number["value"] for number in component(page, "lab_numbers")["numbers"]}


def expect_sound(page: AppTest) -> None:
    assert not page.exception
    assert "Something went wrong" not in texts(page) and "Traceback" not in texts(page)


@pytest.mark.parametrize("name", PAGES)
def test_without_runs_every_page_welcomes(open_page: Open, name: str) -> None:
    page = open_page(name)
    expect_sound(page)
    assert not page.error
    assert len(page.title) == 1


def test_home_offers_a_first_run_and_knows_this_machine(open_page: Open) -> None:
    page = open_page("home")
    assert "Your first run" in texts(page)
    assert [button.label for button in page.button] == ["Smoke run"]
    assert {"Device", "Memory", "Threads", "Precision"} <= {metric.label for metric in page.metric}


def test_home_lists_recent_runs(open_page: Open, make_run: Make) -> None:
    make_run(DONE)
    (make_run(OTHER) / "run.json").write_text("{")
    shown = texts(open_page("home"))
    assert "training loss 5.700" in shown and "damaged" in shown and "interrupted" not in shown


def test_the_form_says_what_the_run_will_be(open_page: Open) -> None:
    page = open_page("pretraining")
    shown = {metric.label: metric.value for metric in page.metric}
    assert shown["Steps"] == "14" and shown["Tokens"] == "14,336" and shown["Parameters"] == "9.94 M"
    assert not page.button(key="start").disabled
    page.number_input(key="setting-batch_size").set_value(2).run()
    shown = {metric.label: metric.value for metric in page.metric}
    assert shown["Steps"] == "27" and shown["Effective batch"] == "512 tokens"
    assert [metric.delta for metric in page.metric if metric.label == "Effective batch"] == ["2 sequences"]


def test_the_form_has_a_widget_for_every_setting(open_page: Open) -> None:
    page = open_page("pretraining")
    page.session_state["more-settings"] = True
    page.run()
    kinds = (page.selectbox, page.number_input, page.text_input, page.toggle)
    found = {widget.key: widget for kind in kinds for widget in kind if str(widget.key).startswith("setting-")}
    assert set(found) == {f"setting-{name}" for name in SETTINGS}
    for name, setting in SETTINGS.items():
        assert found[f"setting-{name}"].help == setting.metadata["help"]


def test_problems_stand_beside_their_fields_all_together(open_page: Open) -> None:
    page = open_page("pretraining")
    page.session_state["more-settings"] = True
    page.run()
    page.number_input(key="setting-context_length").set_value(3000)  # within the setting's bounds, not within nano's
    page.selectbox(key="setting-precision").set_value("fp16").run()
    assert len([element for element in page.markdown if ":red[" in element.value]) == 2
    page.number_input(key="setting-context_length").set_value(2048)
    page.number_input(key="setting-batch_size").set_value(4000).run()
    beside = [element.value for element in page.markdown if ":red[" in element.value]
    assert len(beside) == 2  # the precision, and the batch that the text cannot fill
    assert any("fp16" in text for text in beside) and any("Lower Batch size" in text for text in beside)
    assert "Precision" in page.error[0].value and "Batch size" in page.error[0].value
    assert page.button(key="start").disabled
    expect_sound(page)


def test_a_number_out_of_its_bounds_is_told_beside_it_and_not_replaced(open_page: Open) -> None:
    page = open_page("pretraining")
    page.number_input(key="setting-epochs").set_value(-3.0)
    page.number_input(key="setting-batch_size").set_value(0)
    page.number_input(key="setting-context_length").set_value(9000)
    page.number_input(key="setting-learning_rate").set_value(1.5)
    page.number_input(key="setting-seed").set_value(-1).run()
    beside = [element.value for element in page.markdown if ":red[" in element.value]
    assert len(beside) == 5 and all("out of range; it must be from" in text for text in beside)
    assert page.number_input(key="setting-batch_size").value == 0 and page.button(key="start").disabled
    expect_sound(page)


def test_a_precision_that_this_machine_lacks_is_told_beside_it(open_page: Open) -> None:
    page = open_page("pretraining")
    page.session_state["more-settings"] = True
    page.run()
    page.selectbox(key="setting-precision").set_value("fp8").run()
    (beside,) = [element.value for element in page.markdown if ":red[" in element.value]
    assert "fp8 trains on a GPU only" in beside and page.button(key="start").disabled
    expect_sound(page)


def test_a_finished_run_is_shown_in_full(open_page: Open, make_run: Make) -> None:
    make_run(DONE)
    page = open_page("pretraining", run=DONE)
    expect_sound(page)
    shown = numbers(page)
    assert shown["Training loss"] == "5.700" and shown["Perplexity"] == "299"
    assert shown["Validation loss"] == "6.500"
    assert shown["Training time"] == "6.0 s"
    assert component(page, "lab_numbers")["progress"] == {"share": 1.0, "text": "Step 30 of 30"}
    assert component(page, "lab_texts") == [
        {"heading": "Step 30 · temperature 0.8", "prompt": "It was", "text": " <b>*not*</b> Markdown"}
    ]
    assert not [button for button in page.button if button.label in ("Pause", "Resume", "Stop and save")]


def add_checkpoint(folder: Path, step: int) -> None:
    """A checkpoint as far as a list can tell: a manifest, and files of the sizes that it names."""
    checkpoint = folder / "checkpoints" / f"step-{step:06d}"
    checkpoint.mkdir(parents=True)
    for name in FILES:
        (checkpoint / name).write_bytes(b"12345")
    manifest = {
        "format": FORMAT,
        "step": step,
        "saved": "2026-11-22T15:31:00Z",
        "progress": {"step": step, "train_loss": 5.8},
    }
    manifest["files"] = {name: {"bytes": 5, "sha256": "0"} for name in FILES}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("state", ["stopped", "failed", "running"])  # running, but nobody holds the lock
@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_a_run_that_was_cut_short_says_how_to_go_on(
    open_page: Open, make_run: Make, state: str, has_checkpoint: bool
) -> None:
    error = "Memory ran out on cpu." if state == "failed" else ""
    folder = make_run(DONE, state=state, error=error, total_steps=100)
    if has_checkpoint:
        add_checkpoint(folder, 20)
    page = open_page("pretraining", run=DONE)
    expect_sound(page)
    assert [button.label for button in page.button if button.label == "Resume"] == ["Resume"] * has_checkpoint
    if state == "failed":
        assert plain(error) in page.error[0].value
    if state == "running":
        assert "interrupted" in texts(page)
    if state != "stopped":
        assert ("from step 20" if has_checkpoint else "no checkpoint") in texts(page)


def press(page: AppTest, label: str) -> AppTest:
    (button,) = [button for button in page.button if button.label == label]
    return button.click().run()


def test_a_resume_that_fails_is_a_sentence(open_page: Open, make_run: Make) -> None:
    add_checkpoint(make_run(DONE, state="stopped", total_steps=100), 20)
    page = press(open_page("pretraining", run=DONE), "Resume")
    expect_sound(page)
    assert len(page.error) == 1  # this checkpoint holds no tensors, and the corpus is not the one the run knew


def test_a_second_start_is_refused_with_a_link(open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_args: object, **_more: object) -> str:
        raise RunBusyError("Run a is training now. Stop it first.", "a")

    monkeypatch.setattr(session, "start", busy)
    for name, button in (("pretraining", "Start"), ("home", "Smoke run")):
        page = press(open_page(name), button)
        assert plain("Stop it first.") in page.error[0].value
        links = [link.proto for link in page.get("page_link")]
        assert any("run that is training" in link.label and "run=a" in link.query_string for link in links)


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("damage", ["no json", "not an object", "empty object", "odd values", "torn metrics"])
def test_a_damaged_run_harms_no_page(open_page: Open, make_run: Make, name: str, damage: str) -> None:
    make_run(OTHER)
    folder = make_run(DONE)
    contents = {
        "no json": "{",
        "not an object": "[1, 2]",
        "empty object": "{}",
        "odd values": '{"state": 7, "config": 3, "progress": [1], "total_steps": "x", "created": 5, "environment": 9}',
    }
    if damage in contents:
        (folder / "run.json").write_text(contents[damage])
    else:
        (folder / "metrics.parquet").write_bytes(b"PAR1 and no more")
    page = open_page(name, **({"run": DONE} if name == "pretraining" else {}))
    expect_sound(page)
    if name == "pretraining" and damage == "torn metrics":
        assert "damaged or foreign" in texts(page)


@pytest.mark.parametrize("run_id", ["../../etc", "20990101-000000-nano-verdict-ffff", "%2e%2e", "<script>"])
def test_an_unknown_run_is_a_sentence(open_page: Open, run_id: str) -> None:
    page = open_page("pretraining", run=run_id)
    expect_sound(page)
    assert len(page.error) == 1


def wait_for_work(page: AppTest, corpus: str) -> AppTest:
    """Draw the page until the work on a corpus is over."""
    for _ in range(100):
        if not jobs.is_busy(corpus):
            return page.run()
        time.sleep(0.05)
    raise AssertionError(f"The work on {corpus} does not end.")


@pytest.mark.parametrize(("name", "content"), [("latin", "Dvořák".encode("iso8859-2")), ("empty", b" \n")])
def test_a_corpus_that_cannot_be_read_is_a_sentence(name: str, content: bytes, open_page: Open, folders: Path) -> None:
    (folders / "corpora" / f"{name}.txt").write_bytes(content)
    page = wait_for_work(open_page("corpora", corpus=name), name)
    expect_sound(page)
    [error] = page.error
    assert f"{name}.txt is " in error.value.replace("\\", "")
    assert list(page.dataframe[0].value.name)[-1] == name  # and the list is whole


def test_a_text_with_an_impossible_name_is_told(open_page: Open, folders: Path) -> None:
    (folders / "corpora" / "my *own* text.txt").write_text("Dear reader.")
    page = open_page("corpora")
    expect_sound(page)
    (told,) = [c.value for c in page.caption if "is not listed" in c.value]
    assert plain("my *own* text.txt") in told and plain("my__own__text.txt") in told


def test_a_corpus_is_opened_with_its_counts(open_page: Open, folders: Path) -> None:
    (folders / "corpora" / "mine.md").write_text("# Not a heading\n" * 400)
    page = wait_for_work(open_page("corpora", corpus="mine"), "mine")
    expect_sound(page)
    shown = {metric.label: metric.value for metric in page.metric}
    assert (shown["Characters"], shown["Documents"], shown["Distinct tokens"]) == ("6,400", "1", "5")
    assert "Not a heading" not in "".join(heading.value for heading in page.header)
    table = page.dataframe[0].value.set_index("name")
    assert table.state["mine"] == "tokenized" and table.state["verdict"] == "built in"
    assert "mine" in page.query_params.get("corpus", [])


def test_a_corpus_may_be_called_corpus_and_be_gone(open_page: Open, folders: Path) -> None:
    path = folders / "corpora" / "corpus.txt"
    path.write_text("A text.\n" * 400)
    page = wait_for_work(open_page("corpora", corpus="corpus"), "corpus")
    form = open_page("pretraining")
    form.selectbox(key="setting-corpus").set_value("corpus").run()
    page.button(key="delete-corpus").click().run()
    expect_sound(page)
    assert page.button(key="confirm-deletion").label == "Delete"
    path.unlink()
    form.run()
    expect_sound(form)
    chosen = form.selectbox(key="setting-corpus")
    assert chosen.value == "corpus" and chosen.options[-1] == "corpus"


@pytest.mark.parametrize(
    "name", ["tinystories", "shakespeare", "wikipedia_ga_intros", "pg19_train_small_docs_normalized"]
)
def test_a_corpus_that_is_not_here_can_be_had(open_page: Open, name: str) -> None:
    page = open_page("corpora", corpus=name)
    expect_sound(page)
    assert not page.error
    [button] = [b for b in page.button if b.key == f"download-{name}"]
    assert button.label.startswith(("Download", "Prepare"))
    assert name in list(page.dataframe[0].value.name)


def test_an_unknown_corpus_is_a_sentence(open_page: Open) -> None:
    page = open_page("corpora", corpus="../secret")
    expect_sound(page)
    assert len(page.error) == 1 and "The Verdict" in texts(page)


def test_the_form_says_what_a_run_would_wait_for(open_page: Open) -> None:
    page = open_page("pretraining")
    page.selectbox(key="setting-corpus").set_value("tinystories").run()
    expect_sound(page)
    assert "must be downloaded first: about 1.81 GiB" in page.info[0].value.replace("\\", "")
    assert page.button(key="start").disabled
    assert page.button(key="form-get-ready").label == "Download and prepare"
    assert "Memory: about" in memory_title(page)  # known before a gigabyte is fetched
    page.session_state["setting-precision"] = "fp16"
    page.session_state["setting-device"] = "cpu"
    page.run()
    assert "Precision: fp16 trains on" in texts(page) and not memory_title(page)
    assert page.button(key="form-get-ready")


def memory_title(page: AppTest) -> str:
    """What stands above the bar of the form; empty where there is none."""
    charts = [json.loads(c.proto.json).get("charts") for c in page.get("bidi_component") if c.proto.json]
    return charts[0][0]["title"] if charts and charts[0] else ""


def test_memory_is_told_of_a_batch_that_the_text_cannot_fill(open_page: Open) -> None:
    page = open_page("pretraining")
    before = memory_title(page)
    page.number_input(key="setting-batch_size").set_value(64).run()
    assert any("Lower Batch size" in element.value for element in page.markdown)
    assert page.button(key="start").disabled and memory_title(page) not in ("", before)


def test_the_form_estimates_memory_and_time_and_says_its_command(open_page: Open) -> None:
    page = open_page("pretraining")
    shown = texts(page)
    assert "python -m engine.train" in shown and "no run like it on this device yet" in shown
    if machine().device == "cpu":  # the cards are drawn beside what a GPU needs, not beside this process
        here, card = (json.loads(c.proto.json)["charts"][0] for c in page.get("bidi_component") if c.proto.json)
        assert here["title"].startswith("Memory: about") and "8 GB" not in here["figure"]
        assert card["title"].startswith("On a GPU it would need about") and "8 GB" in card["figure"]
    page.session_state["setting-warmup_steps"] = 5000  # out of sight, and no mistake
    page.run()
    assert "Warmup steps: The run ends after 14 steps, in the warm-up" in texts(page).replace("\\", "")
    assert not page.button(key="start").disabled
    page.button(key="recipe-1").click().run()  # fits a small GPU: nano does already
    expect_sound(page)
    page.number_input(key="setting-batch_size").set_value(2).run()
    assert "python -m engine.train --batch-size 2" in texts(page)
    page.button(key="recipe-0").click().run()
    expect_sound(page)
    assert page.number_input(key="setting-batch_size").value == 4


def test_the_last_used_settings_come_back(open_page: Open, make_run: Make) -> None:
    foreign = {"unknown": 1, "seed": "no number", "precision": "int4", "config": "vast", "grad_accum_steps": 10**9}
    make_run(DONE, requested={"batch_size": 3, "epochs": 7.0, **foreign})
    page = open_page("pretraining")
    page.session_state[f"new-run-{DONE}"] = True
    page.session_state["more-settings"] = True
    page.run()
    expect_sound(page)
    assert page.number_input(key="setting-batch_size").value == 3
    assert page.number_input(key="setting-epochs").value == 7.0
    assert page.number_input(key="setting-seed").value == 1337


def test_a_finished_run_is_diagnosed_and_can_be_branched(open_page: Open, make_run: Make) -> None:
    make_run(DONE, memory_estimate_gib=0.75)
    page = open_page("pretraining", run=DONE)
    expect_sound(page)
    titles = " ".join(finding["title"] for finding in component(page, "lab_numbers")["findings"])
    assert any(word in titles for word in ("Goes well", "Too short to tell", "Nothing stands out", "barely"))
    assert numbers(page)["Peak memory"] == "0.50 GiB"


def test_differences_of_a_branch_are_listed_though_something_forbids_it(open_page: Open, make_run: Make) -> None:
    add_checkpoint(make_run(DONE), 30)
    page = open_page("pretraining", run=DONE)
    changes = {"weight_decay": 0.2, "dropout": 2.0, "epochs": 0.1}
    page.session_state["branch-names"] = list(changes)
    for name, value in changes.items():
        page.session_state[f"branch-{name}"] = value
    page.button(key=f"branch-{DONE}").click().run()
    expect_sound(page)
    listed = texts(page).replace("\\", "")
    assert [error.value.partition(":")[0] for error in page.error] == ["**Dropout**"]
    assert "Weight decay**: 0.1 → 0.2" in listed and "Epochs**: 3 → 0.1" in listed
    assert page.button(key="branch-go").disabled


def test_any_runs_checkpoint_can_be_gone_on_from(
    open_page: Open, make_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    third = "20261122-153011-nano-verdict-0003"
    make_run(third)  # has no checkpoint
    add_checkpoint(make_run(DONE), 30)
    other = make_run(OTHER, state="stopped", name="*Other*")
    for step in (10, 20):
        add_checkpoint(other, step)
    resumed, branched = [], []
    monkeypatch.setattr(session, "resume", lambda run_id: resumed.append(run_id) or run_id)
    monkeypatch.setattr(session, "branch", lambda *how: branched.append(how) or OTHER)

    def pick(run_id: str) -> AppTest:
        page = open_page("pretraining", run=DONE)
        page.session_state[f"again-{DONE}"] = True
        return page.run().selectbox(key=f"picked-run-{DONE}").select(run_id).run()

    page = pick(DONE)
    expect_sound(page)
    runs = page.selectbox(key=f"picked-run-{DONE}").options
    assert len(runs) == 2 and "stopped · step 30 of 30" in "".join(runs)
    [go_on] = [button for button in page.button if button.label == "Continue from here"]
    assert go_on.disabled and "complete" in go_on.help
    page = pick(OTHER)
    steps = page.selectbox(key=f"picked-checkpoint-{OTHER}")
    assert [option.partition(" ·")[0] for option in steps.options] == ["step 20", "step 10"]
    assert "training loss 5.800 · 0 KiB · 22 Nov 2026" in steps.options[0]
    assert page.button(key=f"picked-branch-{OTHER}").label == "Branch …"
    press(page, "Continue from here")
    assert resumed == [OTHER] and not branched
    page = pick(OTHER)
    press(page.selectbox(key=f"picked-checkpoint-{OTHER}").select(10).run(), "Continue from here")
    assert branched == [(OTHER, 10, {})]


def test_an_exercise_sets_up_its_runs(open_page: Open) -> None:
    page = open_page("exercises")
    page.session_state["exercise-precision"] = True
    page.session_state["exercise-memorisation"] = True
    page.session_state["exercise-first"] = True
    page.run()
    expect_sound(page)
    labels = [button.label for button in page.button]
    assert "Start these 2 runs" in labels
    assert labels.count("Download and prepare") == 2, "two exercises wait for the same corpus"
    assert "bf16" in texts(page) and "epochs" not in texts(page)


def test_changes_that_fit_are_one_click_each(
    open_page: Callable[..., AppTest], monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.widgets import form_outlook

    monkeypatch.setattr(session, "held_memory", lambda: 0)  # this process holds what other tests have left
    here = form_outlook.machine()
    needed = estimate_memory(TrainConfig(batch_size=16), "cpu").total / GIB
    monkeypatch.setattr(form_outlook, "machine", lambda: dataclasses.replace(here, memory_gib=0.97 * needed))
    page = open_page("pretraining")
    page.session_state["setting-device"] = "cpu"
    page.session_state["setting-batch_size"] = 16
    page.run()
    assert "Each of these would fit" in page.error[0].value
    page.button(key="fit-0").click().run()
    assert page.session_state["setting-batch_size"] < 16
    assert page.session_state["setting-grad_accum_steps"] > 1
    assert not page.error and not page.exception


def test_what_would_have_fitted_is_one_click_away_from_a_run_that_memory_ended(make_run, open_page) -> None:
    asked = {"config": "small", "batch_size": 8, "corpus": "tiny"}
    change = {"settings": {"batch_size": 2, "grad_accum_steps": 4}, "saving": 2**30, "total": 2**31}
    foreign = [{"settings": {"run_as": "root"}, "saving": 1}, "no change", {"settings": {"seed": 1}}]
    run_id = "20261122-153012-small-tiny-0001"
    make_run(run_id, state="failed", error="Memory ran out.", requested=asked, would_fit=[*foreign, change])
    page = open_page("pretraining", run=run_id)
    [button] = [button for button in page.button if button.key.startswith("run-fit-")]
    assert button.label == "Batch size 2, Gradient accumulation 4 · saves 1.00 GiB"
    button.click().run()
    assert not page.exception
    values = {name: page.session_state[f"setting-{name}"] for name in (*asked, "grad_accum_steps")}
    assert values == asked | {"batch_size": 2, "grad_accum_steps": 4}
    assert page.button(key="start")
