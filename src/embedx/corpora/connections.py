"""Connections that can be given up from outside: urllib3's limits of time are for each read, not for all of them."""

from __future__ import annotations

import functools
import socket
import ssl
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection


@dataclass
class Attempt:
    """One attempt: when it must be over, and the connection that it uses just now."""

    deadline: float
    sockets: list[Any] = field(default_factory=list)

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return self.deadline - time.monotonic()

    def abort(self) -> None:
        """Wake whoever waits for the connection."""
        for sock in self.sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


current = threading.local()
"""`attempt`: the one that this thread makes just now."""


class _Noted:
    """A connection that tells the attempt which socket it uses, so that a server that drips cannot hold it."""

    sock: Any

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self.sock is None:
            self.connect()  # type: ignore[attr-defined]
        current.attempt.sockets.append(self.sock)
        super().request(*args, **kwargs)  # type: ignore[misc]


class _Plain(_Noted, HTTPConnection):
    pass


class _Secure(_Noted, HTTPSConnection):
    pass


class PlainPool(urllib3.HTTPConnectionPool):
    """Connections by http to one address."""

    ConnectionCls = _Plain


class SecurePool(urllib3.HTTPSConnectionPool):
    """Connections by https to one address."""

    ConnectionCls = _Secure


@functools.cache
def trust() -> ssl.SSLContext:
    """Return which certificates are trusted."""
    context = ssl.create_default_context()
    with suppress(ImportError):  # some systems keep no certificates where Python looks
        import certifi

        context.load_verify_locations(certifi.where())
    return context
