"""Both limits of the Inspect tab: by score, by rate, by lines and keys; a real server, a real browser."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from page_steps import (
    drag,
    fetch,
    inspect,
    move,
    now,
    settled,
    stands_at,
    upload,
)
from playwright.sync_api import Page, expect

from diffad.inspector import Inspector


def test_a_good_part_that_is_unusual_is_not_called_calm(page: Page, inspector: Inspector):
    inspect(page, "gear_good")
    page.evaluate("diffad.decide({ point: [0, 0] })")
    expect(page.locator("#probe")).to_contain_text("calm")
    rate = inspector.scorer("gear").rate(now(page)["score"])
    words = "as most good parts" if rate > 0.5 else f"1 good part in {1 / rate:.0f} scores this high"
    expect(page.locator(".reading")).to_contain_text(words)
    # At its strongest place, and under a threshold just above that.
    inspect(page, "chip_good")
    values = page.evaluate("diffad.valuesAt(diffad.state().choices.point)")
    limit = 1.1 * max(np.mean(values["pixel"]), np.mean(values["feature"]))
    page.evaluate("threshold => diffad.decide({ threshold })", limit)
    expect(page.locator("#probe")).to_contain_text("Raised, but below the threshold.")
    page.evaluate("threshold => diffad.decide({ threshold })", min(values["pixel"] + values["feature"]) - 5)
    expect(page.locator("#probe")).to_contain_text("Pixels and features both see it.")  # below 0, perhaps
    inspect(page, "gear_corrosion")
    expect(page.locator(".reading")).not_to_contain_text("good part")  # beyond the threshold that is plain


def test_the_threshold_moves_by_score_by_rate_and_by_its_line(page: Page):
    inspect(page, "chip_bent_lead")  # near enough for its score to be on the scale
    limit = now(page)["threshold"]
    stands_at(page, "#threshold", limit)
    # By rate: the same law, so a rarer alarm has a higher threshold.
    page.locator("#rate input").click()
    page.get_by_role("option", name="1 in 1000").click()
    page.wait_for_function("diffad.choices().rate === 0.001")
    assert now(page)["threshold"] > limit and now(page)["rate"] == pytest.approx(0.001, abs=1e-5)
    expect(page.locator(".meaning")).to_contain_text("1 good part in 1000")
    # By score: above this part it becomes a good one, without regions, and the rate is the person's own.
    move(page, "#threshold", 0)
    expect(page.locator(".meaning")).to_contain_text("every good part")
    expect(page.locator("#rate input")).to_have_value("own score")
    # By its line, which takes the look limit along.
    drag(page, "threshold", 2000)
    expect(page.locator(".verdict.look")).to_be_visible()
    page.locator("#look input[type=range]").press("End")
    expect(page.locator(".verdict.good")).to_be_visible()
    expect(page.locator("#regions")).to_contain_text("No region")
    stands_at(page, "#threshold", now(page)["threshold"])
    stands_at(page, "#look", now(page)["threshold"])  # not beyond
    threshold = now(page)["threshold"]
    page.locator(".limit-grip.threshold").focus()
    page.keyboard.press("PageDown")
    assert now(page)["threshold"] < threshold and now(page)["own"] is True
    assert now(page)["look"] == now(page)["threshold"]


def test_a_part_between_the_limits_is_one_to_look_at_and_has_no_tick(page: Page, tmp_path: Path):
    inspect(page, "gear_good")
    expect(page.locator(".verdict h2")).to_have_text("✓Good")
    usual = now(page)
    assert usual["look"] < usual["threshold"] and usual["lookRate"] == pytest.approx(0.1, abs=1e-3)
    stands_at(page, "#look", usual["look"])
    move(page, "#look", 1)
    heading = page.locator(".verdict.look h2")
    expect(heading).to_have_text("!Look at it")
    expect(page.locator("#verdict")).not_to_contain_text("✓")
    expect(page.locator("#look-rate input")).to_have_value("own score")
    colours = "e => ['good', 'bad', 'look', 'ink'].map(n => getComputedStyle(e).getPropertyValue(`--${n}`))"
    assert len(set(heading.evaluate(colours))) == 4
    # Where to look: the regions above the look limit, though none of them need be above the threshold.
    here = now(page)
    assert here["regions"] and here["threshold"] == pytest.approx(usual["threshold"])
    assert all(region["peak"] > here["look"] == 1 for region in here["regions"])
    expect(page.locator("#regions tbody tr")).to_have_count(min(8, len(here["regions"])))
    report = json.loads(fetch(page, "json", tmp_path).read_text())
    assert report["verdict"] == "look" and report["look_threshold"] == 1 and not report["is_anomalous"]
    assert len(report["regions"]) == len(here["regions"])
    assert ">Look at it<" in fetch(page, "report", tmp_path).read_text()
    # By the share of good parts above it.
    page.locator("#look-rate input").click()
    page.get_by_role("option", name="1 in 5").click()
    page.wait_for_function("diffad.choices().lookRate === 0.2")
    assert now(page)["lookRate"] == pytest.approx(0.2, abs=1e-3)
    expect(page.locator(".meaning")).to_contain_text("about 1 in 5 looked at or rejected")
    stands_at(page, "#look", now(page)["look"])


def test_the_look_limit_moves_by_its_line_and_by_keys_and_ends_at_the_threshold(page: Page):
    inspect(page, "gear_good")
    before = now(page)
    drag(page, "look", -60)
    expect(page.locator(".verdict.look")).to_be_visible()
    here = now(page)
    assert here["look"] < before["look"] and here["threshold"] == before["threshold"]
    stands_at(page, "#look", here["look"])
    page.locator(".limit-grip.look").focus()
    page.keyboard.press("ArrowRight")
    settled(page)
    assert here["look"] < now(page)["look"] < here["threshold"]
    drag(page, "look", 2000)
    assert now(page)["look"] == now(page)["threshold"] == before["threshold"]
    expect(page.locator(".verdict.good")).to_be_visible()
    expect(page.locator(".meaning")).not_to_contain_text("looked at")  # nothing lies between
    # Where the lines lie on each other either can still be taken.
    drag(page, "look", -15)
    assert now(page)["look"] < now(page)["threshold"] == before["threshold"]
    # A threshold moved below the look limit pushes it down, and lets it return.
    look = now(page)["look"]
    move(page, "#threshold", 0.5)
    expect(page.locator(".verdict.anomalous")).to_be_visible()
    assert now(page)["look"] == now(page)["threshold"] == 0.5
    stands_at(page, "#look", 0.5)
    move(page, "#threshold", 12)
    assert now(page)["look"] == look


def test_a_threshold_of_ones_own_is_not_taken_to_another_category(page: Page, tmp_path: Path):
    """Not even after a file that cannot be read, which also unmarks the sample and clears the address."""
    inspect(page, "gear_good")
    move(page, "#threshold", 10)
    page.wait_for_function("location.search.includes('gear_good')")
    (tmp_path / "broken.png").write_bytes(b"this is not a picture")
    upload(page, tmp_path / "broken.png")
    expect(page.locator("#verdict .empty")).to_contain_text("broken.png")
    expect(page.locator("#samples button.on")).to_have_count(0)
    page.wait_for_function("!location.search.includes('sample')")
    inspect(page, "gear_good")
    assert now(page)["threshold"] == 10
    upload(page, tmp_path / "broken.png")
    expect(page.locator("#verdict .empty")).to_contain_text("broken.png")
    inspect(page, "leather_good")
    assert now(page)["threshold"] < 10 and not now(page)["own"]
    inspect(page, "gear_good")  # where it stays
    assert now(page)["threshold"] == 10 and now(page)["own"]
    expect(page.locator("#rate input")).to_have_value("own score")
