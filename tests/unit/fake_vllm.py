"""A small server that speaks vLLM's HTTP API, in threads of this process, and does as it is told."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Condition, Event, Thread
from typing import Any, NamedTuple

from captory_engine.tokenizer import Tokenizer

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SENTENCE = "two small red boats on the sea, lit from the left"


class Request(NamedTuple):
    """One that asked for text."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


Fault = Callable[["Handler"], None]


@dataclass
class Peer:
    """Answers with `text`. `faults` are used up, one a request for text; `gate` holds all of them while it is clear."""

    text: str = SENTENCE
    ends: str = "stop"
    models: tuple[str, ...] = ("model-a",)
    chats: bool = True
    sees: bool = True
    tokenizer: Tokenizer | None = None
    key: str = ""
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    gate: Event = field(default_factory=Event)
    hung_up: Event = field(default_factory=Event)
    gone: bool = False
    hangs: bool = False
    changed: Condition = field(default_factory=Condition)
    num_busy: int = 0
    max_busy: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    def wait_busy(self, num: int) -> bool:
        """Come back when `num` requests for text are here."""
        with self.changed:
            return self.changed.wait_for(lambda: self.num_busy == num, timeout=10)

    def count(self, step: int) -> None:
        with self.changed:
            self.num_busy += step
            self.max_busy = max(self.max_busy, self.num_busy)
            self.changed.notify_all()


class Handler(BaseHTTPRequestHandler):
    """One connection. Answers bear their length, so connections are kept."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    peer: Peer

    def do_GET(self) -> None:
        if self.peer.gone:
            return cut(self)
        if self.peer.hangs and self.path == "/health":
            return silent(self)
        answers = {
            "/health": "",
            "/version": json.dumps({"version": "0.32.0"}),
            "/v1/models": json.dumps({"data": [{"id": name, "root": name} for name in self.peer.models]}),
        }
        return self.answer(answers[self.path].encode(), 200 if self.allowed() else 401)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/detokenize":
            assert self.peer.tokenizer is not None
            return self.answer(json.dumps({"prompt": self.peer.tokenizer.decode(body["tokens"])}).encode())
        self.peer.requests.append(Request(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        self.peer.count(1)
        try:
            assert self.peer.gate.wait(timeout=20)
            if self.peer.gone:
                raise ConnectionError
            return self.peer.faults.pop(0)(self) if self.peer.faults else self.say(body)
        except ConnectionError:
            self.peer.hung_up.set()
            self.close_connection = True
        finally:
            self.peer.count(-1)

    def allowed(self) -> bool:
        return not self.peer.key or self.headers["Authorization"] == f"Bearer {self.peer.key}"

    def say(self, body: dict[str, Any]) -> None:
        pictures = "image_url" in json.dumps(body)
        if not self.allowed():
            return self.answer(b"{}", 401)
        if (self.path == CHAT and not self.peer.chats) or (pictures and not self.peer.sees):
            return self.answer(json.dumps({"error": {"message": "as told", "code": 400}}).encode(), 400)
        said = {"message": {"role": "assistant", "content": self.peer.text}} if self.path == CHAT else {}
        choice = {"index": 0, "finish_reason": self.peer.ends, "text": self.peer.text} | said
        return self.answer(json.dumps({"choices": [choice], "usage": {"completion_tokens": 11}}).encode())

    def answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """Silence."""


def status(code: int) -> Fault:
    return lambda handler: handler.answer(b'{"error": {}}', code)


def raw(body: bytes) -> Fault:
    return lambda handler: handler.answer(body)


def zipped(body: bytes) -> Fault:
    def fault(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return fault


def endless(handler: Handler) -> None:
    """Text without end, for as long as anybody reads it."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    while True:
        handler.wfile.write(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")


def silent(handler: Handler) -> None:
    """No answer. Comes back when the caller has gone."""
    with suppress(ConnectionError):
        assert handler.connection.recv(1) == b""
    handler.peer.hung_up.set()
    handler.close_connection = True


def trickling(handler: Handler) -> None:
    """The beginning of an answer, and no end."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b"{")
    silent(handler)


def cut(handler: Handler) -> None:
    """The connection ends without an answer, as when the server is killed."""
    handler.close_connection = True


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that hangs up is no news."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving(peer: Peer, port: int = 0) -> Iterator[str]:
    """Its address, until the block is left; a port of its own for 0."""
    handler = type("PeerHandler", (Handler,), {"peer": peer})
    with _Server(("127.0.0.1", port), handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            peer.gone = True  # connections that are kept have threads of their own
            peer.gate.set()
            server.shutdown()
            thread.join()
