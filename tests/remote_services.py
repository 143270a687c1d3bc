"""The misbehaving server as a process beside the tests, and what it saw."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT


@dataclass(frozen=True)
class Service:
    """A running server.

    Attributes:
        port: where it listens, on this machine.
        log: its notes.
    """

    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def requests(self) -> list[dict]:
        """Return what it was asked: path, texts, key, did."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def write_encoder(self, path: Path, route: str = "/v1", **model_args: object) -> Path:
        """Write an encoder file that is quick to give up."""
        given = {"timeout_s": 0.5, "wait_s": 0.01, "attempts": 8, **model_args}
        lines = [f"{name} = {json.dumps(value)}" for name, value in given.items()]
        text = f'family = "remote"\nname = "model@http://127.0.0.1:{self.port}{route}"\n[model_args]\n'
        path.write_text(text + "\n".join(lines) + "\n")
        return path


@contextmanager
def serve(folder: Path, **options: object) -> Iterator[Service]:
    """Run the server with some options until the block ends."""
    log = folder / f"requests-{len(list(folder.glob('requests-*')))}.jsonl"
    command = [sys.executable, str(ROOT / "tests" / "remote_server.py"), str(log), json.dumps(options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield Service(int(process.stdout.readline()), log)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
