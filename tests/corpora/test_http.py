"""Fetching from a real server that misbehaves: every URL ends as bytes or with its cause, in bounded time."""

import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from embedx.corpora.addresses import is_public
from embedx.corpora.errors import ReadError
from embedx.corpora.hosts import Host
from embedx.corpora.http import FAILED_IN_ROW, Fetcher, Limits
from embedx.corpora.web import WebFiles
from tests import servers

BODY = bytes(range(256)) * 200

LIMITS = Limits(bytes=100_000, seconds=1.5, connect_s=1, silence_s=1, attempts=3, backoff_s=0.02, pause_s=2)


@pytest.fixture(scope="module")
def web():
    with servers.web_server() as web:
        yield web


@pytest.fixture
def fetcher():
    return Fetcher(True, LIMITS)


def error_of(fetcher, url):
    with pytest.raises(ReadError) as caught:
        fetcher.fetch(url)
    return caught.value


@pytest.mark.parametrize(
    "behaviour",
    [
        None,
        servers.fails_at_first(2),
        servers.fails_at_first(2, 500),
        servers.resets_at_first(2),
        servers.cuts_off(2),
        servers.redirects("/good"),
        servers.redirects("/good", 308),
    ],
)
def test_what_passes_is_had(web, fetcher, behaviour):
    path = f"/{time.monotonic_ns()} é"
    web.files["/good"] = BODY
    quoted = path.replace(" ", "%20").replace("é", "%C3%A9")
    web.files[quoted] = BODY
    if behaviour:
        web.behaviours[quoted] = behaviour
    assert fetcher.fetch(web.url + path) == BODY
    assert web.asked[quoted] <= LIMITS.attempts


@pytest.mark.parametrize(
    ("behaviour", "error", "said", "tries"),
    [
        (lambda handler, number: handler.give(b"", 404), "HttpError", "HTTP 404", 1),
        (lambda handler, number: handler.give(b"", 401), "HttpError", "HTTP 401", 1),
        (servers.fails_at_first(99), "HttpError", "HTTP 503 .*tried 3 times", 3),
        (servers.cuts_off(99), "CutOff", "cut off", 3),
        (servers.resets_at_first(99), "ProtocolError", "tried 3 times", 3),
        (servers.never_ends(), "TooLarge", "more than 100,000 bytes", 1),
        (lambda handler, number: handler.give(b"x" * 200_000), "TooLarge", "more than 100,000 bytes", 1),
        (servers.redirects("/round"), "TooManyRedirects", "more than 5 times", 6),
        (servers.redirects("file:///etc/passwd"), "BadRedirect", "file:///etc/passwd", 1),
        (servers.redirects("ftp://example.org/x"), "BadRedirect", "ftp://", 1),
        (servers.redirects("http://user:secret@127.0.0.1/"), "BadRedirect", "redirects", 1),
        (servers.redirects(""), "BadRedirect", "redirects to ''", 1),
    ],
)
def test_what_does_not_pass_ends_with_its_cause(web, fetcher, behaviour, error, said, tries):
    path = "/round" if error == "TooManyRedirects" else f"/{time.monotonic_ns()}"
    web.files[path] = BODY
    web.behaviours[path] = behaviour
    caught = error_of(fetcher, web.url + path)
    assert caught.error == error
    import re

    assert re.search(said, str(caught)), str(caught)
    assert web.asked[path] == tries


@pytest.mark.parametrize("what", ["headers", "body"])
def test_a_server_that_drips_is_left_in_time(web, what):
    """Every byte comes within the limit of silence, so that only the limit of the attempt ends it."""
    fetcher = Fetcher(True, Limits(seconds=1.0, silence_s=0.8, attempts=1))
    path = f"/drip-{what}"
    web.behaviours[path] = servers.drips(what)
    started = time.monotonic()
    caught = error_of(fetcher, web.url + path)
    # The server drips for 20 seconds.
    assert time.monotonic() - started < 15 and caught.error == "TooSlow" and caught.retryable


def test_a_silent_server_and_a_closed_port(fetcher):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        assert error_of(fetcher, url).error in ("ReadTimeout", "TooSlow")
    assert "efused" in str(error_of(fetcher, url))


def test_retry_after_is_obeyed_for_all_of_a_host(web):
    fetcher = Fetcher(True, LIMITS)
    web.files.update({"/busy": BODY, "/other": BODY})
    web.behaviours["/busy"] = servers.fails_at_first(1, 429, Retry_After="1")
    started = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(fetcher.fetch, f"{web.url}/busy")
        host = fetcher._host(urlsplit(web.url).netloc)
        while not host._not_before and not first.done():
            time.sleep(0.01)
        second = pool.submit(fetcher.fetch, f"{web.url}/other")
        assert first.result() == second.result() == BODY
    assert all(at - started > 0.9 for at in (web.times["/busy"][1], web.times["/other"][0]))
    web.files["/later"] = BODY
    web.behaviours["/later"] = servers.fails_at_first(1, 503, Retry_After="86400")
    assert error_of(fetcher, f"{web.url}/later").error == "AskedToWait"


def test_few_connections_to_one_host():
    most, now = 0, 0
    lock = threading.Lock()

    def behave(handler, number):
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.05)
        with lock:
            now -= 1
        handler.give(b"x")

    with servers.web_server() as web:
        web.behaviours.update({f"/{n}": behave for n in range(40)})
        fetcher = Fetcher(True, Limits(per_host=3))
        with ThreadPoolExecutor(16) as pool:
            assert len(list(pool.map(lambda n: fetcher.fetch(f"{web.url}/{n}"), range(40)))) == 40
    assert most == 3


def test_the_workers_of_a_run_share_the_connections_to_a_host(tmp_path):
    """Each fetcher is one process's; what they share is a folder."""
    running, most = set(), []

    def behave(handler, number):
        running.add(handler)
        most.append(len(running))
        time.sleep(0.03)
        running.discard(handler)
        handler.give(b"x")

    with servers.web_server() as web:
        web.behaviours.update({f"/{n}": behave for n in range(40)})
        fetchers = [Fetcher(True, Limits(per_host=3), str(tmp_path / "hosts")) for _ in range(4)]
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda n: fetchers[n % 4].fetch(f"{web.url}/{n}"), range(40)))
    assert found == [b"x"] * 40 and max(most) == 3


def test_a_worker_that_dies_gives_its_connection_back(tmp_path):
    script = "import sys, time; from embedx.corpora.hosts import Host\n"
    script += "with Host('h', 1, 1, sys.argv[1]).connection(): print('has it', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", script, tmp_path / "hosts"], stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"has it\n"
    taken = threading.Event()

    def take():
        with Host("h", 1, 1, str(tmp_path / "hosts")).connection():
            taken.set()

    threading.Thread(target=take, daemon=True).start()
    assert not taken.wait(0.3), "it is not shared between two"
    other.kill()
    other.wait()
    assert taken.wait(10)


def test_a_pause_is_for_all_workers_of_a_run(tmp_path):
    hosts = [Host("h", 2, 5, str(tmp_path / "hosts")) for _ in range(2)]
    started = time.monotonic()
    with hosts[0].connection():
        hosts[0].pause(0.5)
    with hosts[1].connection():
        assert time.monotonic() - started > 0.4
    with Host("other", 2, 5, str(tmp_path / "hosts")).connection():
        pass
    (tmp_path / "gone").write_text("no folder")
    with pytest.raises(ReadError) as caught, Host("h", 2, 5, str(tmp_path / "gone" / "hosts")).connection():
        pass
    assert caught.value.error == "RunIsOver"


def test_limits_are_read_from_the_environment(monkeypatch):
    monkeypatch.setenv("EMBEDX_PER_HOST", "9")
    monkeypatch.setenv("EMBEDX_FETCH_S", "1.5")
    assert (Fetcher().limits.per_host, Fetcher().limits.seconds) == (9, 1.5)
    for wrong in ("0", "-1", "many", "nan"):
        monkeypatch.setenv("EMBEDX_PER_HOST", wrong)
        with pytest.raises(ReadError, match="EMBEDX_PER_HOST"):
            Fetcher()


def test_a_range_is_of_the_file_that_was_described(web):
    files = WebFiles(Fetcher(True, LIMITS), {})
    web.files["/r"], url = BODY, f"{web.url}/r"
    info = files.info(url)
    assert info["size"] == len(BODY) and files.read_range(url, 5, 9, info["ETag"]) == BODY[5:9]
    web.files["/r"] = BODY[::-1]
    asked = web.asked["/r"]
    with pytest.raises(ReadError, match="changed after it was listed"):
        files.read_range(url, 5, 9, info["ETag"])
    assert web.asked["/r"] == asked + 1, "another attempt would find the same"
    web.behaviours["/r"] = lambda handler, number: handler.give(BODY[5:9], 206, Content_Range="bytes 5-8/51200")
    with pytest.raises(ReadError, match="changed after it was listed"):
        files.read_range(url, 5, 9, '"other"')
    web.files["/empty"] = b""
    web.behaviours["/empty"] = lambda handler, number: handler.give(b"", 416)
    assert files.info(f"{web.url}/empty")["size"] == 0
    web.files["/whole"] = BODY
    web.behaviours["/whole"] = lambda handler, number: handler.whole()
    with pytest.raises(ReadError, match="does not know ranges"):
        files.info(f"{web.url}/whole")


def test_headers_are_not_told_to_other_hosts(web):
    seen = []
    with servers.web_server() as other:
        other.behaviours["/x"] = lambda handler, number: (seen.append(dict(handler.headers)), handler.give(b"x"))
        web.behaviours["/away"] = servers.redirects(f"{other.url}/x")
        Fetcher(True, LIMITS).ask(f"{web.url}/away", {"Authorization": "canary", "Range": "bytes=0-0"}, 1)
    assert "Authorization" not in seen[0] and seen[0]["Range"] == "bytes=0-0"


def test_a_host_that_is_down_does_not_hold_the_rest():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        fetcher = Fetcher(True, Limits(attempts=2, backoff_s=0.01))
        said = [str(error_of(fetcher, f"{url}/{n}")) for n in range(FAILED_IN_ROW + 2)]
    assert "tried 2 times" in said[FAILED_IN_ROW - 1] and "tried" not in said[FAILED_IN_ROW]


# -- addresses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "2002:7f00:1::", "64:ff9b::7f00:1", "ff02::1", "2001:db8::1",
    ],
)  # fmt: skip
def test_private_addresses(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses(address):
    assert is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0177.0.0.1", "2130706433", "[::1]", "[::ffff:127.0.0.1]"])
def test_private_networks_are_refused(web, host):
    port = web.url.rpartition(":")[2]
    web.files["/private"] = BODY
    before = web.asked["/private"]
    assert error_of(Fetcher(False, LIMITS), f"http://{host}:{port}/private").error in ("PrivateAddress", "UnknownHost")
    assert web.asked["/private"] == before


def answers(monkeypatch, *addresses):
    """Let names lead to addresses, one answer after the other."""
    given = iter(addresses)
    asked = []
    real = socket.getaddrinfo

    def answer(host, port, *args, **kwargs):
        if not host.endswith(".test"):
            return real(host, port, *args, **kwargs)
        asked.append(host)
        found = next(given)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in found]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return asked


def test_a_redirect_to_a_private_address_is_refused(web, monkeypatch):
    """The first address is taken for public here, for no server of ours has a public one."""
    import embedx.corpora.addresses as addresses

    web.behaviours["/jump"] = servers.redirects(web.url.replace("127.0.0.1", "inner.test") + "/secret")
    answers(monkeypatch, ["127.0.0.1"], ["127.0.0.1"])
    fetcher = Fetcher(False, LIMITS)
    hosts = iter([True, False])
    monkeypatch.setattr(addresses, "is_public", lambda address: next(hosts))
    caught = error_of(fetcher, web.url.replace("127.0.0.1", "outer.test") + "/jump")
    assert caught.error == "PrivateAddress" and "inner.test" in str(caught)
    assert web.asked["/jump"] == 1 and web.asked["/secret"] == 0


def test_a_name_that_changes_its_address_changes_nothing(web, monkeypatch):
    """DNS rebinding: what was checked is what is connected to; the name is not asked again."""
    import embedx.corpora.addresses as addresses

    web.files["/pinned"] = BODY
    asked = answers(monkeypatch, ["127.0.0.1"], ["192.0.2.1"], ["192.0.2.1"])
    monkeypatch.setattr(addresses, "is_public", lambda address: True)
    fetcher = Fetcher(False, LIMITS)
    for _ in range(3):
        assert fetcher.fetch(web.url.replace("127.0.0.1", "rebind.test") + "/pinned") == BODY
    assert asked == ["rebind.test"]


def test_one_private_address_among_public_ones_is_refused(web, monkeypatch):
    answers(monkeypatch, ["8.8.8.8", "10.0.0.1"])
    assert "10.0.0.1" in str(error_of(Fetcher(False, LIMITS), "http://both.test/x"))
