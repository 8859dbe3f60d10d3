"""The report of measurements: one file, whatever could be measured."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from toy_inspector import ToyInspector, nuts_and_rings

from diffad.measuring.charts import repair_sheet
from diffad.measuring.evaluation import evaluate
from diffad.measuring.repairs import Repaired, evaluate_repair
from diffad.measuring.report import html_report, markdown_report
from diffad.pictures.samples import Sample


@pytest.fixture
def parts(tmp_path):
    return nuts_and_rings(tmp_path)


class Page(HTMLParser):
    """What a page asks for and says."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.tags, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for key, value in attributes if key in ("src", "href", "srcset", "data")]

    def handle_data(self, data):
        self.text.append(data)


def test_report_is_one_file_that_asks_no_network(parts):
    inspector = ToyInspector()
    results, repairs = evaluate(inspector, parts), {}
    for name, values in evaluate_repair(inspector, parts, show=repairs.__setitem__).items():
        results[name]["repair"] = values
    sheets = {name: repair_sheet(some) for name, some in repairs.items()}
    text = html_report(results, inspector, sheets)
    page = Page(text)
    assert page.sources and all(re.match(r"#|data:image/webp;base64,", source) for source in page.sources)
    assert not re.search(r"https?://|@import|url\(|<script", text)
    assert page.tags.count("svg") == 6  # ROC, PRO and scores of two categories
    assert re.findall('<svg [^>]*aria-label="([^"]*)"', text) == ["ROC", "PRO", "Image scores"] * 2
    assert max(map(len, re.findall("<svg.*?</svg>", text, re.DOTALL))) < 10_000
    # nut: two defective, two good (none twice), ring: one of each; two sheets of repairs
    assert page.tags.count("details") == 6 and page.tags.count("img") == 2 * 6 + 2
    said = " ".join(page.text)
    assert "<none>" in said and "nut 3" in said and "8-connected" in said and "missed" in said
    assert "images 1.000" in said and "threshold 3.00" in said and "var(--calm)" in text  # text stays text
    anchors = {source for source in page.sources if source.startswith("#")}
    assert all(f'id="{anchor[1:]}"' in text for anchor in anchors)
    written = markdown_report(results)
    assert written.count("| nut |") == 4 and "### ring" in written and "| scratch | 2 |" in written


def test_report_of_what_cannot_be_measured(parts):
    for some in (parts[:2], parts[2:4], [replace(one, mask=None) for one in parts[:4]]):
        inspector = ToyInspector()
        results = evaluate(inspector, some)
        assert "Notes" in markdown_report(results) and "undefined" in html_report(results, inspector)


def test_repair_sheet_shows_every_repair():
    before = np.full((40, 60, 3), 100, np.uint8)
    after = before.copy()
    after[10:30, 20:40] = 140
    one = repair_sheet([Repaired(Sample(Path("0.png"), "nut", "test", "cut"), before, after, 9.0, 2.0, 3.0)])
    assert one.dtype == np.uint8 and one.ndim == 3 and one.shape[2] == 3
    values, counts = np.unique(one.reshape(-1, 3), axis=0, return_counts=True)
    large = {tuple(value) for value, count in zip(values.tolist(), counts, strict=True) if count > 500}
    assert {(100, 100, 100), (140, 140, 140), (160, 160, 160), (0, 0, 0)} <= large  # 160: 4 · 40
