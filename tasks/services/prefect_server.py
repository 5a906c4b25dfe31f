"""Prefect's server, for its own pages and clients only: `uvicorn --factory tasks.services.prefect_server:create_app`.

Prefect accepts every `Host` header. A page of a foreign name that resolves to this machine (DNS rebinding) would
therefore share an origin with the server. `OwnPagesOnly` refuses foreign hosts and origins before Prefect sees them.
"""

import os
import re
import signal
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from tasks.launchers.parent_guard import end_with_parent

ORIGINS = "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"
# FINAL saves 50 MB, as in Prefect's own command. Plugins fail in a server: its event loop already runs.
SERVER_ENVIRONMENT = {"PREFECT__SERVER_FINAL": "1", "PREFECT_PLUGINS_ENABLED": "false"}
# uvicorn would search the working directory first, and take a user's `tasks.py` there for this package.
APP = ("--factory", "tasks.services.prefect_server:create_app", "--app-dir", str(Path(__file__).parents[2]))
PARENT = "MEDPIX_SERVER_PARENT"  # environment variable: the process that a temporary server belongs to
LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
ANY = "*"


class OwnPagesOnly:
    """ASGI middleware that passes on a request only if its host is known, and its origin too if a page sent it."""

    def __init__(self, app: ASGIApp, origins: frozenset[str]) -> None:
        self.app, self.origins = app, origins
        self.hosts = LOOPBACK | {urlsplit(origin).hostname or "" for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a refused request, or a refused WebSocket, with status 403."""
        refusal = self.refusal(Headers(scope=scope)) if scope["type"] in ("http", "websocket") else None
        answer: ASGIApp = self.app
        if refusal:
            answer = PlainTextResponse(refusal, 403) if scope["type"] == "http" else WebSocketClose(1008, refusal)
        await answer(scope, receive, send)

    def refusal(self, headers: Headers) -> str | None:
        """Returns why a request is refused, None if it is not."""
        if ANY in self.origins:
            return None
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if [_name(host) in self.hosts for host in hosts] != [True]:
            return f"this server does not answer requests for this host; add its address to {ORIGINS}"
        if not {origin.lower() for origin in origins} <= self.origins:
            return f"this server does not answer pages of this origin; add it to {ORIGINS}"
        return None


def _name(host: str) -> str:
    """Returns a `Host` header without its port."""
    return re.sub(r":\d*$", "", host.lower())


def own_origins(port: int | str) -> str:
    """Returns the origins of the pages of a server on loopback, as Prefect's setting takes them."""
    return f"http://127.0.0.1:{port},http://localhost:{port}"


def take_turns_in_sqlite() -> None:
    """Makes the transactions of Prefect's server wait for each other if its database is SQLite.

    Prefect's transactions read first, and take SQLite's write lock when they write. If another one has written in
    between, SQLite refuses the lock at once ("database is locked"). The page then shows "Unknown error" for a submitted
    form, and the log has an error. A transaction that takes the lock when it begins waits for it instead.
    """
    from prefect.server.database.configurations import AioSqliteConfiguration  # lazy: takes seconds

    begin = AioSqliteConfiguration.begin_transaction
    AioSqliteConfiguration.begin_transaction = lambda self, session, with_for_update=False: begin(self, session, True)


def create_app() -> ASGIApp:
    """Returns Prefect's app behind `OwnPagesOnly`; the server of a flow ends with the flow's process."""
    if parent := os.environ.get(PARENT):
        # After SIGTERM the server would wait for its services, for a quarter of a minute.
        end_with_parent(int(parent), signal.SIGKILL)
    from prefect.server.api.server import create_app as prefect_app  # lazy: takes seconds

    take_turns_in_sqlite()
    origins = os.environ.get(ORIGINS, "").split(",")
    return OwnPagesOnly(prefect_app(), frozenset(origin.strip().rstrip("/").lower() for origin in origins if origin))
