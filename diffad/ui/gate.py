"""Checks every request before Gradio handles it; requests that fail are answered with one sentence.

Without these checks, Gradio would answer malformed calls with its own exceptions, serve files to anybody who
knows their paths, fetch URLs for callers, and give information to users who are not logged in. The contents
of calls are checked in `calls.py`.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import anyio
import gradio as gr
from fastapi import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse

from diffad.pictures.reading import DataError
from diffad.ui import calls, logins
from diffad.ui.calls import Refusal
from diffad.ui.files import Storage

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

API = "/gradio_api/"
# Routes that the page and programs need; no other route of Gradio's is served.
SERVED = re.compile(
    r"/(health|login|logout|config|theme\.css|manifest\.json|favicon\.ico|pwa_icon|robots\.txt"
    r"|(assets|static|svelte)/.+"
    r"|gradio_api/(info|openapi\.json|theme\.css|startup-events|login_check|user|app_id|queue/status|queue/join"
    r"|queue/data|cancel|reset|component_server|upload|upload_progress|mcp(/.*)?"
    r"|(heartbeat|run|api|call)/.+|file[=/].+))?/?"
)
WITHOUT_LOGIN = {"/health", "/login", "/logout", "/favicon.ico", f"{API}startup-events"}
LOGIN_PAGE = (Path(__file__).parent / "static" / "login.html").read_text(encoding="utf-8")
MOST_JSON = 16  # MB, largest call


class Gate:
    """ASGI middleware around Gradio's app. If no logins are set up, everybody may use every file."""

    def __init__(self, app: Any, blocks: gr.Blocks, storage: Storage) -> None:
        self.app, self.blocks, self.storage = app, blocks, storage

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        logins.address.set(scope["client"][0] if scope.get("client") else "")
        try:
            await self._admit(Request(scope, receive), sending)
            return
        except Refusal as refusal:
            status, message = refusal.status, refusal.sentence
        except ClientDisconnect:
            return
        except Exception as error:
            # Gradio ends the stream of a finished call with an HTTPException, which is no error.
            if not (begun and isinstance(error.__cause__, HTTPException)):
                traceback.print_exc()
            status, message = 500, calls.FAILED
        if begun:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await JSONResponse({"detail": message}, status)(scope, receive, send)

    async def _admit(self, request: Request, send: Send) -> None:
        scope, path = request.scope, request.scope["path"]
        if not SERVED.fullmatch(path) or not path.isprintable():
            raise Refusal(404, "There is nothing at this address.")
        person = self._person(request)
        logins.person.set(person or "")
        if self.blocks.auth is not None and person is None and path.rstrip("/") not in WITHOUT_LOGIN:
            if path != "/":
                raise Refusal(401, "Log in first.")
            await HTMLResponse(LOGIN_PAGE)(scope, request.receive, send)
            return
        route = path.removeprefix(API).rstrip("/") if path.startswith(API) else ""
        receive = request.receive
        if route.startswith("file"):
            if self.storage.find(route[len("file=") :], person) is None:
                raise Refusal(403, "This file is not yours, or no longer on the server.")
        elif request.method == "GET":
            self._check_awaited(route, request)
        elif request.method == "POST" and route == "upload":
            await self._upload(request, person, send)
            return
        elif request.method == "POST" and route:
            receive = _again(await self._checked(request, route, person), receive)
        await self.app(scope, receive, send)

    def _person(self, request: Request) -> str | None:
        """The name of the logged-in user, or None."""
        app = request.scope["app"]
        cookies = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
        names = (app.tokens.get(request.cookies.get(cookie)) for cookie in cookies)
        return next(filter(None, names), None)

    def _check_awaited(self, route: str, request: Request) -> None:
        """Raises Refusal if the request waits for a call that is not in the queue."""
        queue = self.blocks._queue
        if route == "queue/data":
            known = request.query_params.get("session_hash", "") in queue.pending_messages_per_session
        elif route.startswith("call/"):
            number = route.rpartition("/")[2]
            pending = list(queue.pending_event_ids_session.values())
            known = number in queue.event_ids_to_events or any(number in numbers for numbers in pending)
        else:
            return
        if not known:
            raise Refusal(404, "There is no such call here, or it was answered already: call again.")

    async def _checked(self, request: Request, route: str, person: str | None) -> bytes:
        """Checks a call; returns its body. person: the caller, see `calls.bring_in`."""
        body = bytearray()
        async for chunk in request.stream():
            body.extend(chunk)
            if len(body) > MOST_JSON * 2**20:
                message = f"A call may have {MOST_JSON} MB: upload files first and give their paths."
                raise Refusal(413, message)
        if route.startswith("mcp"):  # MCP has another form, and turns into calls that are checked here
            return bytes(body)
        try:
            sent = json.loads(body)
        except (ValueError, RecursionError):
            raise Refusal(400, "This call is not valid JSON.") from None
        if not isinstance(sent, dict):
            raise Refusal(400, "This call is not a JSON object.")
        if "json" not in request.headers.get("content-type", ""):
            raise Refusal(415, "Mark this call as JSON: send Content-Type: application/json.")
        calls.check(self.blocks, route, sent)
        return json.dumps(sent).encode() if calls.bring_in(sent, self.storage, person) else bytes(body)

    async def _upload(self, request: Request, person: str | None, send: Send) -> None:
        """Accepts an upload if there is room, and records the person as the owner of its files."""
        length = request.headers.get("content-length", "")
        if not re.fullmatch(r"[0-9]{1,15}", length):
            raise Refusal(411, "The size of this upload is missing: send Content-Length.")
        try:
            await anyio.to_thread.run_sync(self.storage.make_room, int(length))
        except DataError as error:
            raise Refusal(507, calls.as_sentence(error)) from None
        answer = bytearray()

        async def reading(message: Message) -> None:
            answer.extend(message.get("body", b""))
            last = message["type"] == "http.response.body" and not message.get("more_body")
            if last and person is not None:
                for path in _paths(answer):
                    self.storage.own(path, person)
            await send(message)

        try:
            await self.app(request.scope, request.receive, reading)
        except (ClientDisconnect, OSError):
            raise
        except Exception:
            message = "This upload cannot be read: send multipart/form-data with the files under `files`."
            raise Refusal(400, message) from None


async def misunderstood(request: Any, error: Exception) -> JSONResponse:
    """The answer to a request that FastAPI considers malformed."""
    message = "This request cannot be understood: something in it is missing or of the wrong kind."
    return JSONResponse({"detail": message}, 400)


def _again(body: bytes, receive: Receive) -> Receive:
    """Delivers a body that has already been read, then everything that follows."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receiving() -> Message:
        return first.pop() if first else await receive()

    return receiving


def _paths(answer: bytearray) -> list[str]:
    """The paths in the answer to an upload; empty if it was refused."""
    try:
        paths = json.loads(answer)
    except ValueError:
        return []
    return [path for path in paths if isinstance(path, str)] if isinstance(paths, list) else []
