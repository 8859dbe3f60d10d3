"""The history on servers of their own: roles, no history, a restart, very many inspections."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import visiting
from history_steps import correction, is_said, listed, open_history
from page_steps import inspect
from playwright.sync_api import Browser, Page, expect
from test_interfaces import served
from workspace_cases import fill

from diffad.inspector import Inspector
from diffad.workspace.history import History
from diffad.workspace.roles import Login
from diffad.workspace.store import Workspace

MANY = 100_000


@contextmanager
def logged_in(browser: Browser, url: str, user: str) -> Iterator[Page]:
    """As `visiting`, for somebody whose password is "x"."""
    context = browser.new_context()
    assert context.request.post(f"{url}/login", form={"username": user, "password": "x"}).ok
    state = context.storage_state()
    context.close()
    with visiting(browser, url, storage_state=state) as page:
        yield page


def test_roles_are_enforced_by_the_server(browser: Browser, inspector: Inspector, tmp_path: Path):
    accounts = [Login("ina", "x", "inspect"), Login("cora", "x", "correct"), Login("tim", "x")]
    with Workspace.open(tmp_path / "w") as workspace:
        history = History(workspace)
        with served(inspector, tmp_path / "c", workspace=workspace, auth=accounts) as url:
            with logged_in(browser, url, "ina") as page:
                inspect(page, "gear_good")
                open_history(page, 1)
                page.locator("#history .history-rows tbody tr").click()
                expect(page.locator(".history-detail .reopen")).to_be_visible()
                for button in (".correction button", ".delete", ".draw", ".undo"):
                    expect(page.locator(f".history-detail {button}").first).to_be_hidden()
                assert [entry.who for entry in history.find()[0]] == ["ina"]
                number = history.find()[0][0].id
                for name, asked in (
                    ("correct", {"correction": "good"}), ("undo", {}), ("remove", {"ids": [number]}),
                ):  # fmt: skip
                    refused = crafted(page, "history", name, {"id": number, **asked})
                    assert "Your login may not" in refused["refused"], (name, refused)
                page.get_by_role("tab", name="Inspect").click()
                page.evaluate("() => document.querySelector('#correction .correction button').click()")
                expect(page.get_by_text("Your login may not correct verdicts")).to_be_visible()
                assert history.find()[0][0].correction == ""
            with logged_in(browser, url, "cora") as page:
                open_history(page, 1)
                page.locator("#history .history-rows tbody tr").click()
                correction(page, ".history-detail", "right").wait_for()
                page.keyboard.press("y")
                is_said(page, ".history-detail", "right")
                expect(page.locator(".history-detail .delete")).to_be_hidden()
                assert "may not delete" in crafted(page, "history", "remove", {"ids": [number]})["refused"]
                assert history.find()[0][0].corrected_by == "cora"
            with logged_in(browser, url, "tim") as page:
                open_history(page, 1)
                page.locator("#history .history-rows tbody tr").click()
                expect(page.locator(".history-detail .delete")).to_be_visible()


def crafted(page: Page, element: str, name: str, data: dict) -> dict:
    """What the server answers to a question that the page itself would not ask."""
    return page.evaluate(
        """async ([element, fn_name, data]) => {
            const config = window.gradio_config ?? await (await fetch("config")).json();
            const { id } = config.components.find(each => each.props?.elem_id === element);
            const answer = await fetch("gradio_api/component_server", {
                method: "POST", headers: { "Content-Type": "application/json" },
                body: JSON.stringify({ data, component_id: id, fn_name, session_hash: "crafted" }),
            });
            return answer.json();
        }""",
        [element, name, data],
    )


def test_without_a_history_nothing_is_kept(browser: Browser, inspector: Inspector, tmp_path: Path):
    with served(inspector, tmp_path) as url, visiting(browser, url) as page:
        inspect(page, "gear_good")
        for name in ("#keep", "#correction"):
            expect(page.locator(name)).to_be_hidden()
        expect(page.get_by_role("tab", name="History")).to_have_count(0)


def test_a_restart_keeps_the_history_and_a_second_server_is_refused(
    browser: Browser, inspector: Inspector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    from diffad.cli.main import main

    with Workspace.open(tmp_path / "w") as workspace:
        with served(inspector, tmp_path / "c", workspace=workspace) as url, visiting(browser, url) as page:
            inspect(page, "gear_good")  # the server ends at once: what waits to be kept is kept first
        monkeypatch.setattr("diffad.cli.serving.load_inspector", lambda *_: pytest.fail("a model was loaded"))
        assert main(["serve", "--workspace", str(tmp_path / "w")]) == 2
        assert "another diffad server uses the workspace" in capsys.readouterr().err
    with Workspace.open(tmp_path / "w") as workspace:
        with served(inspector, tmp_path / "c", workspace=workspace) as url, visiting(browser, url) as page:
            open_history(page, 1)


def test_a_hundred_thousand_inspections(browser: Browser, inspector: Inspector, tmp_path: Path):
    with Workspace.open(tmp_path / "w") as workspace:
        fill(workspace, MANY)
        with served(inspector, tmp_path / "c", workspace=workspace) as url, visiting(browser, url) as page:
            took = {}
            begun = time.monotonic()
            open_history(page, MANY)
            took["list"] = time.monotonic() - begun
            for name, field, value, count in (
                ("text", "text", "teil_9999", 11), ("category", "category", "category 3", 1),
                ("all", "text", "", MANY // 8),
            ):  # fmt: skip
                begun = time.monotonic()
                control = page.locator(f".history-filters [name={field}]")
                control.fill(value) if field == "text" else control.select_option(value)
                listed(page, count)
                took[name] = time.monotonic() - begun
            begun = time.monotonic()
            page.wait_for_function("() => document.querySelector('.drift-slot svg')")
            took["drift"] = time.monotonic() - begun
            print({name: round(seconds, 2) for name, seconds in took.items()})
            assert max(seconds for name, seconds in took.items() if name != "drift") < 2, took
            expect(page.locator(".report-slot")).to_contain_text("12500")
