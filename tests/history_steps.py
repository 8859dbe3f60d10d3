"""What the tests of the History tab do there, and wait for."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, Page, expect


def correction(page: Page, tab: str, said: str) -> Locator:
    """A button that corrects. tab: the element in which it is."""
    return page.locator(f"{tab} .correction button[data-correction={said}]")


def is_said(page: Page, tab: str, said: str) -> None:
    """Waits until that button alone is pressed; "" for none."""
    expect(page.locator(f"{tab} .correction button[aria-pressed=true]")).to_have_count(1 if said else 0)
    if said:
        expect(correction(page, tab, said)).to_have_attribute("aria-pressed", "true")


def kept(page: Page) -> None:
    """Waits until what Inspect shows can be corrected."""
    expect(page.locator("#correction .correction")).to_be_visible()


def open_history(page: Page, count: int) -> None:
    page.get_by_role("tab", name="History").click()
    listed(page, count)


def listed(page: Page, count: int) -> None:
    expect(page.locator(".history-rows h2")).to_have_text(re.compile(rf"^{count:,} inspections?$"))


def names(page: Page) -> list[str]:
    return page.locator("#history td.picture b").all_inner_texts()


def choose(page: Page, name: str) -> None:
    page.locator("#history td.picture", has_text=name).first.click()
    expect(page.locator(".history-detail h3")).to_have_text(name)
    expect(page.locator(".history-detail .reopen")).to_be_enabled()
