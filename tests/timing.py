"""Prints how quick the page is in a real browser: `make timing`, or `python tests/timing.py [SAMPLE]`.

α to map: from the slider's input event to the frame in which verdict, map, contours and evidence are painted
again. Click to verdict: from a click on a sample to its verdict on the screen, network included.
"""

from __future__ import annotations

import shutil
import sys

from conftest import BROWSER_FLAGS, BROWSER_NAMES, serving
from playwright.sync_api import Page, sync_playwright

MOVES, CLICKS = 30, 6

ALPHA_TO_MAP = """async moves => {
    const slider = document.querySelector("#alpha input[type=range]");
    const times = [];
    for (let i = 0; i < moves; i++) {
        await new Promise(done => setTimeout(done, 50));
        const begun = performance.now();
        slider.value = 0.1 + 0.8 * ((i * 7) % moves) / moves;
        slider.dispatchEvent(new Event("input", { bubbles: true }));
        await new Promise(done => document.addEventListener("diffad:drawn", done, { once: true }));
        await new Promise(done => { // the first task after the frame is painted
            const { port1, port2 } = new MessageChannel();
            port1.onmessage = done;
            requestAnimationFrame(() => port2.postMessage(null));
        });
        times.push(performance.now() - begun);
    }
    return times;
}"""

CLICK_TO_VERDICT = """async sample => {
    const begun = performance.now();
    document.querySelector(`button[data-sample="${sample}"]`).click();
    while (diffad.state().part?.link?.sample !== sample)
        await new Promise(done => document.addEventListener("diffad:drawn", done, { once: true }));
    return performance.now() - begun;
}"""


def summary(name: str, times: list[float]) -> str:
    times = sorted(times)
    p50, p95 = (times[min(len(times) - 1, round(share * (len(times) - 1)))] for share in (0.5, 0.95))
    return f"{name:18} p50 {p50:6.0f} ms   p95 {p95:6.0f} ms   {len(times)} times"


def measure(page: Page, samples: list[str]) -> None:
    clicks = [page.evaluate(CLICK_TO_VERDICT, samples[i % len(samples)]) for i in range(CLICKS + 1)]
    print(summary("click to verdict", clicks[1:]))  # the first one loads what later ones have
    print(summary("α to map", page.evaluate(ALPHA_TO_MAP, MOVES)))


def main(wanted: list[str]) -> None:
    found = next((path for name in BROWSER_NAMES if (path := shutil.which(name))), None)
    with serving() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=BROWSER_FLAGS)
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        page.goto(address)
        page.locator("#samples button").first.wait_for(timeout=60_000)
        names = page.locator("#samples button").evaluate_all("all => all.map(b => b.dataset.sample)")
        measure(page, [name for name in names if not wanted or name in wanted])
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
