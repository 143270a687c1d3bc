"""A real HTTP server that embeds texts and misbehaves on request; run as a process of its own.

    python tests/remote_server.py LOG '{"chaos": 0.4, ...}'

It prints its port, and appends to LOG one JSON line per request: path, texts, whether the key was right, what it did.
Options: `chaos` (share of requests that go wrong), `key` (401 without it), `dim`, `salt` (another model), `most` (larger
batches are refused), `always` (a fault for every request), `seed`.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

FAULTS = (
    "429",
    "500",
    "503",
    "cut json",
    "cut body",
    "dims",
    "nan",
    "null",
    "missing",
    "twice",
    "html",
    "slow",
    "close",
)


def vector_of(text: str, dim: int = 8, salt: str = "") -> np.ndarray:
    """The right vector of a text: its words' hashes, of length 1, so that like texts are near."""
    vector = np.full(dim, 1e-3)
    for word in text.lower().split():
        digest = hashlib.sha256((salt + word).encode()).digest()
        vector += np.frombuffer(digest * (dim // 32 + 1), dtype=np.int8)[:dim]
    return (vector / np.linalg.norm(vector)).astype(np.float32)


class Handler(BaseHTTPRequestHandler):
    options: dict
    log_lock = threading.Lock()
    random: random.Random

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        is_tei = self.path.endswith("/embed")
        texts = body["inputs" if is_tei else "input"]
        key = self.options.get("key")
        is_known = not key or self.headers.get("Authorization") == f"Bearer {key}"
        with self.log_lock:
            fault = self._fault(texts, is_known)
            with open(self.options["log"], "a") as log:
                log.write(
                    json.dumps({"path": self.path, "texts": texts, "key": is_known, "did": fault or "good"}) + "\n"
                )
        try:
            self._answer(fault, body, texts, is_tei)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def _fault(self, texts: list[str], is_known: bool) -> str:
        if not is_known:
            return "401"
        if "always" in self.options:
            return self.options["always"]
        if len(texts) > self.options.get("most", 10_000):
            return "too many"
        for mark in ("500", "400", "nan", "slow"):
            if any(f"ALWAYS-{mark}" in text for text in texts):
                return mark
        return self.random.choice(FAULTS) if self.random.random() < self.options.get("chaos", 0) else ""

    def _answer(self, fault: str, body: dict, texts: list[str], is_tei: bool) -> None:
        dim = body.get("dimensions") or self.options.get("dim", 8)
        vectors = [vector_of(text, dim, self.options.get("salt", "")).tolist() for text in texts]
        if fault in ("429", "503", "500", "401", "404", "307", "wait", "400", "too many"):
            status = {"wait": 429, "too many": 413 if is_tei else 400}.get(fault) or int(fault)
            wait = {"429": "0.02", "503": "0", "wait": "7200"}.get(fault)
            # Services quote what they were sent; this one quotes the key.
            said = {"error": {"message": f"{fault} for {self.headers.get('Authorization')}"}}
            headers = {"Retry-After": wait} if wait else {}
            if fault == "307":
                headers["Location"] = "http://127.0.0.1:1/elsewhere"
            self._send(status, json.dumps(said).encode(), headers)
            return
        if fault == "slow":
            time.sleep(self.options.get("slow_s", 1.5))
        if fault == "close":
            self.close_connection = True
            return
        if fault == "dims":
            vectors[-1] = vectors[-1][:-1]
        if fault == "nan":
            vectors[-1][0] = float("nan")
        if fault == "null":
            vectors[-1] = None
        items = [{"object": "embedding", "index": place, "embedding": row} for place, row in enumerate(vectors)]
        if fault == "missing":
            items, vectors = items[:-1], vectors[:-1]
        if fault == "twice":
            items[-1] = items[0] | {"index": 0 if len(items) > 1 else 5}
            vectors.append(vectors[0])
        self.random.shuffle(items)  # the order says nothing, the index does
        answer = vectors if is_tei else {"data": items, "usage": {"total_tokens": sum(map(len, texts))}}
        data = json.dumps(answer).encode()
        if fault == "html":
            data = b"<html>busy</html>"
        self._send(200, data[: len(data) // 2] if fault == "cut json" else data, {}, short=fault == "cut body")

    def _send(self, status: int, data: bytes, headers: dict[str, str], short: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if short else data)
        if short:
            self.close_connection = True


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # of five, a client's connection waits a second


def main() -> None:
    """Serve until killed."""
    options = json.loads(sys.argv[2])
    Handler.options = {**options, "log": sys.argv[1]}
    Handler.random = random.Random(options.get("seed", 1))
    server = Server(("127.0.0.1", options.get("port", 0)), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
