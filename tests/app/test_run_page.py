"""The page of one run: everything about it, whatever state its folder is in."""

from __future__ import annotations

import errno
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.testclient import TestClient
from streamlit.testing.v1 import AppTest
from streamlit.web.server.starlette.starlette_gzip_middleware import SelectiveGZipMiddleware

from app.widgets import downloads
from app.widgets.downloads import zipped
from app.widgets.formats import plain
from engine import session
from engine.checkpoint import Contents, save
from engine.errors import CheckpointError, RunError
from engine.run import Run, delete_checkpoint, run_lock
from tests.app.test_pages import Make, Open, expect_sound, press, texts

PARENT = "20261122-153012-nano-verdict-0001"
CHILD = "20261122-153013-nano-verdict-0002"
GRANDCHILD = "20261122-153014-nano-verdict-0003"
PARTS = ("Overview", "Checkpoints", "Playground", "Lineage", "Take along")


@pytest.fixture
def open_part(open_page: Open) -> Callable[[str, str], AppTest]:
    """Open a part of the page of a run."""
    return lambda run_id, part: open_page("run", id=run_id, part=part)


def add_checkpoint(folder: Path, step: int, loss: float = 5.8) -> None:
    contents = Contents({"w": torch.arange(3.0)}, {}, {})
    save(folder, contents, {"step": step, "train_loss": loss, "val_loss": 6.5, "val_step": step}, {})


def labels(page: AppTest) -> list[str]:
    return [button.label for button in page.button if not button.disabled]


@pytest.mark.parametrize("run_id", ["", "../../etc", "20990101-000000-nano-verdict-ffff", "<script>"])
def test_an_unknown_run_is_a_sentence_and_a_link_to_all(open_page: Open, run_id: str) -> None:
    page = open_page("run", id=run_id)
    expect_sound(page)
    assert len(page.error) == bool(run_id)
    assert [link.proto.label for link in page.get("page_link")] == ["All runs"]


@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_a_run_without_and_with_checkpoints(part: str, open_part: Any, make_run: Make) -> None:
    folder = make_run(PARENT, name="*Bold* <b>run</b>")
    for _ in range(2):
        page = open_part(PARENT, part)
        expect_sound(page)
        assert not page.error
        assert r"\*Bold\* \<b\>run" in texts(page)
        add_checkpoint(folder, 20)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("content", ["{", "{}", '{"config": 3, "parent": {"run": 5}, "imported": 7, "progress": []}'])
def test_a_damaged_run_harms_no_part(content: str, part: str, open_part: Any, make_run: Make) -> None:
    folder = make_run(PARENT)
    add_checkpoint(folder, 20)
    (folder / "run.json").write_text(content)
    (folder / "metrics.parquet").write_bytes(b"PAR1 and no more")
    (folder / "checkpoints" / "step-000020" / "manifest.json").write_text("{")
    page = open_part(PARENT, part)
    expect_sound(page)
    assert "damaged]" in texts(page) and "ended without a word" not in texts(page)
    if part == "Overview":
        assert "not known" in page.error[0].value and "Use these settings" not in labels(page)
    if part == "Checkpoints":
        assert [button.label for button in page.button] == ["Verify", "Delete …"]


def test_checkpoints_are_listed_and_the_newest_is_chosen(open_part: Any, make_run: Make) -> None:
    folder = make_run(PARENT, state="stopped", total_steps=100)
    for step in (10, 20):
        add_checkpoint(folder, step)
    page = open_part(PARENT, "Checkpoints")
    assert list(page.dataframe[0].value.step) == [20, 10]
    [box] = page.selectbox
    assert box.value == 20 and "validation loss 6.500" in box.options[0]
    assert {"Continue from here", "Branch …", "Verify", "Delete …"} <= set(labels(page))
    assert {"Weights (.safetensors)", "Archive with this checkpoint (.zip)"} <= set(labels(page))


def test_verify_reads_the_bytes(open_part: Any, make_run: Make) -> None:
    folder = make_run(PARENT)
    add_checkpoint(folder, 20)
    page = press(open_part(PARENT, "Checkpoints"), "Verify")
    assert "is whole" in page.success[0].value and not page.error
    weights = folder / "checkpoints" / "step-000020" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    page = press(open_part(PARENT, "Checkpoints"), "Verify")
    assert "changed after it was saved" in page.error[0].value and not page.success


def test_continue_resumes_at_the_newest_and_branches_at_an_older(
    open_part: Any, make_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(session, "resume", lambda run_id: asked.append(run_id) or run_id)
    monkeypatch.setattr(session, "branch", lambda run_id, step, changes: asked.append((step, changes)) or run_id)
    folder = make_run(PARENT, state="stopped", total_steps=100)
    for step in (10, 20, 100):
        add_checkpoint(folder, step)
    page = open_part(PARENT, "Checkpoints")
    assert "Continue from here" not in labels(page), "it is complete there"
    delete_checkpoint(PARENT, 100)
    press(open_part(PARENT, "Checkpoints"), "Continue from here")
    page = open_part(PARENT, "Checkpoints")
    page.selectbox(key="checkpoint").set_value(10).run()
    press(page, "Continue from here")
    assert asked == [PARENT, (10, {})]


def test_a_checkpoint_is_deleted_after_a_question_and_never_of_a_run_that_trains(
    open_part: Any, make_run: Make
) -> None:
    folder = make_run(PARENT, state="running", total_steps=100)
    for step in (10, 20):
        add_checkpoint(folder, step)
    page = press(open_part(PARENT, "Checkpoints"), "Delete …")
    assert "deletes the checkpoint for good" in texts(page)  # its buttons are pressed in tests/browser
    assert [c.step for c in Run(folder).checkpoints] == [10, 20]
    delete_checkpoint(PARENT, 20)
    assert [c.step for c in Run(folder).checkpoints] == [10]
    assert Run(folder).events[-1].message == "Deleted the checkpoint at step 20."
    with pytest.raises(CheckpointError, match="any more"):
        delete_checkpoint(PARENT, 20)
    lock = run_lock(folder)
    assert lock.acquire()
    try:
        with pytest.raises(RunError, match="being trained"):
            delete_checkpoint(PARENT, 10)
        page = open_part(PARENT, "Checkpoints")
        assert not {"Delete …", "Continue from here"} & set(labels(page))
    finally:
        lock.release()
    assert [c.step for c in Run(folder).checkpoints] == [10]


def test_lineage_leads_up_and_down(open_part: Any, make_run: Make) -> None:
    make_run(PARENT, name="First <b>")
    changes = {"learning_rate": [0.001, 0.0005], "unknown": [1, 2]}
    make_run(CHILD, name="Second", parent={"run": PARENT, "step": 20, "changes": changes})
    make_run(GRANDCHILD, name="Third", parent={"run": CHILD, "step": 25, "changes": {}})
    [html] = [h.proto.body for h in open_part(CHILD, "Lineage").get("html") if "lab-lineage" in h.proto.body]
    assert html.index("First &lt;b&gt;") < html.index("Second (this run)") < html.index("Third")
    assert f'href="run?id={PARENT}"' in html and f'href="run?id={GRANDCHILD}"' in html
    assert "branched at step 20 · Learning rate: 0.001 → 0.0005" in html and "<b>" not in html


def test_a_lineage_without_end_and_one_that_was_not_imported(open_part: Any, make_run: Make) -> None:
    parent = {"run": GRANDCHILD, "step": 1, "changes": {}}
    make_run(CHILD, parent=parent)
    imported = {"id": "x", "time": "2026-11-22T15:30:12.000Z"}
    page = open_part(CHILD, "Lineage")
    assert any(f"{GRANDCHILD}<small>not in this lab" in h.proto.body for h in page.get("html"))
    make_run(GRANDCHILD, parent={"run": CHILD, "step": 1, "changes": {}}, imported=imported)
    page = open_part(GRANDCHILD, "Lineage")
    expect_sound(page)
    assert "Imported on 22 Nov 2026" in texts(page)


def test_a_file_that_cannot_be_made_says_why(
    open_part: Any, make_run: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = make_run(PARENT)
    add_checkpoint(folder, 20)
    page = press(open_part(PARENT, "Checkpoints"), "Archive with this checkpoint (.zip)")
    assert r"step\-000020\.zip could not be made" in page.error[0].value and "not of version 1" in page.error[0].value

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr("app.widgets.run_exports.write_archive", full)
    page = press(open_part(PARENT, "Take along"), "Download as archive")
    assert "The disk that holds" in page.error[0].value and "is full" in page.error[0].value
    assert not list((tmp_path / "temporary").iterdir())


def test_a_copy_for_which_there_is_no_room_names_the_disk_that_is_full(
    open_part: Any, make_run: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    add_checkpoint(make_run(PARENT), 20)

    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(target))  # as shutil has it

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr("shutil.copyfile", full)
    page = press(open_part(PARENT, "Checkpoints"), "Weights (.safetensors)")
    assert plain(f"The disk that holds {tmp_path / 'temporary'}/lab-download-") in page.error[0].value


def test_a_file_is_given_out_once_and_to_nobody_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    offered = downloads.Download("Text", "naïve.txt", lambda path: path.write_text("x" * 5000))
    address = "/" + downloads._make(offered)
    server = Starlette(routes=[downloads.ROUTE], middleware=[Middleware(SelectiveGZipMiddleware)])  # as Streamlit's
    client = TestClient(server)
    assert client.get(f"{address}x").status_code == 404
    for answer in (client.head(address), client.get(address)):  # asking for the size takes nothing
        assert answer.headers["content-length"] == "5000" and "attachment" in answer.headers["content-disposition"]
    assert answer.text == "x" * 5000
    assert client.get(address).status_code == 404 and not list(folder.iterdir())
    monkeypatch.setattr(downloads, "KEPT_S", -1.0)
    downloads._make(offered)
    downloads._make(offered)  # nobody came for the first one
    assert len(list(folder.iterdir())) == 1
    downloads.forget()
    assert not list(folder.iterdir())


def test_a_file_half_written_when_the_server_ends_is_deleted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))

    def write(path: Path) -> None:
        path.write_text("half of it")
        assert len(list(folder.iterdir())) == 1
        downloads.forget()
        assert not list(folder.iterdir())
        raise OSError(errno.ENOENT, "the other half finds no folder")

    with pytest.raises(OSError, match="other half"):
        downloads._make(downloads.Download("Text", "a.txt", write))
    assert not downloads._under_way and not list(folder.iterdir())


def test_a_folder_is_zipped_whole(tmp_path: Path) -> None:
    zipped(lambda folder: (folder / "a.txt").write_text("x"))(tmp_path / "a.zip")
    assert zipfile.ZipFile(tmp_path / "a.zip").read("a.txt") == b"x"


@pytest.mark.parametrize("with_runs", [False, True])
def test_runs_offers_to_import(with_runs: bool, open_page: Open, make_run: Make) -> None:
    if with_runs:
        make_run(PARENT)
    page = press(open_page("runs"), "Import a run …")
    expect_sound(page)
    assert "everything in it is checked" in texts(page)


def test_use_these_settings_leads_to_the_form(open_page: Open, make_run: Make) -> None:
    make_run(PARENT, requested={"batch_size": 3})
    page = press(open_page("run", id=PARENT), "Use these settings")
    expect_sound(page)
    assert page.title[0].value == "Pretraining"
    assert page.number_input(key="setting-batch_size").value == 3
    assert open_page("run", id=PARENT).title[0].value == "Run"


def test_what_computed_a_run_is_told_beside_the_machine(make_run: Make) -> None:
    def page(run_id: str) -> None:
        from app.widgets import run_parts
        from app.widgets.snapshot import snapshot
        from engine.run import load_run

        run_parts.environment(snapshot(load_run(run_id)))

    facts = {"machine": {"device_name": "NVIDIA H100", "threads": 8}, "packages": {"torch": "2.13.0", "numpy": None}}
    make_run(PARENT, environment=facts, arithmetic={"GPU": "NVIDIA L4", "loss": "Triton"})
    make_run(CHILD, environment=facts, arithmetic=3)
    make_run(GRANDCHILD, environment={"machine": "fast", "packages": 3})
    pages = [AppTest.from_function(page, args=(run,)).run() for run in (PARENT, CHILD, GRANDCHILD)]
    assert not pages[2].exception and "did not record" in pages[2].caption[0].value
    tables = [page.dataframe[0].value for page in pages[:2]]
    found, without = ([tuple(row) for row in table.to_numpy()] for table in tables)
    assert without == [("device name", "NVIDIA H100"), ("threads", "8"), ("torch", "2.13.0")]
    assert found == [*without, ("computed with: GPU", "NVIDIA L4"), ("computed with: loss", "Triton")]
