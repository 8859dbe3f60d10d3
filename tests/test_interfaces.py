"""What programs may rely on: named endpoints, plain HTTP, login, health, limits; on real servers."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from server_steps import DEFECTIVE, GOOD, MINUTE, ROOT, call, file, served, upload

from diffad.inspector import Inspector
from diffad.ui import serve


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def url(inspector: Inspector, root: Path) -> Iterator[str]:
    (root / "data").mkdir()
    (root / "data" / "part.png").write_bytes(GOOD.read_bytes())
    with served(inspector, root / "cache", data_root=root / "data", max_upload=1) as address:
        yield address


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=MINUTE, trust_env=False) as http:
        yield http


@pytest.fixture(scope="module")
def client(url: str) -> Client:
    return Client(url, verbose=False)


@pytest.fixture(scope="module")
def broken(root: Path) -> Path:
    path = root / "broken.png"
    path.write_text("this is no picture")
    return path


# -- gradio_client ------------------------------------------------------------------------------------------


def test_inspect_says_what_the_library_says(client: Client, inspector: Inspector):
    result, picture = client.predict(handle_file(DEFECTIVE), alpha=0.3, api_name="/inspect")
    expected = inspector.inspect(DEFECTIVE, alpha=0.3).to_dict()
    assert result["score"] == pytest.approx(expected["score"], rel=1e-3)
    assert result["regions"][0]["box"] == expected["regions"][0]["box"]
    assert result["is_anomalous"] and result["category"] == "gear" and result["recognised"]
    with Image.open(picture) as opened:
        assert opened.size == (256, 256)


def test_batch_answers_for_every_picture_and_a_broken_one_is_an_entry(client: Client, broken: Path):
    files = [handle_file(path) for path in (DEFECTIVE, broken, GOOD)]
    bad, error, good = client.predict(files, api_name="/batch")
    assert [entry["name"] for entry in (bad, error, good)] == [p.name for p in (DEFECTIVE, broken, GOOD)]
    assert bad["is_anomalous"] and not good["is_anomalous"]
    assert (bad["verdict"], good["verdict"]) == ("anomalous", "good")
    assert set(error) == {"name", "error"}
    assert error["error"].startswith("broken.png is not a picture")


@pytest.fixture
def deep(tmp_path: Path) -> list[Path]:
    """A bright and a dark picture of a part by a camera of 12 bits, in files of 16."""
    part = np.asarray(Image.open(DEFECTIVE).convert("L")).astype(np.uint16)
    for name, factor in (("bright", 16), ("dark", 2)):
        Image.fromarray(part * np.uint16(factor)).save(tmp_path / f"{name}.png")
    return [tmp_path / "bright.png", tmp_path / "dark.png"]


def test_how_many_bits_were_read_is_answered(client: Client, deep: list[Path]):
    levels = {"timesteps": [200]}
    result, _ = client.predict(handle_file(deep[1]), **levels, api_name="/inspect")
    assert result["bits"] == 10 and "Read as 10 bits" in result["notes"][0]
    result, _ = client.predict(handle_file(deep[1]), bits=12, **levels, api_name="/inspect")
    assert result["bits"] == 12 and not any("bits" in note for note in result["notes"])
    rows = client.predict([handle_file(path) for path in deep], **levels, api_name="/batch")
    assert [row["bits"] for row in rows] == [12, 12]
    assert not any("bits" in note for row in rows for note in row["notes"])
    result, _, _ = client.predict(handle_file(deep[1]), steps=1, api_name="/repair")
    assert "Read as 10 bits" in result["notes"][0]


def test_repair_brings_numbers_picture_and_film(client: Client, one_round: None):
    result, picture, film = client.predict(
        handle_file(DEFECTIVE), category="gear", steps=5, api_name="/repair"
    )
    assert len(result["mahalanobis"]) == len(result["scores"]) == 1 + 5  # the untouched picture's, then steps
    with Image.open(picture) as repaired, Image.open(film) as frames:
        assert repaired.size == (256, 256)
        assert frames.format == "GIF" and frames.n_frames > 1


def test_categories(client: Client, inspector: Inspector):
    known = client.predict(api_name="/categories")
    assert [entry["category"] for entry in known] == list(inspector.categories)
    for entry in known:
        assert entry["threshold"] == inspector.threshold(entry["category"])
        assert entry["look_threshold"] == inspector.threshold(entry["category"], rate=0.1)


def test_both_limits_may_be_given(client: Client):
    limits = {"threshold": 500, "look_threshold": 2, "timesteps": [200]}
    result, _ = client.predict(handle_file(DEFECTIVE), **limits, api_name="/inspect")
    assert (result["verdict"], result["is_anomalous"], result["look_threshold"]) == ("look", False, 2)
    assert result["regions"]
    (row,) = client.predict([handle_file(DEFECTIVE)], **limits, api_name="/batch")
    assert (row["verdict"], row["look_threshold"], row["regions"]) == ("look", 2, result["regions"])
    low, _ = client.predict(handle_file(GOOD), threshold=-3, timesteps=[200], api_name="/inspect")
    assert (low["verdict"], low["look_threshold"]) == ("anomalous", -3)


def test_only_the_named_endpoints_are_public(client: Client):
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(named) == {"/inspect", "/batch", "/repair", "/categories"}


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"alpha": 7}, "alpha must be between 0 and 1"),
    ({"alpha": "much"}, "alpha is a number, not 'much'"),
    ({"timesteps": ["x"]}, "list of whole numbers"),
    ({"timesteps": [5000]}, "between 0 and 999"),
    ({"draws": 99}, "draws must be from 1"),
    ({"category": "teapot"}, "no category 'teapot'"),
    ({"model": "other"}, "No model 'other' here; there are: parts"),
])  # fmt: skip
def test_a_wrong_setting_is_answered_with_a_sentence(client: Client, settings: dict, sentence: str):
    with pytest.raises(AppError, match=sentence):
        client.predict(handle_file(DEFECTIVE), **settings, api_name="/inspect")


def test_a_broken_picture_is_named_without_the_servers_paths(client: Client, broken: Path):
    with pytest.raises(AppError, match=r"broken\.png is not a picture") as refusal:
        client.predict(handle_file(broken), api_name="/inspect")
    assert "/" not in str(refusal.value)


def test_http_upload_call_result(http: httpx.Client):
    (path,) = upload(http, DEFECTIVE).json()
    event, (result, picture) = call(http, "inspect", image=file(path))
    assert event == "complete" and result["is_anomalous"]
    shown = httpx.get(picture["url"], trust_env=False, timeout=MINUTE)
    assert Image.open(io.BytesIO(shown.content)).size == (256, 256)


def test_http_refusals_are_sentences(http: httpx.Client):
    event, answer = call(http, "categories", model="other")
    assert event == "error" and "No model 'other' here" in answer["error"]
    for name, wanted in (("inspect", "image"), ("nothing", "nothing")):
        missing = http.post(f"/gradio_api/call/v2/{name}", json={})
        assert missing.status_code == 400 and wanted in missing.json()["detail"]


def test_an_upload_above_the_limit_is_refused(http: httpx.Client, root: Path):
    large = root / "large.png"
    large.write_bytes(b"0" * 2_000_000)
    refused = upload(http, large)
    assert refused.status_code == 413 and "maximum allowed size" in refused.text


def test_a_decompression_bomb_is_refused(http: httpx.Client, root: Path):
    bomb = root / "bomb.png"
    Image.new("1", (15_000, 15_000)).save(bomb)
    assert bomb.stat().st_size < 1_000_000
    (path,) = upload(http, bomb).json()
    event, answer = call(http, "inspect", image=file(path))
    assert event == "error" and "million pixels" in answer["error"]


@pytest.mark.parametrize("path", [
    "/etc/passwd", "../../../../etc/passwd", "checkpoints/parts.safetensors", "README.md",
    str(ROOT / "checkpoints" / "parts.safetensors"), "{root}/data/part.png",
    "{root}/cache",
])  # fmt: skip
def test_no_other_file_is_served(http: httpx.Client, root: Path, path: str):
    answer = http.get("/gradio_api/file=" + path.format(root=root))
    assert answer.status_code in (403, 404)


def test_health(http: httpx.Client, inspector: Inspector):
    health = http.get("/health").json()
    assert health["status"] == "ok" and health["device"] == "cpu"
    assert health["models"][0]["categories"] == list(inspector.categories)
    assert health["queue"] == {"waiting": 0, "running": 0}


def test_two_at_once_get_their_own_answers(client: Client):
    """Different pictures and settings, sent together, do not mix."""
    jobs = [
        client.submit(handle_file(path), alpha=alpha, api_name="/inspect")
        for path in (DEFECTIVE, GOOD) for alpha in (0.1, 0.9)
    ]  # fmt: skip
    answers = [job.result(MINUTE)[0] for job in jobs]
    assert [answer["alpha"] for answer in answers] == [0.1, 0.9, 0.1, 0.9]
    assert [answer["is_anomalous"] for answer in answers] == [True, True, False, False]


# -- what the README shows ----------------------------------------------------------------------------------


def example(kind: str, url: str) -> str:
    """The README's example for programs, for this server."""
    programs = (ROOT / "README.md").read_text(encoding="utf-8").split("## Programs")[1]
    (found,) = re.findall(rf"```{kind}\n(.*?)```", programs.split("\n## ")[0], re.DOTALL)
    assert "http://127.0.0.1:7860" in found
    return found.replace("http://127.0.0.1:7860", url)


def run(command: list[str]) -> list[str]:
    environment = os.environ | {"NO_PROXY": "127.0.0.1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=MINUTE)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_readmes_python_runs(url: str):
    lines = run([sys.executable, "-c", example("python", url)])
    assert [line for line in lines if line.startswith("gear anomalous ")]
    assert lines[-2:] == ["gear_broken_tooth.png anomalous", "gear_good.png good"]


def test_the_readmes_curl_runs(url: str):
    lines = run(["bash", "-euo", "pipefail", "-c", example("sh", url)])
    events = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert events[-1] == "complete"
    result, _ = json.loads([line for line in lines if line.startswith("data: ")][-1].removeprefix("data: "))
    assert result["category"] == "gear" and result["is_anomalous"]


# -- login and what is left behind --------------------------------------------------------------------------


def test_login_health_and_cleaning_up(inspector: Inspector, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("DIFFAD_AUTH", "anna:pass:word\nbob:secret")
    with served(inspector, tmp_path / "cache") as url:
        assert httpx.get(f"{url}/health", trust_env=False).json()["status"] == "ok"
        for path in ("config", "gradio_api/info", "gradio_api/file=/etc/passwd"):
            assert httpx.get(f"{url}/{path}", trust_env=False).status_code == 401
        stranger = httpx.post(f"{url}/gradio_api/call/v2/categories", json={}, trust_env=False)
        assert stranger.status_code == 401
        client = Client(url, auth=("anna", "pass:word"), verbose=False)
        result, _ = client.predict(handle_file(GOOD), api_name="/inspect")
        assert not result["is_anomalous"]
        assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_mcp_where_it_is_not_installed(inspector: Inspector, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="MCP is not installed"):
        serve({"parts": inspector}, block=False, open_browser=False, mcp=True)


@pytest.mark.parametrize(("options", "sentence"), [
    (["--auth", "{tmp}/missing"], "No such file"),
    (["--auth", "{tmp}/empty"], "is empty"),
    (["--auth", "{tmp}/wrong"], "not user:password"),
    (["--data-root", "{tmp}/missing"], "--data-root names a folder"),
    (["--checkpoint", "{model}", "{model}"], "two models are named parts"),
    (["--max-upload", "0"], "from 1 to"),
    (["--max-storage", "0"], "from 0.1 to"),
    (["--max-tiles", "0"], "from 1 to"),
])  # fmt: skip
def test_serve_refuses_in_one_sentence(options, sentence, tmp_path, bundled_model, capfd):
    from diffad.cli.main import main

    (tmp_path / "empty").touch()
    (tmp_path / "wrong").write_text("anna")
    given = [option.format(tmp=tmp_path, model=bundled_model) for option in options]
    assert main(["serve", *given]) == 2
    message = capfd.readouterr().err
    assert sentence in message and "Traceback" not in message


@pytest.mark.skipif(find_spec("mcp") is None, reason="needs diffad[mcp]")
def test_mcp_offers_the_endpoints_as_tools(inspector: Inspector, tmp_path: Path):
    import anyio
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def tools(url: str) -> set[str]:
        async with streamablehttp_client(f"{url}/gradio_api/mcp/") as (read, write, _):
            async with ClientSession(read, write) as session:
                await session.initialize()
                return {tool.name.removeprefix("diffad_") for tool in (await session.list_tools()).tools}

    with served(inspector, tmp_path, mcp=True) as url:
        assert anyio.run(tools, url) == {"inspect", "batch", "repair", "categories"}
