"""Strangers, people who guess passwords or try other people's files, and a server without room."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import httpx
import pytest
from conftest import PATIENCE
from server_steps import GOOD, MINUTE, call, file, served, upload

from diffad.inspector import Inspector
from diffad.ui import files
from diffad.ui.logins import FREE, LONGEST_WAIT, REMEMBERED, Logins, address

API = "/gradio_api"


@pytest.fixture(scope="module")
def url(app: gr.Blocks) -> str:
    return app.local_url.rstrip("/")


@pytest.fixture(autouse=True)
def log(capfd: pytest.CaptureFixture) -> Iterator[None]:
    """No caller's mistake puts a stack trace in the log."""
    yield
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err


ROUTES = ["call/inspect", "call/v2/inspect", "run/inspect", "api/inspect", "queue/join", "run/predict",
          "cancel", "reset", "component_server"]  # fmt: skip


# -- logins ------------------------------------------------------------------------------------------------


def login(url: str, user: str, password: str) -> httpx.Response:
    sent = {"username": user, "password": password}
    return httpx.post(f"{url}/login", data=sent, trust_env=False, timeout=MINUTE)


def test_wrong_logins_wait_longer_and_longer(inspector: Inspector, tmp_path: Path, clock):
    with served(inspector, tmp_path, auth=[("anna", "right"), ("bob", "good")]) as url:
        answers = [login(url, "anna", "wrong") for _ in range(50)]
        assert [each.status_code for each in answers[:3]] == [400] * 3
        assert {each.status_code for each in answers[3:]} == {429}
        assert "wait 1 s" in answers[3].json()["detail"] and answers[3].headers["retry-after"] == "1"
        assert login(url, "anna", "right").status_code == 429  # not even then
        assert login(url, "bob", "good").status_code == 200  # others are not kept out
        for seconds in (1, 2, 4, 8):
            clock.ahead += seconds + 0.01
            assert login(url, "anna", "wrong").status_code == 400
            assert f"wait {2 * seconds} s" in login(url, "anna", "wrong").text
        clock.ahead += 16.01
        assert login(url, "anna", "right").status_code == 200
        assert login(url, "anna", "wrong").status_code == 400  # and counts from the beginning


def test_logins_of_one_address_wait_and_memory_is_bounded(clock):
    logins = Logins([("anna", "right")])
    address.set("192.0.2.1")
    for number in range(FREE["address"]):
        assert not logins(f"nobody {number}", "wrong")
    with pytest.raises(Exception, match="wait 1 s") as refusal:
        logins("anna", "right")
    assert refusal.value.status_code == 429
    address.set("192.0.2.2")
    assert logins("anna", "right")
    for number in range(2 * REMEMBERED):
        address.set(str(number))
        logins(str(number), "wrong")
    assert len(logins._wrong) == REMEMBERED
    for _ in range(20):
        clock.ahead += LONGEST_WAIT
        assert not logins("anna", "wrong")  # never longer than that


@pytest.fixture(scope="module")
def guarded(inspector: Inspector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    accounts = [("anna", "right"), ("bob", "good")]
    with served(inspector, tmp_path_factory.mktemp("guarded"), auth=accounts) as address:
        yield address


def person(url: str, user: str, password: str) -> httpx.Client:
    client = httpx.Client(base_url=url, timeout=MINUTE, trust_env=False)
    assert client.post("/login", data={"username": user, "password": password}).status_code == 200
    return client


def test_strangers_see_the_login_page_and_health_alone(app, guarded):
    with httpx.Client(base_url=guarded, trust_env=False) as stranger:
        page = stranger.get("/")
        assert page.status_code == 200 and "Log in" in page.text
        assert "gradio" not in page.text and "inspect" not in page.text.lower()
        for path in ("/health", "/favicon.ico"):
            assert stranger.get(path).status_code == 200
        routes = {route.path for route in app.app.routes if hasattr(route, "path")}
        routes |= {f"{API}/{name}" for name in (
            "info", "openapi.json", "config", "heartbeat/a", "queue/status", "mcp/", "user", "app_id",
            "token", "file=/etc/passwd", "call/inspect/a", "theme.css",
        )}  # fmt: skip
        routes |= {"/openapi.json", "/docs", "/redoc", "/config", "/theme.css", "/manifest.json", "/assets/x"}
        open_to_all = {"/", "/health", "/favicon.ico", "/login", "/login/", "/logout", "/logout/"}
        for path in sorted(routes - open_to_all):
            answer = stranger.get(path.replace("{", "").replace("}", ""))
            assert answer.status_code in (401, 404), path
            assert set(answer.json()) == {"detail"}
        for route in (*ROUTES, "upload", "call/categories"):
            assert stranger.post(f"{API}/{route}", json={"data": [None]}).status_code == 401


def test_a_file_belongs_to_who_uploaded_or_made_it(guarded):
    anna, bob = person(guarded, "anna", "right"), person(guarded, "bob", "good")
    (path,) = upload(anna, GOOD).json()
    event, (result, picture) = call(anna, "inspect", image=file(path))
    assert event == "complete" and result["category"] == "gear"
    for mine in (path, picture["path"]):
        assert anna.get(f"{API}/file={mine}").status_code == 200
        for way in (f"{API}/file={mine}", f"{API}/file/{mine}", f"{API}/file={mine}?x=1"):
            refused = bob.get(way)
            assert refused.status_code == 403 and "not yours" in refused.text and mine not in refused.text
        assert httpx.get(f"{guarded}{API}/file={mine}", trust_env=False).status_code == 401
        for body in ({"image": file(mine)}, {"image": file(f"{guarded}{API}/file={mine}")},
                     {"image": None, "timesteps": {"deep": [file(mine)]}}):  # fmt: skip
            named = bob.post(f"{API}/call/v2/inspect", json=body)
            assert named.status_code == 400 and "not uploaded here" in named.text
        event_of_the_page = {"data": [[file(mine)]], "fn_index": 0, "session_hash": "b"}
        assert bob.post(f"{API}/queue/join", json=event_of_the_page).status_code == 400
    assert bob.get(f"{API}/call/inspect/unknown").status_code == 404
    (same,) = upload(bob, GOOD).json()  # who has the same picture has it
    assert same == path
    assert bob.get(f"{API}/file={path}").status_code == 200


def test_the_login_page_says_how_long_to_wait(browser, inspector: Inspector, tmp_path: Path, clock):
    from playwright.sync_api import expect

    with served(inspector, tmp_path, auth=[("anna", "right")]) as url:
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(url)
        page.get_by_label("User").fill("anna")
        message = page.get_by_role("alert")
        for _ in range(8):
            page.get_by_label("Password").fill("wrong")
            page.get_by_role("button", name="Log in").click()
            expect(message).not_to_be_empty()
            if "try again" in message.inner_text():
                break
            expect(message).to_have_text("Incorrect credentials.")
        seconds = int(re.fullmatch(r"There .* wait (\d+) s, then try again\.", message.inner_text())[1])
        clock.ahead += seconds
        page.get_by_label("Password").fill("right")
        page.get_by_role("button", name="Log in").click()
        page.locator("#samples button").first.click()
        page.locator("#verdict .verdict-slot[data-score]").wait_for()
        image = page.locator("#picture img")
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 256
        page.close()


# -- storage -----------------------------------------------------------------------------------------------


def test_an_upload_without_room_is_refused_and_what_is_old_goes_by_itself(
    inspector: Inspector, tmp_path: Path, clock, monkeypatch
):
    monkeypatch.setattr("diffad.ui.server.SWEPT_EVERY", 0.05)
    with (
        served(inspector, tmp_path, max_storage=0.001) as url,
        httpx.Client(base_url=url, timeout=MINUTE, trust_env=False) as http,
    ):
        (path,) = upload(http, GOOD).json()
        big = tmp_path / "big.png"
        big.write_bytes(b"0" * 2_000_000)
        refused = upload(http, big)
        assert refused.status_code == 507
        assert "The 0.001 GB that this server has for pictures are taken: wait" in refused.text
        assert Path(path).exists()
        clock.ahead = files.KEPT + 60
        deadline = time.time() + 20
        while Path(path).exists() and time.time() < deadline:
            time.sleep(0.02)
        assert not Path(path).exists()
        gone = http.post(f"{API}/call/v2/inspect", json={"image": file(path)})
        assert gone.status_code == 400 and "no longer here: upload it first" in gone.text


def test_a_server_that_is_ended_while_a_page_is_open_leaves_nothing(bundled_model: Path, tmp_path: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "diffad", "serve", "--checkpoint", bundled_model, "--port", str(port)]
    quiet = {"GRADIO_TEMP_DIR": str(tmp_path), "DISPLAY": "", "WAYLAND_DISPLAY": ""}
    server = subprocess.Popen(command, env=os.environ | quiet, cwd=GOOD.parents[2], stderr=subprocess.PIPE)
    try:
        assert b"Ctrl+C ends it" in server.stderr.readline()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=MINUTE, trust_env=False) as http:
            upload(http, GOOD)
            with http.stream("GET", f"{API}/heartbeat/a") as page:
                next(page.iter_bytes())
                assert [each for each in tmp_path.rglob("*") if each.is_file()]
                server.terminate()
                server.wait(30)
        assert not list(tmp_path.glob("diffad-server-*"))
        assert "Traceback" not in server.stderr.read().decode()
    finally:
        server.kill()
