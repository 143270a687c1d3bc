"""Fetching the URLs of a corpus: politely, within limits of size and time, from public addresses only.

Every URL ends as bytes or as a ReadError with its cause. What may pass is tried again, a few times, later each time;
a server that asks for a pause (`Retry-After`) gets one, for all its URLs. Redirects are followed by hand, for each
leads to another machine.
"""

from __future__ import annotations

import email.utils
import functools
import os
import random
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import IncompleteRead
from urllib.parse import quote, urljoin, urlsplit

import urllib3

from embedx.core.redaction import redact
from embedx.core.specs import Access
from embedx.corpora.addresses import Resolver
from embedx.corpora.connections import Attempt, PlainPool, SecurePool, current, trust
from embedx.corpora.decode import MAX_FILE_BYTES
from embedx.corpora.errors import CHANGED, ReadError, changed
from embedx.corpora.hosts import Host
from embedx.corpora.locators import url_problem

RETRIED = frozenset((408, 425, 429, 500, 502, 503, 504))

REDIRECTS = frozenset((301, 302, 303, 307, 308))

UNQUOTED = "/%:=&?~#+!$,;'@()*[]"
"""What stands in a URL's path and query as it is; the rest, such as spaces, is quoted."""

OF_THE_BODY = ("Range", "If-Match")
"""Headers that say what is wanted; others may be credentials, which only the first host is told."""

FAILED_IN_ROW = 10
"""After so many URLs of a host that could not be had, the next ones get one short attempt each."""

SHORT_S = 10.0

ASKED_TO_WAIT = "AskedToWait"
"""The error of a server that wants to be left alone for longer than a run waits."""

FINAL = (ASKED_TO_WAIT, CHANGED)
"""Errors that another run may not meet, and another attempt of this one will."""


@dataclass(frozen=True)
class Limits:
    """What fetching one URL may cost.

    Attributes:
        bytes: of its body.
        seconds: of one attempt, with all its redirects.
        connect_s: to connect.
        silence_s: without a byte.
        attempts: at a URL.
        backoff_s: before the second attempt; doubled before each further one.
        pause_s: the longest pause that a server may ask for.
        redirects: of one attempt.
        per_host: connections to one host, of all workers of a run together.
    """

    bytes: int = MAX_FILE_BYTES
    seconds: float = 60.0
    connect_s: float = 10.0
    silence_s: float = 20.0
    attempts: int = 4
    backoff_s: float = 0.5
    pause_s: float = 120.0
    redirects: int = 5
    per_host: int = 6

    @classmethod
    def from_environment(cls) -> Limits:
        """Return the limits with those that the environment sets.

        Raises:
            ReadError: one is no number above 0.
        """
        given: dict[str, float] = {}
        for name, field, kind in (("EMBEDX_FETCH_S", "seconds", float), ("EMBEDX_PER_HOST", "per_host", int)):
            if text := os.environ.get(name):
                try:
                    given[field] = kind(text)
                except ValueError:
                    given[field] = 0
                if not 0 < given[field] < 1e9:
                    raise ReadError(f"the environment's {name} is {text!r}: give a number above 0", "BadSetting", False)
        return cls(**given)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Answer:
    """What a server gave: the body, and its headers."""

    data: bytes
    headers: Mapping[str, str]


class Fetcher:
    """Fetches URLs; shared by the threads of a process, and its connections by those of a run.

    Args:
        allow_private: connect to private networks, too.
        limits: of each URL.
        hosts: folder through which the workers of a run share connections; empty is for this process alone.
    """

    def __init__(self, allow_private: bool = False, limits: Limits | None = None, hosts: str = "") -> None:
        self.limits = limits or Limits.from_environment()
        self._resolver = Resolver(allow_private)
        self._shared = hosts
        self._hosts: dict[str, Host] = {}
        self._pools: dict[tuple[str, str, int, str], urllib3.HTTPConnectionPool] = {}
        self._lock = threading.Lock()

    def fetch(self, url: str) -> bytes:
        """Return what a URL holds.

        Raises:
            ReadError: why not, after the last attempt.
        """
        return self.ask(url, {}).data

    def ask(self, url: str, headers: Mapping[str, str], most: int | None = None) -> Answer:
        """Return what a server answers to a GET.

        Args:
            url: to ask.
            headers: sent along, but not on to other hosts.
            most: bytes that the asked range has; None where the whole body was asked for.

        Raises:
            ReadError: why it gave nothing, after the last attempt.
        """
        host = self._host(urlsplit(url).netloc)
        is_down = host.failed_in_row >= FAILED_IN_ROW
        attempts = 1 if is_down else self.limits.attempts
        seconds = min(SHORT_S, self.limits.seconds) if is_down else self.limits.seconds
        tried = 0
        while True:
            tried += 1
            try:
                with host.connection():
                    answer = self._attempt(url, headers, most, seconds)
            except ReadError as error:
                if not error.retryable or error.error in FINAL:
                    host.failed_in_row = 0  # it answers
                    raise
                if tried == attempts:
                    host.failed_in_row += 1
                    often = f", tried {tried} times" if tried > 1 else ""
                    raise ReadError(f"{error}{often}", error.error, True) from None
                time.sleep(self.limits.backoff_s * 2 ** (tried - 1) * random.uniform(0.75, 1.25))
            else:
                host.failed_in_row = 0
                return answer

    def _host(self, name: str) -> Host:
        with self._lock:
            if name not in self._hosts:
                self._hosts[name] = Host(name, self.limits.per_host, self.limits.pause_s, self._shared)
            return self._hosts[name]

    def _attempt(self, url: str, headers: Mapping[str, str], most: int | None, seconds: float) -> Answer:
        attempt = Attempt(time.monotonic() + seconds)
        current.attempt = attempt
        watch = threading.Timer(seconds, attempt.abort)
        watch.daemon = True
        watch.start()
        try:
            return self._follow(url, headers, most, attempt)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            if attempt.left_s <= 0:
                raise ReadError(f"{url} was not done after {seconds:g} s", "TooSlow") from None
            raise _explained(url, error) from None
        finally:
            watch.cancel()

    def _follow(self, url: str, headers: Mapping[str, str], most: int | None, attempt: Attempt) -> Answer:
        first = url
        for _ in range(self.limits.redirects + 1):
            is_same_host = urlsplit(url).netloc == urlsplit(first).netloc
            known = {name: value for name, value in headers.items() if is_same_host or name in OF_THE_BODY}
            response = self._open(url, known, attempt)
            if response.status not in REDIRECTS:
                return self._body(first, response, most, attempt)
            target = response.headers.get("Location", "")
            response.close()
            url = urljoin(url, target)
            problem = url_problem(url) if target else "without a target"
            if problem or not url.lower().startswith(("http://", "https://")):
                raise ReadError(
                    f"{first} redirects to {redact(target)[:200]!r}, which is not fetched", "BadRedirect", False
                )
        raise ReadError(f"{first} redirects more than {self.limits.redirects} times", "TooManyRedirects", False)

    def _open(self, url: str, more: Mapping[str, str], attempt: Attempt) -> urllib3.BaseHTTPResponse:
        parts = urlsplit(url)
        scheme, host = parts.scheme.lower(), parts.hostname or ""
        port = parts.port or (443 if scheme == "https" else 80)
        address = self._resolver.resolve(host, port)
        target = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=UNQUOTED)
        name = host if host.isascii() else host.encode("idna").decode()
        left = max(0.01, attempt.left_s)
        timeout = urllib3.Timeout(connect=min(self.limits.connect_s, left), read=min(self.limits.silence_s, left))
        shown = f"[{name}]" if ":" in name else name
        headers = {
            **more,
            "Host": f"{shown}:{port}" if parts.port else shown,
            "User-Agent": _agent(),
            "Accept-Encoding": "identity",
        }
        return self._pool(scheme, name, port, address).urlopen(
            "GET",
            target,
            headers=headers,
            retries=False,
            redirect=False,
            timeout=timeout,
            preload_content=False,
            assert_same_host=False,
        )

    def _pool(self, scheme: str, host: str, port: int, address: str) -> urllib3.HTTPConnectionPool:
        """Return the connections to an address under a name; the name is what the certificate must show."""
        key = (scheme, host, port, address)
        with self._lock:
            if key not in self._pools:
                size = self.limits.per_host
                if scheme == "https":
                    self._pools[key] = SecurePool(
                        address, port, maxsize=size, server_hostname=host, assert_hostname=host, ssl_context=trust()
                    )
                else:
                    self._pools[key] = PlainPool(address, port, maxsize=size)
            return self._pools[key]

    def _body(self, url: str, response: urllib3.BaseHTTPResponse, most: int | None, attempt: Attempt) -> Answer:
        if response.status not in (200, 206):
            response.close()
            if response.status in (412, 416):
                raise changed(url)
            retried = response.status in RETRIED
            if retried:
                self._pause(url, response.headers.get("Retry-After"))
            raise ReadError(f"{url}: HTTP {response.status} {response.reason or ''}".rstrip(), "HttpError", retried)
        pieces: list[bytes] = []
        received, said = 0, response.headers.get("Content-Length", "")
        limit = self.limits.bytes if most is None else most
        while received <= limit and not (said.isdigit() and int(said) > limit):
            if attempt.left_s <= 0:
                response.close()
                raise TimeoutError
            piece = response.read1(2**16)
            if not piece:
                return Answer(b"".join(pieces), response.headers)
            pieces.append(piece)
            received += len(piece)
        response.close()
        if most is not None:
            raise ReadError(f"{url}: the server does not know ranges: download the file first", "NoRanges", False)
        raise ReadError(f"{url} has more than {self.limits.bytes:,} bytes, which are refused", "TooLarge", False)

    def _pause(self, url: str, asked: str | None) -> None:
        seconds = _retry_after(asked)
        if seconds is None:
            return
        if seconds > self.limits.pause_s:
            raise ReadError(f"{url}: the server asks to come back in {seconds:,.0f} s", ASKED_TO_WAIT)
        self._host(urlsplit(url).netloc).pause(seconds)


def _retry_after(text: str | None) -> float | None:
    """Return the seconds that a `Retry-After` asks for: a number, or a date."""
    if not text:
        return None
    if text.strip().isdigit():
        return float(text)
    with suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return None


def _explained(url: str, error: Exception) -> ReadError:
    text = redact(" ".join(str(error).split()))
    if any(isinstance(part, (urllib3.exceptions.IncompleteRead, IncompleteRead)) for part in (error, *error.args)):
        return ReadError(f"{url}: its body is cut off", "CutOff")
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return ReadError(f"{url}: no connection ({text.rpartition(': ')[2][:160]})", "NoConnection")
    if isinstance(error, urllib3.exceptions.ConnectTimeoutError):
        return ReadError(f"{url}: no connection in time", "ConnectTimeout")
    if isinstance(error, urllib3.exceptions.ReadTimeoutError):
        return ReadError(f"{url}: the server went silent", "ReadTimeout")
    if isinstance(error, (urllib3.exceptions.SSLError, ssl.SSLError)):
        return ReadError(f"{url}: no trusted connection ({text[:200]})", "SSLError", False)
    if isinstance(error, urllib3.exceptions.LocationValueError) or type(error) is ValueError:
        return ReadError(f"{url}: {text[:200]}", "BadUrl", False)
    return ReadError(f"{url}: {text[:200] or type(error).__name__}", type(error).__name__)


@functools.cache
def _agent() -> str:
    from importlib.metadata import version

    return f"embedx/{version('embedx')}"


def shared_fetcher(access: Access, allow_private: bool = False) -> Fetcher:
    """Return this process's fetcher for an access.

    Args:
        access: of the run.
        allow_private: whether private networks are allowed whatever the access says.
    """
    return _shared_fetcher(allow_private or access.allow_private_networks, access.hosts)


@functools.lru_cache(maxsize=8)
def _shared_fetcher(allow_private: bool, hosts: str) -> Fetcher:
    return Fetcher(allow_private, hosts=hosts)
