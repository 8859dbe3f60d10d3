"""The report of an inspection: what it says, and that it prints on one page."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser

from diffad.inspection import Inspection
from diffad.inspector import Inspector
from diffad.report.document import report, share_in_words
from diffad.report.rendering import number
from diffad.ui import downloads

SAMPLES = Path(__file__).parents[1] / "assets" / "samples"


def take(kind: str, inspection: Inspection, inspector: Inspector, film=None) -> tuple[str, bytes]:
    return downloads.contents(kind, inspection, inspector, film, 8.0, 0.7, "inferno", "gear")


def test_a_report_gives_the_repairs_score_only_beside_a_verdict_of_its_kind(inspection, inspector, film):
    """Scores at another α or at other timesteps cannot be compared."""
    first = inspection.timesteps[:1]
    for shown, with_score in (
        (inspection, True), (inspection.fused(alpha=0.95), False), (inspection.fused(timesteps=first), False),
        (inspection.fused(threshold=20), True),
    ):  # fmt: skip
        page = take("report", shown, inspector, film)[1].decode()
        assert "by the model" in page and ("by the model, score" in page) is with_score


def test_report_says_what_was_found(inspection, inspector):
    page = report(inspection, inspector, "a <b>part</b> & more", now=datetime(2026, 3, 5, 14, 7))
    assert "a &lt;b&gt;part&lt;/b&gt; &amp; more" in page and "<b>part" not in page
    assert "5 March 2026, 14:07" in page
    assert ">Anomalous<" in page and "about 1 good part in 100 would exceed" in page
    assert inspector.provenance["licence"].split(";")[0] in page
    assert "$" not in re.sub(r"base64,[^\"]+", "", page)  # no placeholder is left
    assert not re.findall(r'(?:src|href)="(?!data:)', page)  # nothing outside itself
    between = inspection.fused(threshold=inspection.score + 1)
    page = report(between, inspector, "between")
    assert ">Look at it<" in page and "✓" not in page and "✕" not in page and "where it differs" in page
    assert f"look limit {number(between.look_threshold)}" in page
    assert ">Good<" in report(inspector.inspect(SAMPLES / "chip_good.png"), inspector, "chip")


def test_notes_stand_in_the_report_and_the_summary(inspection, inspector):
    noted = replace(inspection, notes=("Read as <12> bits.", "It is dark."), category_fits=False)
    page = report(noted, inspector, "part")
    assert page.count('<p class="note">') == 3 and "It is dark." in page
    assert "Read as &lt;12&gt; bits." in page
    assert downloads.summary(noted, inspector, "part")["notes"] == ["Read as <12> bits.", "It is dark."]


@pytest.mark.parametrize("shape", ["square", "wide", "tall", "many levels"])
def test_report_prints_on_one_page(shape, inspector, film, browser: Browser, tmp_path: Path):
    picture = np.asarray(Image.open(SAMPLES / "gear_broken_tooth.png").convert("RGB"))
    picture = {"wide": np.tile(picture, (1, 4, 1)), "tall": np.tile(picture, (4, 1, 1))}.get(shape, picture)
    levels = range(20, 500, 40) if shape == "many levels" else inspector.timesteps
    inspection = inspector.inspect(picture, "gear", levels, tile=None)
    file = tmp_path / "report.html"
    file.write_text(report(inspection, inspector, "a long name " * 20, film.repaired, film.score))
    page = browser.new_page(viewport={"width": 900, "height": 1200})
    page.goto(file.as_uri())
    box = page.evaluate("""() => {
        const sheet = document.querySelector("main");
        const inner = [...sheet.querySelectorAll("*")].map((each) => each.getBoundingClientRect());
        const edge = sheet.getBoundingClientRect();
        return [Math.max(...inner.map((each) => each.bottom)) - edge.bottom,
                Math.max(...inner.map((each) => each.right)) - edge.right];
    }""")
    assert max(box) <= 0  # nothing is cut off
    pdf = page.pdf(prefer_css_page_size=True, print_background=True)
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == 1
    page.close()


@pytest.mark.parametrize(("rate", "words"), [
    (0.0, "fewer than 1 good part in 2000"), (0.01, "about 1 good part in 100"),
    (0.5, "50% of the good parts"), (1.0, "every good part"),
])  # fmt: skip
def test_share_in_words(rate, words):
    assert share_in_words(rate) == words
