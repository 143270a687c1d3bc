"""moto's S3 API as a process of its own: its log, with the port, goes to stderr.

moto looks at `If-Match` and `If-None-Match` first and writes then, in one thread for each request: two writers can
both pass. S3 promises that one of them is refused, and stores rely on it; so writes come one after another here.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple
from werkzeug.wrappers import Request

App = Callable[[dict[str, Any], Any], Iterable[bytes]]


def one_write_at_a_time(app: App) -> App:
    """Return a WSGI application whose requests that write are answered one after another."""
    lock = threading.Lock()

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return app(environ, start_response)
        # Read before the lock is taken: a client that is stopped while it sends must not stop the others.
        environ["wsgi.input"] = io.BytesIO(Request(environ).get_data(cache=False))
        with lock:
            return app(environ, start_response)

    return answer


if __name__ == "__main__":
    app = one_write_at_a_time(DomainDispatcherApplication(create_backend_app))
    run_simple("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
