"""Real servers for tests: a web server that misbehaves as told, and an S3 API."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from distributed import LocalCluster

Behaviour = Callable[["Handler", int], None]
"""Answers a request in some way; the number says how often the path was asked for before."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    behaviours: dict[str, Behaviour]
    asked: Counter[str]
    times: dict[str, list[float]]
    at_a_time: list[int]
    knows_conditions = True

    def do_GET(self) -> None:
        number = self.asked[self.path]
        self.asked[self.path] += 1
        self.times[self.path].append(time.monotonic())
        self.at_a_time.append(threading.active_count())
        behaviour = self.behaviours.get(self.path)
        try:
            if behaviour is not None:
                behaviour(self, number)
            elif self.path in self.files:
                self.give(self.files[self.path])
            else:
                self.give(b"gone", 404)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def give(self, data: bytes, status: int = 200, **headers: str) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if self.knows_conditions and self.headers.get("If-Match", self.tag()) != self.tag():
            data, status, asked = b"", 412, None
        if asked and status == 200 and self.path not in self.behaviours:
            size, first = len(data), int(asked[1])
            data = data[first : int(asked[2]) + 1 if asked[2] else None]
            status, headers = 206, {**headers, "Content-Range": f"bytes {first}-{first + len(data) - 1}/{size}"}
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", self.tag())
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def do_HEAD(self) -> None:
        data = self.files.get(self.path)
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"")))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", self.tag())
        self.end_headers()

    def tag(self) -> str:
        return f'"{zlib.crc32(self.files.get(self.path, b""))}"'

    def whole(self) -> None:
        self.give(self.files[self.path])

    def log_message(self, *_: object) -> None:
        pass


class Web:
    """A web server on this machine.

    Attributes:
        files: path -> what it holds.
        behaviours: path -> how it answers instead.
        asked: path -> how often.
        times: path -> when, in monotonic seconds.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.behaviours: dict[str, Behaviour] = {}
        self.asked: Counter[str] = Counter()
        self.times: dict[str, list[float]] = defaultdict(list)
        self.url = ""
        self.handler: type[Handler] = Handler


class WebServer(ThreadingHTTPServer):
    request_queue_size = 128  # of five, a client's connection waits a second


@contextmanager
def web_server() -> Iterator[Web]:
    web = Web()
    shared = {"files": web.files, "behaviours": web.behaviours, "asked": web.asked, "times": web.times, "at_a_time": []}
    web.handler = type("Handler", (Handler,), shared)
    server = WebServer(("127.0.0.1", 0), web.handler)
    server.daemon_threads = True
    web.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()


# -- ways to misbehave ---------------------------------------------------------------------------------------------


def fails_at_first(times: int, status: int = 503, **headers: str) -> Behaviour:
    def behave(handler: Handler, number: int) -> None:
        if number < times:
            handler.give(b"not now", status, **headers)
        else:
            handler.whole()

    return behave


def resets_at_first(times: int) -> Behaviour:
    def behave(handler: Handler, number: int) -> None:
        if number < times:
            handler.close_connection = True
            handler.connection.close()
        else:
            handler.whole()

    return behave


def cuts_off(times: int) -> Behaviour:
    """Promises the whole body and sends half of it."""

    def behave(handler: Handler, number: int) -> None:
        if number >= times:
            return handler.whole()
        data = handler.files[handler.path]
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2])
        handler.close_connection = True

    return behave


def drips(what: str) -> Behaviour:
    """Sends a byte now and then, for ever: of its headers, or of its body."""

    def behave(handler: Handler, number: int) -> None:
        if what == "headers":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        else:
            handler.send_response(200)
            handler.send_header("Content-Length", "100000")
            handler.end_headers()
        for _ in range(200):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.1)

    return behave


def redirects(target: str, status: int = 302) -> Behaviour:
    return lambda handler, number: handler.give(b"", status, Location=target)


def never_ends() -> Behaviour:
    def behave(handler: Handler, number: int) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        chunk = b"x" * 2**16
        while True:
            handler.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")

    return behave


# -- S3 ------------------------------------------------------------------------------------------------------------


@contextmanager
def s3_server() -> Iterator[str]:
    """An S3 API; yields its URL. Empty at first."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    # All servers of a process share what they hold: what another test left there must not be found.
    urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


S3_FLAGS = {"key": "canary-key-93a1", "secret": "canary-secret-77f0"}


def s3_options(url: str) -> list[str]:
    values = {**S3_FLAGS, "endpoint_url": url}
    return [part for name, value in values.items() for part in ("--storage-option", f"{name}={value}")]


def fill_bucket(url: str, bucket: str, files: dict[str, bytes | Path]) -> None:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=S3_FLAGS["key"],
        aws_secret_access_key=S3_FLAGS["secret"],
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=bucket)
    for name, data in files.items():
        client.put_object(Bucket=bucket, Key=name, Body=data.read_bytes() if isinstance(data, Path) else data)


class S3:
    """An S3 API in a process of its own, for code that runs in this one: Delta's library holds the interpreter lock.

    Attributes:
        url: of the API.
        env: what reaches it, as the cloud's own tools read it.
    """

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self._log = log
        self._seen = 0
        self.env = {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": S3_FLAGS["key"],
            "AWS_SECRET_ACCESS_KEY": S3_FLAGS["secret"],
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def client(self) -> Any:
        import boto3

        keys = {"aws_access_key_id": S3_FLAGS["key"], "aws_secret_access_key": S3_FLAGS["secret"]}
        return boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", **keys)

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", [])]

    def new_requests(self) -> list[tuple[str, str, int]]:
        """Return (method, path, status) of the requests since the last call."""
        lines = re.sub(r"\x1b\[[0-9;]*m", "", self._log.read_text()).splitlines()
        found = [re.search(r'"(\w+) (\S+) HTTP/1.1" (\d+)', line) for line in lines]
        requests = [(match[1], match[2], int(match[3])) for match in found if match]
        new, self._seen = requests[self._seen :], len(requests)
        return new


@contextmanager
def s3_process(folder: Path) -> Iterator[S3]:
    """An S3 API in another process; its log goes to `folder`."""
    log = folder / "s3.log"
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, Path(__file__).with_name("s3_api.py")], stdout=file, stderr=file)
    try:
        end = time.monotonic() + 60
        while not (port := re.search(r"Running on http://127\.0\.0\.1:(\d+)", log.read_text())):
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield S3(f"http://127.0.0.1:{port[1]}", log)
    finally:
        process.kill()
        process.wait()


# -- Dask ----------------------------------------------------------------------------------------------------------


@contextmanager
def dask_cluster(env: dict[str, str]) -> Iterator[str]:
    """A scheduler with one worker that stays warm between commands; yields its address.

    Args:
        env: of the worker process; the path of modules is passed on by this process's own.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        for folder in reversed(env.get("PYTHONPATH", "").split(os.pathsep)):
            patch.syspath_prepend(folder)
        with LocalCluster(
            n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None, silence_logs=logging.CRITICAL
        ) as cluster:
            yield cluster.scheduler_address
