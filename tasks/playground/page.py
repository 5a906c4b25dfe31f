"""The playground's page and the two requests that it makes, for whoever has the password of this home."""

import base64
import binascii
import hmac
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from tasks.services.prefect_server import OwnPagesOnly, own_origins
from vlm_core.pages.render import render

MOST_BYTES = 100_000_000  # of a request: an image in base64 and a question
logger = logging.getLogger(__name__)

# Gets (file of the image in base64, question); returns {"model": ..., "answer": ..., "confidence": None or a share}.
Model = Callable[[str, str], dict[str, Any]]


def create_app(models: Sequence[Model], password: str, port: int) -> Starlette:
    """Returns the app: `/` is the page, `/ask` answers `{image, question}` with `{answers}` or `{error}`.

    `password` is `user:password`. Every request needs it, and pages of other origins are refused.
    """

    async def page(request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        own = f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'"
        policy = f"default-src 'none'; connect-src 'self'; img-src blob:; {own}"
        html = render(Path(__file__).with_name("page.html"), {}, nonce=nonce)
        return HTMLResponse(html, headers={"content-security-policy": policy, "cache-control": "no-store"})

    async def ask(request: Request) -> Response:
        try:
            asked = json.loads(await _body(request))
            image, question = str(asked["image"]), str(asked["question"])
            answers = [await run_in_threadpool(model, image, question) for model in models]
        except (ValueError, KeyError, TypeError) as error:
            return JSONResponse({"error": f"the request is invalid: {error}"}, 400)
        except Exception:
            logger.exception("a question failed")
            return JSONResponse({"error": "the model failed; the command's log says why"}, 500)
        return JSONResponse({"answers": answers})

    async def logged_in(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        if not hmac.compare_digest(_given(request), password.encode()):
            return PlainTextResponse("log in first", 401, {"www-authenticate": 'Basic realm="medpix"'})
        return await call(request)

    own: Any = OwnPagesOnly
    return Starlette(
        routes=[Route("/", page), Route("/ask", ask, methods=["POST"])],
        middleware=[
            Middleware(own, origins=frozenset(own_origins(port).split(","))),
            Middleware(BaseHTTPMiddleware, dispatch=logged_in),
        ],
    )


def _given(request: Request) -> bytes:
    """Returns the `user:password` of a request; empty without one."""
    kind, _, encoded = request.headers.get("authorization", "").partition(" ")
    try:
        return base64.b64decode(encoded, validate=True) if kind.lower() == "basic" else b""
    except binascii.Error:
        return b""


async def _body(request: Request) -> bytes:
    """Returns the body of a request; raises ValueError as soon as it is too large."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    return bytes(body)
