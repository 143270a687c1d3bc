"""Remote encoders against a real HTTP server in another process that misbehaves: all items right or named."""

import time

import numpy as np
import pytest
from tests.encoders.support import embed
from tests.remote_server import vector_of
from tests.remote_services import serve

from embedx.core.errors import BusyError, EncoderError, UsageError
from embedx.core.meter import Meter, RequestLimitError, metered
from embedx.core.specs import EncoderSpec
from embedx.encoders import remote
from embedx.encoders.registry import open_encoder, parse_ref
from embedx.encoders.remote_answers import BadAnswerError, read_openai, read_tei
from embedx.encoders.remote_endpoint import _retry_after

KEY = "sk-secret-4711"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    remote._discovered.clear()
    monkeypatch.setenv("EMBEDX_REMOTE_KEY", KEY)


def texts_of(count):
    return [f"text number {number} of {count} " + "more words " * (number % 7) for number in range(count)]


def check_right(result, texts, dim=8):
    for vector, place in zip(result.vectors, result.positions.tolist()):
        np.testing.assert_allclose(vector, vector_of(texts[place], dim), atol=1e-5, err_msg=texts[place])


@pytest.mark.parametrize("route", ["/v1", "/v1/embeddings", "/embed"])
def test_right_vectors_by_both_protocols(tmp_path, route):
    texts = texts_of(100)
    with serve(tmp_path, key=KEY) as service:
        spec = parse_ref(str(service.write_encoder(tmp_path / "e.toml", route, batch_items=30, timeout_s=20)))
        encoder = open_encoder(spec)
        result = embed(encoder, texts)
        check_right(result, texts)
        assert len(result.vectors) == 100 and encoder.card.dim == 8 and encoder.card.normalized
        asked = service.requests()
        assert [request["texts"] for request in asked[:1]] == [list(remote.CANARIES[:2])]
        assert max(len(request["texts"]) for request in asked) <= 30 and len(asked) == 5
        assert {request["path"] for request in asked} == {"/embed" if route == "/embed" else "/v1/embeddings"}


def test_every_fault_ends_as_a_right_vector(tmp_path):
    texts = texts_of(120)
    with serve(tmp_path, chaos=0.5, key=KEY) as service:
        spec = parse_ref(str(service.write_encoder(tmp_path / "e.toml", batch_items=4, attempts=20, timeout_s=0.3)))
        result = embed(open_encoder(spec), texts)
        assert not result.failures and len(result.vectors) == 120
        check_right(result, texts)
        did = {request["did"] for request in service.requests()}
        assert len(did) > 8, did


def test_bad_texts_are_named_and_their_neighbours_are_right(tmp_path):
    texts = texts_of(40)
    for place, mark in {3: "500", 17: "400", 18: "nan", 39: "slow"}.items():
        texts[place] += f" ALWAYS-{mark}"
    with serve(tmp_path, slow_s=3) as service:
        spec = parse_ref(str(service.write_encoder(tmp_path / "e.toml", batch_items=8, attempts=2, timeout_s=1.0)))
        result = embed(open_encoder(spec), texts)
    check_right(result, texts)
    assert sorted(result.failures) == [3, 17, 18, 39] and len(result.vectors) == 36
    said = {place: broken.message for place, broken in result.failures.items()}
    assert "HTTP 500" in said[3] and "HTTP 400" in said[17] and "NaN" in said[18] and "did not answer" in said[39]
    assert [result.failures[place].error for place in (3, 17)] == ["ServiceFailed", "Refused"]
    assert KEY not in str(said) and "***" in said[17]


def test_a_batch_that_is_too_large_is_halved_once(tmp_path):
    texts = texts_of(256)
    with serve(tmp_path, most=16) as service:
        spec = parse_ref(str(service.write_encoder(tmp_path / "e.toml", "/embed", concurrency=1, timeout_s=20)))
        result = embed(open_encoder(spec), texts)
        sizes = [len(request["texts"]) for request in service.requests()[1:]]
    check_right(result, texts)
    assert len(result.vectors) == 256 and sum(size > 16 for size in sizes) <= 10, sizes
    assert sum(size for size in sizes if size <= 16) == 256 and len(sizes) < 32


def test_never_more_requests_than_allowed(tmp_path):
    texts = texts_of(64)
    with serve(tmp_path, chaos=0.4, seed=3) as service:
        spec = parse_ref(str(service.write_encoder(tmp_path / "e.toml", batch_items=2, dim=8, attempts=20)))
        encoder = open_encoder(spec)
        for limit in (1, 7, 20):
            before = len(service.requests())
            with metered(Meter(limit)) as meter, pytest.raises(RequestLimitError, match=f"all {limit} requests"):
                embed(encoder, texts)
            # Another thread may have counted its request and not sent it yet; then one too many would come.
            end = time.monotonic() + 30
            while len(service.requests()) - before < limit and time.monotonic() < end:
                time.sleep(0.02)
            time.sleep(0.1)
            assert len(service.requests()) - before == limit == meter.sums()["requests"]


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        ("401", EncoderError, "does not let us in"),
        ("404", EncoderError, "HTTP 404"),
        ("307", EncoderError, "HTTP 307"),
        ("429", BusyError, "has no capacity"),
        ("wait", BusyError, "asks for a pause of 7200 s"),
        ("500", EncoderError, "does not embed a plain text"),
        ("html", EncoderError, "not whole JSON"),
    ],
)
def test_a_service_that_does_not_work_is_an_error_that_says_why(tmp_path, fault, error, said):
    with serve(tmp_path, always=fault) as service:
        spec = parse_ref(str(service.write_encoder(tmp_path / "e.toml", attempts=2)))
        with pytest.raises(error, match=said) as raised:
            open_encoder(spec)
        assert KEY not in str(raised.value) and raised.value.remedy
        assert len(service.requests()) <= 2


def test_a_service_that_fails_for_everything_is_given_up(tmp_path):
    with serve(tmp_path, always="500") as service:
        spec = parse_ref(str(service.write_encoder(tmp_path / "e.toml", attempts=2, dim=8)))
        with pytest.raises(BusyError, match="the last 24 requests all failed"):
            embed(open_encoder(spec), texts_of(300))
        time.sleep(0.1)
        assert len(service.requests()) < 2 * 24 + 2 * 8
    with pytest.raises(BusyError, match="cannot be reached"):  # the server is gone
        embed(open_encoder(spec), ["a"])


def test_a_key_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("EMBEDX_REMOTE_KEY")
    with serve(tmp_path, key=KEY) as service:
        spec = parse_ref(str(service.write_encoder(tmp_path / "e.toml", key_env="MY_KEY")))
        with pytest.raises(EncoderError) as raised:
            open_encoder(spec)
        assert raised.value.remedy == "Check MY_KEY: it is unset"
        monkeypatch.setenv("MY_KEY", KEY)
        assert open_encoder(spec).card.dim == 8
        monkeypatch.setenv("MY_KEY", f"{KEY}\nX-Other: 1")
        remote._discovered.clear()
        with pytest.raises(EncoderError, match="MY_KEY holds characters") as raised:
            open_encoder(spec)
        assert KEY not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model", "names no address"),
        ("model@host:80/v1", "names no address"),
        ("@http://host/v1", "names no address"),
        ("m@http://user:sk-secret-4711@host/v1", "credentials"),
        ("m@http://host/v1?key=sk-secret-4711", "credentials"),
    ],
)
def test_addresses_that_are_refused(name, said):
    with pytest.raises(UsageError, match=said) as raised:
        open_encoder(EncoderSpec("remote", name))
    if said == "credentials":
        assert KEY not in str(raised.value)


def test_options_that_remote_encoders_lack():
    for options, said in [
        ({"layer": "x"}, "no weights, layer or pooling"),
        ({"model_args": {"batch": 1}}, "unknown model_args 'batch'"),
        ({"model_args": {"truncate": True}}, "does not truncate"),
        ({"model_args": {"dim": 3, "batch_items": 0}}, "must be at least 1"),
    ]:
        with pytest.raises(UsageError, match=said):
            open_encoder(EncoderSpec("remote", "m@http://host/v1", **options))


def test_what_the_fingerprint_holds(tmp_path):
    def card(name="m@http://host/v1", **options):
        options["model_args"] = {"dim": 8, **options.get("model_args", {})}
        return open_encoder(EncoderSpec("remote", name, **options)).card

    cards = [
        card(),
        card("n@http://host/v1"),
        card("m@http://host/v2"),
        card(model_args={"dim": 16}),
        card(truncate_dim=8),
        card(prompt="query: "),
    ]
    assert len({card.fingerprint for card in cards}) == 6
    same = card("m@http://host/v1/embeddings", model_args={"concurrency": 9, "timeout_s": 3.0})
    assert same.fingerprint == cards[0].fingerprint
    asked = card(model_args={"query_prompt": "query: "})
    query = open_encoder(EncoderSpec.from_dict(asked.queries["text"])).card
    assert query.space == asked.space and query.fingerprint == cards[5].fingerprint != asked.fingerprint


def test_dimensions_are_asked_for(tmp_path):
    with serve(tmp_path) as service:
        spec = EncoderSpec("remote", f"m@{service.url}", truncate_dim=5)
        assert open_encoder(spec).card.dim == 5


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b"null",
        b'{"data": {}}',
        b'{"data": [1, 2]}',
        b'{"data": [{"index": 0, "embedding": [1, 2]}]}',
        b'{"data": [{"index": 0, "embedding": [1, 2]}, {"index": 0, "embedding": [1, 2]}]}',
        b'{"data": [{"index": true, "embedding": [1, 2]}, {"index": 0, "embedding": [1, 2]}]}',
        b'{"data": [{"embedding": [1, 2]}, {"embedding": [1, 2]}]}',
        b'{"data": [{"index": 1, "embedding": [1, 2]}, {"index": 0, "embedding": [1]}]}',
        b'{"data": [{"index": 1, "embedding": [1, 2]}, {"index": 0, "embedding": [1, [2]]}]}',
        b'{"data": [{"index": 1, "embedding": [1, 2]}, {"index": 0, "embedding": [1, "x"]}]}',
        b'{"data": [{"index": 1, "embedding": [1, 2]}, {"index": 0, "embedding": [1, 1e40]}]}',
        b'{"data": [{"index": 1, "embedding": [1, 2]}, {"index": 0, "embedding": null}]}',
    ],
)
def test_answers_that_are_no_two_vectors(answer):
    with pytest.raises(BadAnswerError):
        read_openai(answer, 2, 2)


def test_good_answers():
    answer = b'{"data": [{"index": 1, "embedding": [3, 4]}, {"index": 0, "embedding": [1, 2]}], "usage": {"total_tokens": 7}}'
    read = read_openai(answer, 2, None)
    np.testing.assert_array_equal(read.vectors, [[1, 2], [3, 4]])
    assert read.tokens == 7 and read.vectors.dtype == np.float32
    np.testing.assert_array_equal(read_tei(b"[[1, 2], [3, 4]]", 2, 2).vectors, [[1, 2], [3, 4]])
    with pytest.raises(BadAnswerError, match="does not hold 3 vectors"):
        read_tei(b"[[1, 2], [3, 4]]", 3, 2)


def test_retry_after():
    assert _retry_after("2.5") == 2.5 and _retry_after("-1") == 0 and _retry_after(None) is None
    assert _retry_after("soon") is None
    in_an_hour = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 3600))
    assert 3590 < _retry_after(in_an_hour) < 3610
