"""What a real server answers to malformed calls: one sentence each, which reveals nothing of it, and no stack
trace in its log.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image
from server_steps import DEFECTIVE, GOOD, MINUTE, call, file, upload

from diffad.ui.turns import Unwanted

JSON = {"Content-Type": "application/json"}

API = "/gradio_api"

TELLTALE = ("Traceback", "<class", "NoneType", "pydantic", "site-packages", "Error(", "TypeError", "KeyError",
            "ValidationError", "FnIndex", "gradio cache", "/tmp", str(Path(__file__).parents[1]))  # fmt: skip

PLAIN = "gradio.FileData"


@pytest.fixture(scope="module")
def url(app: gr.Blocks) -> str:
    return app.local_url.rstrip("/")


@pytest.fixture(scope="module")
def good(http: httpx.Client) -> dict:
    (path,) = upload(http, GOOD).json()
    return file(path)


@pytest.fixture(autouse=True)
def log(capfd: pytest.CaptureFixture) -> Iterator[None]:
    """No caller's mistake puts a stack trace in the log."""
    yield
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err


def is_a_sentence(answer: str) -> str:
    """Checks that an answer is not empty and reveals nothing of the server; returns it."""
    assert answer.strip()
    found = [word for word in TELLTALE if word in answer.replace(PLAIN, "")]
    assert not found, (found, answer)
    return answer


def asked(http: httpx.Client, name: str, body: dict) -> str:
    """A call's answer, whether it is refused at once or in its stream."""
    posted = http.post(f"{API}/call/{name}", content=json.dumps(body), headers=JSON)
    if posted.status_code != 200:
        assert 400 <= posted.status_code < 500
        return posted.text
    return http.get(f"{API}/call/{name}/{posted.json()['event_id']}").text


# -- malformed calls ---------------------------------------------------------------------------------------


NONSENSE = ["x", -7, 1e300, float("nan"), True, ["x"], [{}], {"a": 1}, "\ud800\0", {"path": "x"},
            [[[[[]]]]], file("/etc/passwd"), [file("../../etc/passwd")], file("http://127.0.0.1:9/a.png"),
            {"url": "http://127.0.0.1:9/a.png", "meta": {"_type": PLAIN}},
            {"url": "data:image/png;base64,AAAA", "meta": {"_type": PLAIN}}]  # fmt: skip

# Values from NONSENSE that are valid for an input.
SENSE = {("repair", "seed"): [-7], ("inspect", "seed"): [-7], ("batch", "seed"): [-7],
         ("inspect", "threshold"): [-7], ("batch", "threshold"): [-7],
         ("inspect", "look_threshold"): [-7], ("batch", "look_threshold"): [-7]}  # fmt: skip

LABELS = {
    "inspect": [
        "image",
        "category",
        "timesteps",
        "alpha",
        "seed",
        "draws",
        "threshold",
        "look_threshold",
        "model",
        "bits",
    ],
    "batch": [
        "images",
        "category",
        "timesteps",
        "alpha",
        "seed",
        "draws",
        "threshold",
        "look_threshold",
        "model",
        "bits",
    ],
    "repair": ["image", "category", "steps", "denoise_every", "step_size", "method", "seed", "model", "bits"],
    "categories": ["model"],
}


@pytest.mark.parametrize(("name", "label"), [(name, each) for name, all in LABELS.items() for each in all])
def test_nonsense_in_any_input_is_answered_with_a_sentence(http, good, name, label):
    usual = {"image": good, "images": [good], "steps": 1}
    for value in NONSENSE:
        if any(value is each for each in SENSE.get((name, label), ())):
            continue
        data = [value if each == label else usual.get(each) for each in LABELS[name]]
        reply = is_a_sentence(asked(http, name, {"data": data}))
        if name == "batch" and "event: complete" in reply:  # each picture has its error
            assert '"error"' in reply
        else:
            assert "detail" in reply or "event: error" in reply, (value, reply)


def test_null_is_the_default_of_every_setting(http, good):
    reply = asked(http, "inspect", {"data": [good, *[None] * 9]})
    assert "event: complete" in reply and '"category": "gear"' in reply
    assert "Send a picture" in asked(http, "inspect", {"data": [None] * 10})
    assert "Send pictures" in asked(http, "batch", {"data": [None] * 10})
    assert "event: complete" in asked(http, "categories", {"data": [None]})


BODIES = [
    (b"", "not valid JSON"), (b"{", "not valid JSON"), (b"[" * 100_000, "not valid JSON"),
    (b"\xff\xfe", "not valid JSON"), (b"[1]", "not a JSON object"), (b"null", "not a JSON object"),
    (b"{}", ""), (b'{"data": 1}', ""), (b'{"data": null}', ""), (b'{"data": []}', "instead of"),
    (b'{"data": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]}', "instead of"),
    (b'{"data": {}, "session_hash": 7}', ""), (b'{"data": [1' + b"0" * 5000 + b"]}", ""),
    (b"x" * (17 << 20), "16 MB"),
]  # fmt: skip

ROUTES = ["call/inspect", "call/v2/inspect", "run/inspect", "api/inspect", "queue/join", "run/predict",
          "cancel", "reset", "component_server"]  # fmt: skip


@pytest.mark.parametrize("route", ROUTES)
def test_a_body_that_is_no_call_is_answered_with_a_sentence(http, route):
    for body, sentence in BODIES:
        answer = http.post(f"{API}/{route}", content=body, headers=JSON)
        assert 400 <= answer.status_code < 500, (body[:50], answer.text)
        is_a_sentence(answer.json()["detail"])
        if sentence and (sentence != "instead of" or route in ("call/inspect", "run/inspect", "api/inspect")):
            assert sentence in answer.text


@pytest.mark.parametrize(("route", "body", "sentence"), [
    ("call/nothing", {"data": []}, "There is no endpoint 'nothing' here; there are: inspect, batch"),
    ("call/answer", {"data": [None]}, "There is no endpoint 'answer'"),  # an event of the page
    ("call/v2/nothing", {}, "There is no endpoint 'nothing'"),
    ("call/v2/inspect", {}, "image is missing"),
    ("call/v2/batch", {}, "images is missing"),
    ("call/v2/inspect", {"image": None, "size": 3}, "'size' is not an input; there are: image, category"),
    ("call/v2/inspect", {"image": "part.png"}, "image is a file: upload it"),
    ("call/v2/batch", {"images": ["part.png"]}, "images are files: upload them"),
    ("call/v2/inspect", {"image": file("/etc/passwd")}, "was not uploaded here"),
    ("call/v2/inspect", {"image": file("https://example.org/a.png")}, "No address is fetched"),
    ("call/v2/inspect", {"image": None, "timesteps": [file("https://example.org/a.png")]}, "No address"),
    ("call/v2/inspect", {"image": None, "category": 3}, "category is a text"),
    ("run/inspect", {"data": [None] * 10}, "join the queue"),
    ("queue/join", {"data": [], "fn_index": 10**9, "session_hash": "a"}, "no such event"),
    ("queue/join", {"data": [], "fn_index": "x", "session_hash": "a"}, "no such event"),
    ("queue/join", {"data": [], "session_hash": "a"}, "no such event"),
    ("run/predict", {"data": [], "fn_index": -1}, "no such event"),
    ("component_server", {"data": 1, "component_id": 10**9, "session_hash": "a", "fn_name": "x"}, "nothing"),
    ("component_server", {"data": 1, "component_id": [], "session_hash": "a", "fn_name": "x"}, "nothing"),
])  # fmt: skip
def test_a_call_of_nothing_or_with_the_wrong_inputs(http, route, body, sentence):
    answer = http.post(f"{API}/{route}", json=body)
    assert 400 <= answer.status_code < 500
    assert sentence in is_a_sentence(answer.json()["detail"])


def test_a_call_without_its_kind_is_told_so(http):
    answer = http.post(f"{API}/call/inspect", content=b'{"data": [null]}')
    assert answer.status_code == 415 and "Content-Type: application/json" in answer.text


@pytest.mark.parametrize("path", [
    "/nothing", f"{API}/nothing", "/openapi.json", "/docs", "/redoc", f"{API}/vibe-edit", "/pwa_icon/5000",
    f"{API}/proxy=https://example.org", f"{API}/file=http://127.0.0.1:9/a", f"{API}/file=", f"{API}/file=%00",
    f"{API}/file={'a' * 5000}", f"{API}/file=/etc/passwd", f"{API}/file/etc/passwd", f"{API}/call/inspect/no",
    f"{API}/queue/data?session_hash=no", f"{API}/queue/data", f"{API}/upload_progress", "/static/..%2f..%2fx",
    "/assets/%00", f"{API}/custom_component/a/b/c/d", f"{API}/deep_link?session_hash=a", "/monitoring/x",
    f"{API}/stream/a/b/1/playlist.m3u8", "/config?deep_link=..%2f..",
])  # fmt: skip
def test_other_addresses(http, path):
    answer = http.get(path)
    assert 400 <= answer.status_code < 500 or path.startswith("/config")
    if not path.startswith("/config"):
        is_a_sentence(answer.text)


@pytest.mark.parametrize(("sent", "status"), [
    ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400),
    ({"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=a"}}, 400),
    ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, 400),
    ({"content": iter([b"x"])}, 411),
    ({"data": {"files": "text"}, "files": {"other": ("a.png", b"x")}}, 400),
    ({"files": {"files": ("../../a.png", b"x")}}, 200),
    ({"files": {"files": ("a" * 400 + ".png", b"x")}}, 200),
    ({"files": {"files": ("\0.png", b"x")}}, None),
])  # fmt: skip
def test_uploads_that_are_none(http, app, sent, status):
    answer = http.post(f"{API}/upload", **sent)
    assert status is None or answer.status_code == status
    if answer.status_code != 200:
        is_a_sentence(answer.text)
    else:
        for path in answer.json():
            assert Path(path).is_file() and Path(path).is_relative_to(os.environ["GRADIO_TEMP_DIR"])


EVENTS = ["x", -7, 1e300, float("nan"), [], {}, {"a": 1}, None]

EVENT_DATA = ["x", 7, [], {"index": "x", "run": [], "sample": 3, "kind": [], "limits": "x"}]


def test_nonsense_in_the_pages_events_is_answered_with_a_sentence(http, app, good):
    """In every input of every event, and in the data of events."""
    called = set()
    for number, fn in app.fns.items():
        if fn.fn is None or fn.fn in called or fn.api_visibility == "public":
            continue
        if fn.name in ("show_repair", "answer"):
            continue
        called.add(fn.fn)
        usual = [good if isinstance(each, gr.Image) else getattr(each, "value", None) for each in fn.inputs]
        usual = [None if isinstance(each, gr.State) else value
                 for each, value in zip(fn.inputs, usual, strict=True)]  # fmt: skip
        tries = [(usual, data) for data in EVENT_DATA]
        for place in range(len(usual)):
            tries += [([*usual[:place], value, *usual[place + 1 :]], None) for value in EVENTS]
        for data, event_data in tries:
            body = {"data": data, "fn_index": number, "session_hash": "one", "event_data": event_data}
            route = "queue/join" if fn.queue else "run/predict"
            answer = http.post(f"{API}/{route}", content=json.dumps(body), headers=JSON)
            reply = answer.text
            if fn.queue and answer.status_code == 200:
                reply = http.get(f"{API}/queue/data", params={"session_hash": "one"}).text
            if "log says why" in reply:
                pytest.fail(f"{fn.name} {data} {event_data}: {reply}")
            if answer.status_code >= 400 or '"success":false' in reply:
                is_a_sentence(reply)


def test_nonsense_asked_of_the_batch_is_answered(http, app):
    (board,) = (each for each in app.blocks.values() if hasattr(each, "news"))
    for name in ("news", "cancel", "regions"):
        for data in (None, "x", 7, [], {}, {"run": []}, {"run": "x", "have": "y"}):
            body = {"data": data, "component_id": board._id, "session_hash": "one", "fn_name": name}
            answer = http.post(f"{API}/component_server", json=body)
            assert answer.status_code == 200 and answer.json() is None


def test_one_picture_is_a_batch_too(http, good):
    event, ((result,),) = call(http, "batch", images=good)
    assert event == "complete" and result["category"] == "gear"


def test_the_examples_name_nothing_elsewhere(http):
    endpoints = http.get(f"{API}/info").json()["named_endpoints"]
    assert "handle_file('part.png')" in endpoints["/inspect"]["code_snippets"]["python"]
    assert "github" not in json.dumps(endpoints)


def test_a_file_named_by_its_address_here_is_taken_and_nothing_is_fetched(http, url, good):
    event, (result, picture) = call(http, "inspect", image=file(f"{url}{API}/file={good['path']}"))
    assert event == "complete" and result["category"] == "gear"
    event, _ = call(http, "inspect", image=file(picture["url"]))  # a result goes in again
    assert event == "complete"


# -- turns, progress, limits -------------------------------------------------------------------------------


def test_much_work_does_not_hold_up_a_small_picture_and_ends_when_nobody_waits(app, http, good, monkeypatch):
    ended = []
    monkeypatch.setattr(Unwanted, "__init__", lambda self: ended.append(self))
    many = [[good] * 200, *[None] * 9]
    (number,) = (index for index, fn in app.fns.items() if fn.api_name == "batch")
    first = http.post(f"{API}/call/batch", json={"data": many, "session_hash": "first"}).json()["event_id"]
    second = http.post(f"{API}/call/batch", json={"data": many}).json()["event_id"]
    with http.stream("GET", f"{API}/call/batch/{second}"):
        event, (result, _) = call(http, "inspect", image=good)
        assert event == "complete" and result["category"] == "gear"
        assert app._queue.get_active_worker_count() == 2 and not ended
        http.post(f"{API}/cancel", json={"event_id": first, "session_hash": "first", "fn_index": number})
    deadline = time.time() + MINUTE  # and the other one has closed its stream
    while (len(ended) < 2 or app._queue.get_active_worker_count()) and time.time() < deadline:
        time.sleep(0.05)
    assert len(ended) == 2
    assert http.get("/health").json()["queue"] == {"waiting": 0, "running": 0}


def test_progress_comes_over_plain_http_and_through_the_client(http, url, good):
    data = [[good] * 2, *[None] * 9]
    body = {"data": data, "session_hash": "progress"}
    assert http.post(f"{API}/call/batch", json=body).status_code == 200
    stream = http.get(f"{API}/queue/data", params={"session_hash": "progress"}).text
    messages = [json.loads(line.removeprefix("data: ")) for line in stream.splitlines() if line]
    steps = [each["progress_data"][0] for each in messages if each["msg"] == "progress"]
    assert steps and all(step["length"] == 2 and step["unit"] == "pictures" for step in steps)
    assert messages[-2]["msg"] == "process_completed" and len(messages[-2]["output"]["data"][0]) == 2
    job = Client(url, verbose=False).submit([handle_file(GOOD)] * 2, api_name="/batch")
    progress = []
    while not job.done():
        progress += job.status().progress_data or []
        time.sleep(0.01)
    assert {unit.unit for unit in progress} == {"pictures"}


def test_an_inspection_of_too_many_tiles_is_refused(http, app, tmp_path):
    surface = np.tile(np.asarray(Image.open(DEFECTIVE).convert("RGB")), (5, 5, 1))
    Image.fromarray(surface).save(tmp_path / "surface.png")
    (path,) = upload(http, tmp_path / "surface.png").json()
    (number,) = (number for number, fn in app.fns.items() if fn.name == "ask_uploaded")
    inputs = app.fns[number].inputs
    values = [getattr(each, "value", None) for each in inputs]
    values[:3] = [None, 1, file(path)]
    values[-1] = "256"
    answering = next(index for index, fn in app.fns.items() if fn.name == "answer")
    for index, data in ((number, values), (answering, [None, None])):
        body = {"data": data, "fn_index": index, "session_hash": "tiles"}
        if app.fns[index].queue:
            assert http.post(f"{API}/queue/join", json=body).status_code == 200
            stream = http.get(f"{API}/queue/data", params={"session_hash": "tiles"}).text
        else:
            assert http.post(f"{API}/run/predict", json=body).status_code == 200
    assert "a picture of 1280 × 1280 px needs 49 tiles of 256 px, and no more than 4 are allowed" in stream
