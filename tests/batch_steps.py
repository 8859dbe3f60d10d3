"""What the tests of the Batch tab do there, and wait for."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Locator, Page, expect


def state(page: Page) -> dict:
    """The page's state: all rows as they are judged now, and those listed in their order."""
    return page.evaluate(
        """() => {
            const { run, view, listed } = diffad.batchState();
            const plain = ({ element, thumbnail, ...row }) => row;
            return { ...run, rows: run.rows.map(plain), view, listed: listed.map(plain) };
        }"""
    )


def finish(page: Page, how: str = "done") -> None:
    expect(page.locator(".batch")).to_have_attribute("data-state", how)


def inspect_folder(page: Page, name: str) -> None:
    page.locator("#batch-folder input").fill(name)
    page.locator("#batch-folder input").press("Enter")
    page.locator("#inspect-folder").click()


def shown(page: Page, column: str) -> list[str]:
    return page.locator(f"tbody tr[data-index] td.{column}").all_inner_texts()


def limit_box(page: Page, limit: str, name: str) -> Locator:
    """The number of a limit: its score, or its rate."""
    return page.locator(f".limit-of[data-limit={limit}] .{name}")


def threshold_box(page: Page, name: str) -> Locator:
    return limit_box(page, "threshold", name)


def downloaded(page: Page, kind: str, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.locator(f"[data-take={kind}]").click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path
