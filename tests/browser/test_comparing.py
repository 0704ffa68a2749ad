"""Comparing runs as a person does it: a branch beside its parent, the view kept in the address, the chart as a file."""

from __future__ import annotations

import re
import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from engine.bench.browser import App
from tests.browser.test_main_job import choose_rows, no_traceback, wait_for
from tests.many_rows import write_run

pytestmark = pytest.mark.timeout(300)

NAMES = ["Parent", "Branch & more", "<b>Third</b>"]
SHOWN = "document.querySelector('.st-key-overlay .lab-plot')"


def in_legend(page: Page, what: str) -> list:
    return page.evaluate(f"{SHOWN}?.data?.filter(line => line.showlegend !== false).map(line => {what}) ?? []")


def save(page: Page, format: str, folder: Path) -> Path:
    with page.expect_download() as download:
        page.locator(".lab-files").first.get_by_role("button", name=format, exact=True).click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def shown_names(texts: Sequence[str]) -> set[str]:
    return {name for name in NAMES if name in texts}


def test_a_branch_beside_its_parent_and_the_chart_as_files(app: App, page: Page, tmp_path: Path) -> None:
    parent = write_run(app.runs, 0, 100, name=NAMES[0])
    write_run(app.runs, 1, 60, after=40, name=NAMES[1], parent={"run": parent, "step": 40, "changes": {}})
    write_run(app.runs, 2, 80, name=NAMES[2])
    page.goto("/runs")
    wait_for(lambda: len(in_legend(page, "line.name")) > 0, say="The newest run is not drawn.")
    choose_rows(page, 1, 2)
    wait_for(lambda: len(in_legend(page, "line.name")) == 3, say="Three runs were chosen.")
    assert in_legend(page, "line.x[0]") == [1, 40, 1]  # the newest first: the branch begins at its parent's step

    # One box beside the cursor tells the losses of all runs there, training and validation.
    box = page.locator(".st-key-overlay .nsewdrag").bounding_box()
    assert box
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.5 * box["height"])
    hover = page.locator(".st-key-overlay .hoverlayer .legendtext")
    expect(hover).to_have_count(6)

    # What is looked at is in the address, and comes back from it.
    page.get_by_role("radio", name="Tokens").or_(page.get_by_role("button", name="Tokens", exact=True)).first.click()
    expect(page).to_have_url(re.compile("x=tokens"))
    wait_for(lambda: page.evaluate(f"{SHOWN}.layout.xaxis.title.text") == "Tokens")

    png, svg, html = (save(page, format, tmp_path) for format in ("PNG", "SVG", "HTML"))
    content = png.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", content[16:24]) == (1200, 640)
    assert len(content) > 10_000
    root = ElementTree.parse(svg).getroot()
    assert root.tag.endswith("svg")
    assert shown_names([(text.text or "") for text in root.iter("{http://www.w3.org/2000/svg}text")]) == set(NAMES)

    page.context.set_offline(True)
    alone = page.context.new_page()
    alone.goto(html.as_uri())
    alone.wait_for_selector(".legendtext")
    assert shown_names(alone.locator(".legendtext").all_text_contents()) == set(NAMES)
    alone.close()
    page.context.set_offline(False)

    page.reload()
    wait_for(lambda: page.evaluate(f"{SHOWN}?.layout?.xaxis?.title?.text") == "Tokens", say="The axis was forgotten.")
    no_traceback(page)
