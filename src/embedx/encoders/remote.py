"""Encoders behind HTTP: `remote:MODEL@URL`, by OpenAI's protocol or text-embeddings-inference's own.

`remote:text-embedding-3-small@https://api.openai.com/v1` posts to `/v1/embeddings`; a URL that ends with `/embed` is
TEI's native route. The key comes from the environment variable `EMBEDX_REMOTE_KEY` (or the one that `key_env` names)
and goes nowhere but into the requests' header. `[model_args]` of an encoder file may hold `truncate`, `query_prompt`,
`dim`, and how to ask: `batch_items`, `batch_tokens`, `concurrency`, `timeout_s`, `attempts`, `wait_s`, `key_env`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from embedx.core.contracts import Broken, EncoderCard, Forwarded, Prepared
from embedx.core.errors import BusyError, EncoderError, UsageError
from embedx.core.specs import EncoderSpec
from embedx.encoders.remote_endpoint import Address, Endpoint, RefusedError
from embedx.encoders.text import CANARIES, text_card

BYTES_PER_TOKEN = 3
"""A cautious guess, for batches only: English has four, other scripts fewer."""

FLOPS_PER_TOKEN = 1.5e8
"""Unknown; this one cuts shards of 100,000 tokens: what a lost shard costs to ask for again."""

MOST_FAULTS = 24
"""Requests that fail one after the other, each after all its attempts, before the service is given up. Finding one bad
text in a batch of 512 takes ten."""


@dataclass(frozen=True)
class Manners:
    """How a service is asked; changes no vector.

    Attributes:
        batch_items: most texts of a request. OpenAI takes 2,048, TEI 32 unless it is told otherwise; a batch that is
            refused is halved, and the size that is taken is remembered.
        batch_tokens: most tokens of a request, by a guess from the texts' bytes.
        concurrency: most requests at a time of one worker process.
    """

    batch_items: int = 128
    batch_tokens: int = 50_000
    concurrency: int = 4

    def __post_init__(self) -> None:
        if min(self.batch_items, self.batch_tokens, self.concurrency) < 1:
            raise UsageError("batch_items, batch_tokens and concurrency must be at least 1", "Mend the encoder file")


_OF_ADDRESS = ("key_env", "timeout_s", "attempts", "wait_s")
_OF_MANNERS = ("batch_items", "batch_tokens", "concurrency")
MODEL_ARGS = ("truncate", "query_prompt", "dim", "normalized", *_OF_MANNERS, *_OF_ADDRESS)


class RemoteEncoder:
    """An encoder of texts that a service computes. Open it with `open_encoder`.

    Args:
        card: what the encoder is, as far as can be known.
        address: where it is.
        manners: how it is asked.
        prompt: words put before every text.
    """

    def __init__(self, card: EncoderCard, address: Address, manners: Manners, prompt: str) -> None:
        self._card = card
        self._address = address
        self._manners = manners
        self._prompt = prompt

    @property
    def card(self) -> EncoderCard:
        """What the encoder is."""
        return self._card

    def prepare(self, items: Sequence[str | Broken]) -> Prepared:
        """Put the prompt before each text; entries are texts."""
        failures: dict[int, Broken] = {}
        entries, kept = [], []
        for place, item in enumerate(items):
            if isinstance(item, Broken):
                failures[place] = item
                continue
            try:
                item.encode()
            except UnicodeError as error:
                failures[place] = Broken.from_exception("prepare", error)
                continue
            entries.append(self._prompt + item)
            kept.append(place)
        return Prepared(entries, np.array(kept, dtype=np.int64), failures)

    def cost(self, prepared: Prepared) -> np.ndarray:
        """Return (m,) int64 tokens, guessed; at least a text's share of a request."""
        least = -(-self._manners.batch_tokens // self._manners.batch_items)
        tokens = [len(text.encode()) // BYTES_PER_TOKEN + 1 for text in prepared.items]
        return np.maximum(np.array(tokens, dtype=np.int64), least)

    def collate(self, entries: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the texts as an object array."""
        return {"texts": np.array(entries, dtype=object)}

    def build(self) -> RemoteFunction:
        """Return the function that asks the service; it connects with the first call."""
        return RemoteFunction(Endpoint(self._address), self._card.dim, self._manners)

    def canaries(self) -> list[Any]:
        """Return a few fixed texts: the only guard against another model behind the same address."""
        return list(CANARIES)


class RemoteFunction:
    """Texts to vectors by requests; texts that are refused fail by name, and cost their neighbours nothing.

    Args:
        endpoint: answers.
        dim: what its vectors must have.
        manners: how it is asked.
    """

    def __init__(self, endpoint: Endpoint, dim: int, manners: Manners) -> None:
        self.parallel_requests = manners.concurrency
        self.batch_cost = manners.batch_tokens
        self._endpoint = endpoint
        self._dim = dim
        self._most_items = manners.batch_items
        self._faults = 0
        self._lock = threading.Lock()

    def __call__(self, texts: np.ndarray) -> Forwarded:
        """Return (n, dim) float32 and the texts that have no vector.

        Raises:
            BusyError: the service cannot be reached, or does nothing but fail.
            EncoderError: it does not let us in.
            RequestLimitError: no request is left.
        """
        result = Forwarded(np.full((len(texts), self._dim), np.nan, dtype=np.float32))
        start = 0
        while start < len(texts):
            stop = min(len(texts), start + self._most_items)
            self._embed(texts, np.arange(start, stop), result)
            start = stop
        return result

    def _embed(self, texts: np.ndarray, rows: np.ndarray, result: Forwarded) -> bool:
        """Ask for some texts, by halves where they are refused; returns whether all have vectors."""
        try:
            answer = self._endpoint.embed(texts[rows].tolist(), self._dim)
        except RefusedError as refused:
            self._count_fault(refused)
            if len(rows) == 1:
                error = "ServiceFailed" if refused.is_fault else "Refused"
                result.failures[int(rows[0])] = Broken("forward", error, refused.message[:500], refused.is_fault)
                return False
            half = len(rows) // 2
            # Both halves are asked for, whatever becomes of the first one.
            good = [self._embed(texts, part, result) for part in (rows[:half], rows[half:])]
            if all(good) and refused.may_be_size:
                self._most_items = min(self._most_items, len(rows) - half)
            return all(good)
        self._faults = 0
        result.vectors[rows] = answer.vectors
        return True

    def _count_fault(self, refused: RefusedError) -> None:
        if not refused.is_fault:
            return
        with self._lock:
            self._faults += 1
        if self._faults >= MOST_FAULTS:
            raise BusyError(
                f"the last {MOST_FAULTS} requests all failed, the last one: {refused.message}",
                "Look at the service; the same command goes on where it stopped",
            )


def open_encoder(spec: EncoderSpec) -> RemoteEncoder:
    """Open an encoder behind HTTP; one request finds the length of its vectors, unless the spec says it.

    Raises:
        UsageError: no address, one with credentials, or options that remote encoders do not have.
        EncoderError: the service does not let us in, or does not embed a plain text.
        BusyError: it cannot be reached.
    """
    address, manners = _address(spec), _manners(spec)
    if spec.model_args.get("dim") is None:
        dim, normalized = _discover(address)
        spec = replace(spec, model_args={**spec.model_args, "dim": dim, "normalized": normalized})
    prompt = spec.prompt or ""
    return RemoteEncoder(_card(spec, address, prompt), address, manners, prompt)


def list_encoders() -> list[dict[str, Any]]:
    """Return nothing: remote encoders are named by their address."""
    return []


def _address(spec: EncoderSpec) -> Address:
    model, _, url = spec.name.partition("@")
    parts = urlsplit(url)
    if not model or parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{spec.ref} names no address", "Write remote:MODEL@URL, such as remote:m@http://host:8080/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            f"the address of remote:{model}@{parts.scheme}://{parts.hostname} holds credentials or parameters",
            "It is kept in stores: put the key into EMBEDX_REMOTE_KEY, and leave out ?...",
        )
    if spec.weights or spec.layer or spec.pooling:
        raise UsageError(f"{spec.ref}: a remote encoder has no weights, layer or pooling here", "Leave them out")
    if unknown := [name for name in spec.model_args if name not in MODEL_ARGS]:
        raise UsageError(f"{spec.ref}: unknown model_args {unknown[0]!r}", f"Known: {', '.join(MODEL_ARGS)}")
    url = url.rstrip("/")
    route = "tei" if url.endswith("/embed") else "openai"
    truncate = bool(spec.model_args.get("truncate"))
    if route == "openai" and truncate:
        raise UsageError(f"{spec.ref}: this protocol does not truncate", "Leave out truncate; long texts fail by name")
    if route == "openai" and not url.endswith("/embeddings"):
        url += "/embeddings"
    options = {name: spec.model_args[name] for name in _OF_ADDRESS if name in spec.model_args}
    return Address(model, url, route, spec.truncate_dim, truncate, **options)


def _manners(spec: EncoderSpec) -> Manners:
    return Manners(**{name: spec.model_args[name] for name in _OF_MANNERS if name in spec.model_args})


_discovered: dict[Address, tuple[int, bool]] = {}
"""What this process has asked for: a command opens its encoder more than once."""


def _discover(address: Address) -> tuple[int, bool]:
    """Ask for two vectors, for a service may cut one short now and then: their length, and whether the first has 1."""
    if address not in _discovered:
        try:
            vector = Endpoint(address).embed(list(CANARIES[:2]), address.dimensions).vectors[0]
        except RefusedError as refused:
            raise EncoderError(f"{address.model} does not embed a plain text: {refused.message}", "Check it") from None
        _discovered[address] = len(vector), bool(abs(np.linalg.norm(vector) - 1) < 1e-3)
    return _discovered[address]


def _card(spec: EncoderSpec, address: Address, prompt: str) -> EncoderCard:
    given = spec.model_args
    identity = {
        "architecture": f"remote, {address.route}",
        "model": address.model,
        "url": address.url,
        "dim": given["dim"],
        "dimensions": address.dimensions,
        "truncate": address.truncate,
    }
    queries = {}
    if given.get("query_prompt") is not None:
        rest = {name: value for name, value in given.items() if name != "query_prompt"}
        queries = {"text": replace(spec, prompt=given["query_prompt"], model_args=rest).to_dict()}
    return text_card(
        spec,
        identity,
        prompt,
        dim=int(given["dim"]),
        normalized=bool(given.get("normalized")),
        flops=FLOPS_PER_TOKEN,
        parameters=0,
        input={"route": address.route},
        weights_from=f"{address.url}; they have no fingerprint: the canary vectors guard them",
        queries=queries,
        direct=True,
        unseen=True,
    )
