"""A web server on 127.0.0.1 that serves a folder, and misbehaves when it is told to."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # the reader has gone
            super().handle_error(request, client_address)


@dataclass
class Fault:
    """What goes wrong with one answer.

    Args:
        status: an error instead of an answer.
        after: bytes of the body that are sent before the connection is closed, or before `stall`.
        stall: seconds of silence, after which the answer goes on.
    """

    status: int = 0
    after: int | None = None
    stall: float = 0.0


@dataclass
class Web:
    """The server. What it does may be changed while it runs.

    Attributes:
        folder: what is served.
        requests: (path with query, Range or "") of every request.
        faults: path -> what goes wrong with the next answers that are whole bodies or their rests.
        ranges: whether files are continued.
        tags: whether an ETag is sent.
        lengths: whether a Content-Length is sent.
        claim: path -> the length that the server claims.
        denied: paths that may not be read.
        headers: those of every request.
    """

    folder: Path
    requests: list[tuple[str, str]] = field(default_factory=list)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    ranges: bool = True
    tags: bool = True
    lengths: bool = True
    claim: dict[str, int] = field(default_factory=dict)
    denied: set[str] = field(default_factory=set)
    headers: list[dict[str, str]] = field(default_factory=list)

    def __enter__(self) -> Web:
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                web.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def url(self, name: str, user: str = "", query: str = "") -> str:
        """The address of a file."""
        return f"http://{user}127.0.0.1:{self._server.server_port}/{name}{query}"

    def asked(self, name: str) -> list[str]:
        """The ranges of the requests for a file, without the questions for its length."""
        return [limits for path, limits in self.requests if path.split("?")[0] == f"/{name}" and limits != "bytes=0-0"]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """One request."""
        name, limits = handler.path.split("?")[0].lstrip("/"), handler.headers.get("Range", "")
        self.requests.append((handler.path, limits))
        self.headers.append(dict(handler.headers.items()))
        file = self.folder / name
        if name in self.denied or not file.is_file():
            self._short(handler, 403 if name in self.denied else 404)
            return
        data = file.read_bytes()
        size = self.claim.get(name, len(data))
        first, last = 0, size - 1
        if self.ranges and (match := re.fullmatch(r"bytes=(\d+)-(\d*)", limits)):
            first, last = int(match.group(1)), min(int(match.group(2) or last), last)
        fault = Fault()
        if limits != "bytes=0-0" and self.faults.get(name):
            fault = self.faults[name].pop(0)
        if fault.status:
            self._short(handler, fault.status)
            return
        handler.send_response(206 if self.ranges and limits else 200)
        if self.ranges and limits:
            handler.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        handler.send_header(*(("Content-Length", str(last - first + 1)) if self.lengths else ("Connection", "close")))
        if self.tags:
            handler.send_header("ETag", f'"{md5(data).hexdigest()}"')
        handler.end_headers()
        self._send(handler, data[first : last + 1], fault, last - first + 1)

    def _send(self, handler: BaseHTTPRequestHandler, body: bytes, fault: Fault, promised: int) -> None:
        whole = len(body) if fault.after is None else fault.after
        try:
            handler.wfile.write(body[:whole])
            handler.wfile.flush()
            if fault.stall:
                time.sleep(fault.stall)
                handler.wfile.write(body[whole:])
        except OSError:
            pass  # the reader has gone
        handler.close_connection = fault.after is not None or len(body) != promised or not self.lengths

    def _short(self, handler: BaseHTTPRequestHandler, status: int) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", "0")
        handler.end_headers()


def wait_for(what: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until something has happened."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
