"""Shared by the tests: the bundled model, and a browser for the page's tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from diffad.inspector import Inspector

ROOT = Path(__file__).parents[1]
BROWSER_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]


@contextmanager
def serving() -> Iterator[str]:
    """The address of a page that `python app.py` serves, on a free port given by Gradio's own variable."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port), "DISPLAY": "", "WAYLAND_DISPLAY": ""}
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
    from playwright.sync_api import Error, sync_playwright

    found = next((path for name in BROWSER_NAMES if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=BROWSER_FLAGS)
        except Error as error:
            pytest.fail(f"No browser for the page's tests (`make browser` installs one): {error.message}")
        yield browser
        browser.close()
