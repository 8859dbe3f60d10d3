"""Takes the README's pictures of the page: `make screenshots`, or `python tests/screenshots.py [FOLDER]`.

Inspect with a repair, and Batch, light and dark, 1440 and 390 px wide: `inspect_light.webp` …
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from conftest import BROWSER_FLAGS, BROWSER_NAMES, ROOT, serving
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

SAMPLE = "chip_solder_bridge.png"
WIDTHS = {"": {"width": 1440, "height": 1000}, "_phone": {"width": 390, "height": 844}}
PATIENCE = 300_000  # ms


def inspect(page: Page) -> None:
    page.locator(f"button[data-sample='{SAMPLE}']").click(timeout=PATIENCE)
    expect(page.locator(".verdict h2")).to_be_visible(timeout=PATIENCE)
    page.locator("#repair").click()
    expect(page.locator(".player")).to_have_attribute("data-state", "done", timeout=PATIENCE)
    page.locator(".before-after").click()


def batch(page: Page, pictures: list[Path]) -> None:
    page.get_by_role("tab", name="Batch").click()
    page.locator("#batch-files input[type=file]").set_input_files(pictures)
    expect(page.locator(".batch")).to_have_attribute("data-state", "done", timeout=PATIENCE)


def take(page: Page, path: Path) -> None:
    page.mouse.move(0, 0)
    still = "document.getAnimations().every(each => each.playState !== 'running')"
    page.wait_for_function(f"{still} && [...document.images].every(each => each.complete)")
    with Image.open(io.BytesIO(page.screenshot(full_page=True))) as picture:
        picture.convert("RGB").save(path, quality=85, method=6)  # a third of a PNG: a repository keeps all
    print(f"{path} {path.stat().st_size // 1024} KB")


def main(folder: Path) -> None:
    found = next((path for name in BROWSER_NAMES if (path := shutil.which(name))), None)
    pictures = sorted((ROOT / "assets" / "samples").glob("*.png"))
    with serving() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=BROWSER_FLAGS)
        page = browser.new_page()
        page.goto(address)
        for tab, fill in (("inspect", inspect), ("batch", lambda page: batch(page, pictures))):
            page.set_viewport_size(WIDTHS[""])
            fill(page)
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                # Gradio reads the scheme when it loads; a class on the body is all that it sets.
                page.evaluate("dark => document.body.classList.toggle('dark', dark)", scheme == "dark")
                for suffix, size in WIDTHS.items():
                    page.set_viewport_size(size)
                    take(page, folder / f"{tab}{suffix}_{scheme}.webp")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "assets")
