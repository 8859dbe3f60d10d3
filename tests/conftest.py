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
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

# Read when torch is loaded, here and in what the tests start: results are then the same to the last bit
# however busy the machine is (`diffad.method.devices`).
os.environ["OMP_NUM_THREADS"] = "1"

_KEPT = tempfile.TemporaryDirectory()  # nothing that a test inspects goes to the user's own history
os.environ["DIFFAD_WORKSPACE"] = _KEPT.name

if TYPE_CHECKING:
    import gradio as gr
    import httpx
    from playwright.sync_api import Browser, Page

    from diffad.inspection import Inspection
    from diffad.inspector import Inspector
    from diffad.ui import downloads

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


LONG = (
    "test_ui_",
    "test_page_",
    "test_teaching_",
    "test_repairing",
    "test_cli_models",
    "test_inspector",
    "test_output",
)


def pytest_configure(config: pytest.Config) -> None:
    """Files go to the workers of `pytest -n` in the order of their tests, not by how many tests they hold."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take long come first, so that all workers end at about the same time."""
    items.sort(key=lambda item: not item.path.name.startswith(LONG))


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


@contextmanager
def few_looks() -> Iterator[None]:
    """Every good picture is looked at less often than usual, where the numbers do not matter: one changed
    copy instead of four, artificial defects on three pictures instead of 24.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffad.teaching.statistics.copies_of", lambda count: 1)
        patch.setattr("diffad.teaching.statistics.SPOILED", 3)
        yield


@pytest.fixture(scope="module")
def quick_statistics() -> Iterator[None]:
    with few_looks():
        yield


@pytest.fixture(scope="session")
def small_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gears and chips of 64 px, twelve good ones of each."""
    from diffad.synthetic.parts import CATEGORIES, write_set

    folder = tmp_path_factory.mktemp("parts")
    return write_set(folder, CATEGORIES[:2], train=12, good=2, defective=4, size=64, seed=3)


@pytest.fixture(scope="session")
def trained(small_parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, hardly trained on `small_parts`, with all files that a training leaves."""
    from small_training import config

    from diffad.teaching.training import train

    with few_looks():
        out = tmp_path_factory.mktemp("run") / "m.safetensors"
        return train(config(steps=30, licence="free"), [small_parts], out)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What every command of `diffad` loads instead of a model."""
    from cli_steps import Toy

    from diffad.cli import common
    from diffad.inspector import Inspector

    inspector = Toy()
    monkeypatch.setattr(Inspector, "load", classmethod(lambda cls, path, device="auto": inspector))
    monkeypatch.setattr(common, "default_checkpoint", lambda: Path("toy.safetensors"))
    return inspector


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
def url(inspector: Inspector) -> Iterator[str]:
    """The page with the bundled model, under two names, on a real server; a module may have its own."""
    from diffad.ui import serve

    models = {"parts": inspector, "others": inspector}
    app = serve(models, "127.0.0.1", open_browser=False, block=False)
    yield app.local_url
    app.close(verbose=False)


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
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The server's clock, which a test puts ahead."""
    from diffad.ui import files

    clock = SimpleNamespace(ahead=0.0)
    now = time.time()
    monkeypatch.setattr(files, "clock", lambda: now + clock.ahead)
    return clock


@pytest.fixture
def one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repairs of one round, which end sooner."""
    monkeypatch.setattr("diffad.repairing._ROUNDS", 1)


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """A fresh session at the module's `url`."""
    with visiting(browser, url) as page:
        yield page


@pytest.fixture(scope="module")
def app(inspector: Inspector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[gr.Blocks]:
    """A server in this process with small limits."""
    from server_steps import GOOD

    from diffad.ui import serve

    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(tmp_path_factory.mktemp("cache"))
    app = serve(
        {"parts": inspector}, "127.0.0.1", open_browser=False, block=False, max_tiles=4,
        data_root=GOOD.parent,
    )  # fmt: skip
    yield app
    app.close(verbose=False)
    os.environ.pop("GRADIO_TEMP_DIR")
    if before is not None:
        os.environ["GRADIO_TEMP_DIR"] = before


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    """A client of the module's `url`."""
    import httpx
    from server_steps import MINUTE

    with httpx.Client(base_url=url, timeout=MINUTE, trust_env=False) as http:
        yield http


@pytest.fixture(scope="module")
def inspection(inspector: Inspector) -> Inspection:
    """Of a gear with a broken tooth."""
    return inspector.inspect(ROOT / "assets" / "samples" / "gear_broken_tooth.png")


@pytest.fixture(scope="module")
def film(inspector: Inspector, inspection: Inspection) -> downloads.Film:
    """Of a repair of one round."""
    from diffad.method.repair_options import RepairOptions
    from diffad.ui import downloads

    film = downloads.Film(inspection, inspection.timesteps, inspection.threshold, lambda data, name: name)
    options = RepairOptions(steps=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffad.repairing._ROUNDS", 1)
        for step in inspector.repair(inspection.image, inspection.category, options=options):
            film.add(step)
    film.ending = "done"
    return film
