"""Takes the README's pictures of the page: `make screenshots`, or `python tests/screenshots.py [FOLDER]`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from conftest import BROWSER_FLAGS, BROWSER_NAMES, ROOT, serving
from playwright.sync_api import expect, sync_playwright

VIEWS = {
    "page": {"viewport": {"width": 1440, "height": 1000}, "color_scheme": "light"},
    "page_dark": {"viewport": {"width": 1440, "height": 1000}, "color_scheme": "dark"},
    "page_phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
}


def main(folder: Path) -> None:
    found = next((path for name in BROWSER_NAMES if (path := shutil.which(name))), None)
    with serving() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=BROWSER_FLAGS)
        for name, view in VIEWS.items():
            page = browser.new_context(**view).new_page()
            page.goto(address)
            page.locator("#samples button[data-sample='gear_corrosion.png']").click(timeout=30_000)
            expect(page.locator(".verdict h2")).to_be_visible(timeout=30_000)
            page.locator("#repair").click()
            expect(page.locator("#film-downloads button").first).to_be_enabled(timeout=120_000)
            page.wait_for_timeout(1500)  # the slider's glide to the last frame
            page.screenshot(path=folder / f"{name}.png", full_page=True)
            print(folder / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "assets")
