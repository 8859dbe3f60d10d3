"""Shared by the tests: the bundled model, and a browser for the page's tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# Read when torch is loaded, here and in what the tests start: results are then the same to the last bit
# however busy the machine is (`diffad.method.devices`).
os.environ["OMP_NUM_THREADS"] = "1"

_KEPT = tempfile.TemporaryDirectory()  # nothing that a test inspects goes to the user's own history
os.environ["DIFFAD_WORKSPACE"] = _KEPT.name

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from diffad.inspector import Inspector

ROOT = Path(__file__).parents[1]
PATIENCE = 120_000  # ms within which whatever a browser waits for must have come, on a busy machine
DESKTOP = {"width": 1440, "height": 1060}
BROWSER_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",  # a camera that shows a clock face
]


@contextmanager
def serving() -> Iterator[str]:
    """The address of a page that `python app.py` serves, on a free port given by Gradio's own variable."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    kept = tempfile.TemporaryDirectory()  # a history of its own
    environment = os.environ | {
        "GRADIO_SERVER_PORT": str(port), "DISPLAY": "", "WAYLAND_DISPLAY": "", "DIFFAD_WORKSPACE": kept.name,
    }  # fmt: skip
    server = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=environment)
    address = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(480):
            assert server.poll() is None, "app.py ended instead of serving"
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                time.sleep(0.25)
        else:
            raise AssertionError("app.py did not serve within two minutes")
        yield address
    finally:
        server.terminate()
        server.wait(20)
        kept.cleanup()


@pytest.fixture(scope="session")
def bundled_model() -> Path:
    """The checkpoint with which the page opens."""
    path = ROOT / "checkpoints" / "parts.safetensors"
    assert path.is_file(), "checkpoints/parts.safetensors is missing; it belongs to the repository"
    return path


@pytest.fixture(scope="session")
def inspector(bundled_model: Path) -> Inspector:
    from diffad.inspector import Inspector

    return Inspector.load(bundled_model, device="cpu")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium: the system's, else Playwright's own. None is a failure, not a skip."""
    from playwright.sync_api import Error, expect, sync_playwright

    expect.set_options(timeout=PATIENCE)

    found = next((path for name in BROWSER_NAMES if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=BROWSER_FLAGS)
        except Error as error:
            pytest.fail(f"No browser for the page's tests (`make browser` installs one): {error.message}")
        yield browser
        browser.close()


@contextmanager
def visiting(browser: Browser, url: str, **context_settings: Any) -> Iterator[Page]:
    """A fresh session, once the page stands. Errors in the console, and requests that leave this machine,
    fail the test that made it.
    """
    context = browser.new_context(**({"viewport": DESKTOP, "accept_downloads": True} | context_settings))
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda request: None if stays(request.url) else trouble.append(request.url))
    page.goto(url)
    page.locator("#samples button").first.wait_for()
    yield page
    context.close()
    assert trouble == []


def at_rest(page: Page) -> None:
    """Waits until no colour is on its way to another, which axe would take for too little contrast."""
    page.wait_for_function("document.getAnimations().every(each => each.playState !== 'running')")


def stays(address: str) -> bool:
    return address.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:"))


@pytest.fixture(scope="session")
def url(bundled_model: Path) -> Iterator[str]:
    """The page as `python app.py` serves it; a module may have its own."""
    with serving() as address:
        yield address


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders called "locked" are somebody else's: nothing may be known of what is inside."""
    look, list_all = Path.is_dir, Path.iterdir

    def guarded(folder: Path) -> None:
        if folder.name == "locked":
            raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "is_dir", lambda path: guarded(path.parent) or look(path))
    monkeypatch.setattr(Path, "iterdir", lambda path: guarded(path) or list_all(path))


@pytest.fixture(scope="session")
def defective(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part with a defect that the bundled model has not seen."""
    from PIL import Image

    from diffad.synthetic.parts import CATEGORIES, make_part

    path = tmp_path_factory.mktemp("parts") / "defective.png"
    Image.fromarray(make_part(CATEGORIES[0], 90_001, "dent").image).save(path)
    return path


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """A fresh session at the module's `url`."""
    with visiting(browser, url) as page:
        yield page
