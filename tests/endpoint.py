"""A stand-in for an OpenAI-compatible server, which fails as real ones do: slow, limited, broken, or unreadable."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[str, str]  # (how to fail, or any other word; the text of the reply)


class StandIn(ThreadingHTTPServer):
    """Replies to the body of each request as `reply` says. Some words make it fail, as they say."""

    request_queue_size = 64  # a client sends several at once

    def __init__(self, reply: Callable[[dict[str, Any]], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.reply = reply
        self.asked: list[dict[str, Any]] = []
        self.failed: Counter[str] = Counter()


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault, text = self.server.reply(body)
        self.server.asked.append(body)
        self.server.failed[fault] += 1
        is_first = self.server.failed[fault] == 1
        if fault == "slow" and is_first:
            time.sleep(0.6)
        if fault == "limited" and is_first:
            self._send(429, b'{"error": {"message": "slow down"}}', {"Retry-After": "0"})
        elif fault == "down":
            self._send(503, b"{}", {"Retry-After": "0"})
        elif fault == "garbage":
            self._send(200, b"<html>proxy</html>", {"Content-Type": "text/html"})
        else:
            self._send(200, json.dumps(completion(text)).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body)
        except BrokenPipeError:
            self.close_connection = True  # the client did not wait

    def log_message(self, format: str, *args: Any) -> None:
        pass


def completion(text: str) -> dict[str, Any]:
    """Returns a chat completion of OpenAI's protocol."""
    message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [message], "usage": usage}


@contextmanager
def endpoint(reply: Callable[[dict[str, Any]], Reply]) -> Iterator[StandIn]:
    """Runs a stand-in for the block."""
    with StandIn(reply) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
