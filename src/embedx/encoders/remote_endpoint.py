"""One HTTP endpoint that embeds texts: requests with back-off, counted, its errors told apart, its key kept secret."""

from __future__ import annotations

import email.utils
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedx.core.errors import BusyError, EncoderError
from embedx.core.meter import current_meter
from embedx.encoders.remote_answers import Answer, BadAnswerError, openai_body, read_openai, read_tei, tei_body

if TYPE_CHECKING:
    import httpx

LONGEST_WAIT_S = 120.0
"""A service that asks for a longer pause than this ends the run; finished shards are kept."""

BACKOFF_MAX_S = 30.0

TOO_LARGE = (400, 413, 422)
"""What services say of a batch or a text that is too large, or that they do not take."""


@dataclass(frozen=True)
class Route:
    """A protocol.

    Attributes:
        body: (model, texts, dimensions, truncate) -> JSON to send.
        read: (answer, count, dim) -> vectors; raises `BadAnswerError`.
    """

    body: Callable[[str, Sequence[str], int | None, bool], dict[str, Any]]
    read: Callable[[bytes, int, int | None], Answer]


ROUTES = {"openai": Route(openai_body, read_openai), "tei": Route(tei_body, read_tei)}


@dataclass(frozen=True)
class Address:
    """Where an encoder is, and how it is spoken to.

    Attributes:
        model: its name there.
        url: of the route, without credentials.
        route: openai or tei.
        dimensions: ask for vectors of this length; None is the model's own.
        truncate: let the service cut long texts (tei only).
        key_env: the environment variable that holds the key; unset sends none.
        timeout_s: for one answer.
        attempts: of one request before it counts as failed.
        wait_s: before the second attempt; doubled for each further one, with jitter.
    """

    model: str
    url: str
    route: str
    dimensions: int | None = None
    truncate: bool = False
    key_env: str = "EMBEDX_REMOTE_KEY"
    timeout_s: float = 60.0
    attempts: int = 6
    wait_s: float = 0.5


class RefusedError(Exception):
    """The endpoint gives no vectors for these texts; fewer of them may work.

    Args:
        message: what it said, without the key.
        is_fault: whether the service failed, rather than refusing the texts.
        may_be_size: whether the batch may have been too large.
    """

    def __init__(self, message: str, is_fault: bool, may_be_size: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.is_fault = is_fault
        self.may_be_size = may_be_size


class _AgainError(Exception):
    """One attempt failed in a way that another may mend.

    Args:
        message: what happened, without the key.
        wait_s: what the service asks for; None is our own back-off.
        is_gone: it cannot be reached, or has no capacity: fewer texts at a time do not help.
    """

    def __init__(self, message: str, wait_s: float | None = None, is_gone: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.wait_s = wait_s
        self.is_gone = is_gone


class Endpoint:
    """Sends texts to an address. Thread-safe; the connection is made with the first request."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._client: httpx.Client | None = None
        self._lock = threading.Lock()

    def embed(self, texts: Sequence[str], dim: int | None) -> Answer:
        """Return the vectors of texts, tried again as often as the address says.

        Args:
            texts: of one request.
            dim: what the vectors must have; None accepts any.

        Raises:
            RefusedError: it does not embed these texts.
            EncoderError: it does not let us in, or has no such model.
            BusyError: it cannot be reached, or wants us to come back later.
            RequestLimitError: no request is left.
        """
        tried = 0
        while True:
            try:
                return self._try(texts, dim, is_retry=tried > 0)
            except _AgainError as error:
                tried += 1
                if tried >= self.address.attempts:
                    said = f"{self.address.url} {error.message}, {tried} times"
                    if error.is_gone:
                        raise BusyError(said, "The same command goes on where it stopped") from None
                    raise RefusedError(said, is_fault=True) from None
                pause = _backoff(tried, self.address.wait_s, error.wait_s)
            time.sleep(pause)

    def _try(self, texts: Sequence[str], dim: int | None, is_retry: bool) -> Answer:
        import httpx

        route, address = ROUTES[self.address.route], self.address
        body = route.body(address.model, texts, address.dimensions, address.truncate)
        client = self._open_client()
        meter = current_meter()
        meter.take_request(is_retry)
        try:
            response = client.post(address.url, json=body)
        except httpx.ConnectError as error:
            raise _AgainError(f"cannot be reached ({self._clean(error)})", is_gone=True) from None
        except httpx.TimeoutException:
            raise _AgainError(f"did not answer within {address.timeout_s:g} s") from None
        except httpx.HTTPError as error:
            raise _AgainError(f"broke off ({self._clean(error)})") from None
        if response.status_code != 200:
            self._raise_status(response)
        try:
            answer = route.read(response.content, len(texts), dim)
        except BadAnswerError as error:
            raise _AgainError(f"answered wrongly: {self._clean(error)}") from None
        meter.add_tokens(answer.tokens)
        return answer

    def _raise_status(self, response: httpx.Response) -> None:
        status, url = response.status_code, self.address.url
        if status in (401, 403):
            # What it says is not repeated: such answers quote keys.
            state = "the key in it" if os.environ.get(self.address.key_env) else "it is unset"
            raise EncoderError(f"{url} does not let us in (HTTP {status})", f"Check {self.address.key_env}: {state}")
        said = f"HTTP {status}: {self._clean(response.text[:2000])[:200]}"
        if status == 429 or (status == 503 and "retry-after" in response.headers):
            wait_s = _retry_after(response.headers.get("retry-after"))
            if wait_s is not None and wait_s > LONGEST_WAIT_S:
                raise BusyError(f"{url} asks for a pause of {wait_s:.0f} s ({said})", "Run the same command then")
            raise _AgainError(f"has no capacity ({said})", wait_s, is_gone=True)
        if status >= 500 or status == 408:
            raise _AgainError(f"failed ({said})")
        if status in TOO_LARGE:
            raise RefusedError(f"{url} refused ({said})", is_fault=False, may_be_size=True)
        raise EncoderError(f"{url} gave {said}", "Check the address and the model's name")

    def _open_client(self) -> httpx.Client:
        import httpx

        with self._lock:
            if self._client is None:
                key = os.environ.get(self.address.key_env, "").strip()
                if not key.isprintable() or not key.isascii():
                    raise EncoderError(f"{self.address.key_env} holds characters that no key has", "Set it again")
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                # Redirects are not followed: the key is for this address only.
                self._client = httpx.Client(headers=headers, timeout=self.address.timeout_s, follow_redirects=False)
            return self._client

    def _clean(self, said: object) -> str:
        """Return what a service or a library said in one line and without the key."""
        text = " ".join(str(said).split())
        key = os.environ.get(self.address.key_env, "").strip()
        return text.replace(key, "***") if key else text


def _backoff(tried: int, first_s: float, asked_s: float | None) -> float:
    """Return the seconds to wait: doubled each time, or as asked; with jitter, so that processes do not come as one."""
    if asked_s is not None:
        return asked_s + random.uniform(0, first_s)
    return min(BACKOFF_MAX_S, first_s * 2 ** (tried - 1)) * random.uniform(0.5, 1.5)


def _retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for: a number, or an HTTP date."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
