"""An S3 server on 127.0.0.1 (moto's), which fails when it is told to."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

KEY = {"aws_access_key_id": "tester", "aws_secret_access_key": "very-secret", "region_name": "us-east-1"}


class S3:
    """The server, with one bucket.

    Attributes:
        url: where it answers.
        requests: (method, path, Range) of every request.
        faults: what the next requests for data get instead of an answer: ``drop`` closes the connection in the middle
            of it, a number is a status.
    """

    bucket = "shelf"

    def __enter__(self) -> S3:
        self.requests: list[tuple[str, str, str]] = []
        self.faults: list[str | int] = []
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self._server.log = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.client = boto3.client("s3", endpoint_url=self.url, **KEY)
        self.client.create_bucket(Bucket=self.bucket)
        return self

    def __exit__(self, *error: object) -> None:
        for item in self.client.list_objects_v2(Bucket=self.bucket).get("Contents", ()):
            self.client.delete_object(Bucket=self.bucket, Key=item["Key"])
        self.client.delete_bucket(Bucket=self.bucket)
        self._server.shutdown()
        self._server.server_close()

    def put(self, file: Path, key: str) -> str:
        """Upload a file; its URL."""
        self.client.put_object(Bucket=self.bucket, Key=key, Body=file.read_bytes())
        return f"s3://{self.bucket}/{key}"

    def asked(self, key: str) -> list[str]:
        """The ranges of the requests for an object's data."""
        return [limits for method, path, limits in self.requests if (method, path) == ("GET", f"/{self.bucket}/{key}")]

    def _answer(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        method, path, limits = environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("HTTP_RANGE", "")
        self.requests.append((method, path, limits))
        fault = self.faults.pop(0) if method == "GET" and limits and self.faults else None
        if isinstance(fault, int):
            body = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            start(f"{fault} Slow Down", [("Content-Length", str(len(body))), ("Content-Type", "application/xml")])
            return [body]
        answer = self._moto(environ, start)
        if fault == "drop":
            body = b"".join(answer)
            environ["werkzeug.socket"].setsockopt(1, 13, b"\x01\0\0\0\0\0\0\0")  # SO_LINGER 0: reset, not end
            return [body[: len(body) // 2]]
        return answer
