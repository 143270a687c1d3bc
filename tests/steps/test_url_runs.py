"""Runs over URLs and object stores that misbehave: every item ends embedded or failed with its cause."""

import json

import pytest

from embedx.store.reader import open_store
from tests import photos, servers
from tests.conftest import Command
from tests.test_security import files_with

FILES = {name: data for name, data in photos.photos().items() if name not in ("cats/cut.png", "dogs/page.jpg")}
GOOD = FILES["cats/1.png"]

FLAGS = ("--encoder", "pixels:8", "--out", "s", "--max-failures", "50%", "--columns", "none")


@pytest.fixture(scope="module")
def scheduler():
    with servers.dask_cluster({**photos.PIXELS, "EMBEDX_FETCH_S": "5"}) as scheduler:
        yield {**photos.PIXELS, "EMBEDX_CLUSTER": scheduler}


def passing(number):
    """Ways to misbehave that pass: of a hundred URLs, every tenth fails at first."""
    return [
        servers.fails_at_first(1),
        servers.fails_at_first(2, 500),
        servers.resets_at_first(1),
        servers.cuts_off(1),
        servers.fails_at_first(1, 429, Retry_After="1"),
    ][number // 10 % 5]


LASTING = {
    "gone": (lambda handler, number: handler.give(b"", 404), "HttpError"),
    "broken": (servers.fails_at_first(99), "HttpError"),
    "cut": (servers.cuts_off(99), "CutOff"),
    "drip": (servers.drips("body"), "TooSlow"),
    "private": (servers.redirects("file:///etc/passwd"), "BadRedirect"),
    "page": (lambda handler, number: handler.give(b"<!doctype html><html>no</html>"), "UnidentifiedImageError"),
    "round": (servers.redirects("/round"), "TooManyRedirects"),
}


def test_a_flaky_server(scheduler, tmp_path):
    command = Command(tmp_path)
    with servers.web_server() as web:
        rows = []
        for number in range(100):
            web.files[f"/{number}.png"] = GOOD
            rows.append({"id": f"good-{number}", "url": f"{web.url}/{number}.png"})
            if number % 10 == 0:
                web.behaviours[f"/{number}.png"] = passing(number)
        for name, (behaviour, _) in LASTING.items():
            web.files[f"/{name}"] = GOOD
            web.behaviours[f"/{name}"] = behaviour
            rows.append({"id": name, "url": f"{web.url}/{name}"})
        rows += [{"id": "ftp", "url": "ftp://example.org/x"}, {"id": "secret", "url": "http://me:pw123@127.0.0.1/x"}]
        rows += [{"id": "null", "url": None}, {"id": "unknown", "url": "http://no-such-host.invalid/x.png"}]
        (tmp_path / "urls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        report = command.json("extract", "urls.jsonl", "--allow-private-networks", *FLAGS, env=scheduler)
        assert report["items"]["embedded"] == 100 and report["items"]["failed"] == len(LASTING) + 4
        failures = {failure["id"]: failure for failure in command.json("failures", "s")["failures"]}
        for name, (_, error) in LASTING.items():
            assert failures[name]["error"] == error and failures[name]["message"], failures[name]
        assert failures["unknown"]["error"] == "UnknownHost" and "known are" in failures["ftp"]["message"]
        assert "password" in failures["secret"]["message"] and "no path but None" in failures["null"]["message"]
        assert max(web.asked.values()) <= 12, "retries are bounded, also in the trial of the encoder"
        asked = sum(web.asked.values())
        again = command.json("extract", "urls.jsonl", "--allow-private-networks", *FLAGS, env=scheduler)
        assert again["run"] is None and sum(web.asked.values()) == asked, "nothing is fetched twice"
        web.behaviours.clear()
        mended = command.json(
            "extract", "urls.jsonl", "--allow-private-networks", *FLAGS, "--retry-failed", env=scheduler
        )
        assert mended["items"]["embedded"] == len(LASTING)
    assert not files_with(b"pw123", [tmp_path / "s"])


def test_private_addresses_need_a_flag(scheduler, tmp_path):
    command = Command(tmp_path)
    with servers.web_server() as web:
        web.files["/a.png"] = GOOD
        (tmp_path / "urls.txt").write_text(f"{web.url}/a.png\n")
        error = command.json("extract", "urls.txt", *FLAGS, "--max-failures", "0", env=scheduler, status=3)["error"]
        assert error["code"] == 3 and not web.asked
        allowed = (*FLAGS, "--max-failures", "0", "--allow-private-networks", "--retry-failed")
        command.json("extract", "urls.txt", *allowed, env=scheduler)
        assert open_store(tmp_path / "s").vectors()[0].tolist() == [f"{web.url}/a.png"], "the URL is the id"


def test_credentials_are_written_nowhere(scheduler, tmp_path):
    """Not to the store of a run that failed, with its plan still there, nor to any output."""
    command = Command(tmp_path)
    with servers.s3_server() as s3:
        servers.fill_bucket(s3, "pics", {**{f"p/{name}": data for name, data in FILES.items()}, "p/bad.png": b"bad"})
        arguments = ("extract", "s3://pics/p/", "--encoder", "pixels:8", "--out", "s", *servers.s3_options(s3))
        outputs = [
            command(*arguments, "--dry-run", "--json", env=scheduler),
            command(*arguments, "--max-failures", "0", "--json", env=scheduler, status=3),
            command("extract", "s3://gone/p/", *arguments[2:], env=scheduler, status=1),
            command(
                "extract", "s3://pics/p/", *arguments[2:], "--storage-option", "nonsense=1", env=scheduler, status=1
            ),
            command(
                "extract", "s3://pics/p/", *arguments[2:], "--storage-option", "canary-odd", env=scheduler, status=2
            ),
        ]
        assert files_with(b"cats/1.png", [tmp_path / "s"]), "the plan is there to be searched"
        outputs.append(command(*arguments, "--max-failures", "1", env=scheduler))
    for secret in (*servers.S3_FLAGS.values(), "canary-odd"):
        assert not files_with(secret.encode(), [tmp_path]), secret
        assert not [done.args for done in outputs if secret in done.stdout + done.stderr], secret
    assert "s3://user:canary" not in outputs[0].stdout


def signed(path, day):
    return f"{path}?id=7&X-Amz-Date={day}&X-Amz-Signature=canary-signature-{day}&X-Amz-Expires=60"


@pytest.mark.parametrize("form", ["jsonl", "txt"])
def test_signatures_are_written_nowhere(scheduler, tmp_path, form):
    """They stand in the plan while a run is open, and in nothing that is shown or published."""
    command, outputs = Command(tmp_path), []
    flags = ("extract", f"urls.{form}", "--allow-private-networks", "--encoder", "pixels:8", "--out", "s")
    shared = set()

    def behave(handler, number):
        shared.update(path.name.partition(".")[2] for path in (tmp_path / "s").glob("_embedx/runs/*/hosts/*"))
        handler.whole()

    with servers.web_server() as web:
        for day in (1, 2):
            urls = {name: signed(f"/{name}", day) for name in FILES}
            web.files.update({url: FILES[name] for name, url in urls.items()})
            web.behaviours.update(dict.fromkeys(urls.values(), behave))
            rows = [{"id": name, "url": web.url + url} for name, url in urls.items()]
            rows += [{"id": "gone", "url": web.url + signed("/gone", day)}]
            lines = [json.dumps(row) if form == "jsonl" else row["url"] for row in rows]
            (tmp_path / f"urls.{form}").write_text("\n".join(lines) + "\n")
            outputs.append(command(*flags, "--dry-run", "--json", env=scheduler))
            if day == 1:
                failed = command(*flags, "--max-failures", "0", "--json", env=scheduler, status=3)
                outputs.append(failed)
                assert files_with(b"canary-signature", [tmp_path / "s"]), "the plan is there to be searched"
            done = command(*flags, "--max-failures", "1", "--json", env=scheduler)
            outputs.append(done)
            report = json.loads(done.stdout)
            assert report["items"]["planned"] == (11 if day == 1 else 0), "signed anew is no change"
            assert not files_with(b"canary-signature", [tmp_path / "s"])
        outputs += [command(*words, env=scheduler) for words in (("failures", "s"), ("inspect", "s"))]
        outputs.append(command("verify", "s", "--deep", "1", "--allow-private-networks", env=scheduler, status=1))
    assert not [done.args for done in outputs if "canary" in done.stdout + done.stderr]
    assert "without its signature" in outputs[-1].stdout
    paths = open_store(tmp_path / "s").table(["path"]).column("path").to_pylist()
    assert all(path.endswith("?id=7&***") for path in paths)
    assert "0" in shared and not list((tmp_path / "s").glob("_embedx/runs/*/hosts")), "workers share connections"


def test_a_signed_source_is_read_and_not_shown(scheduler, tmp_path):
    command = Command(tmp_path)
    with servers.web_server() as web:
        tar = photos.write_tar(tmp_path / "a.tar", FILES).read_bytes()
        (tmp_path / "a.tar").unlink()
        web.files.update({signed("/a.tar", day): tar for day in (1, 2)})
        runs = [
            command(
                "extract",
                web.url + signed("/a.tar", day),
                "--encoder",
                "pixels:8",
                "--out",
                "s",
                "--json",
                env=scheduler,
            )
            for day in (1, 2)
        ]
        gone = command(
            "extract", web.url + signed("/b.tar", 1), "--encoder", "pixels:8", "--out", "s", env=scheduler, status=1
        )
    assert [json.loads(done.stdout)["items"]["planned"] for done in runs] == [10, 0]
    assert not files_with(b"canary-signature", [tmp_path])
    assert not [done for done in (*runs, gone) if "canary" in done.stdout + done.stderr] and "/b.tar" in gone.stderr


def test_a_source_with_a_password_is_refused_and_not_repeated(embedx, tmp_path):
    done = embedx("extract", "https://me:canary-pw@example.org/a.parquet", *FLAGS, env=photos.PIXELS, status=1)
    assert "password" in done.stderr and "canary-pw" not in done.stderr


def test_remote_tables_of_texts_and_images(scheduler, tmp_path):
    import gzip

    command = Command(tmp_path)
    with servers.s3_server() as s3, servers.web_server() as web:
        rows = [{"id": name, "path": f"pictures/{name}"} for name in FILES]
        rows += [{"id": "out", "path": "../../secret.png"}, {"id": "local", "path": "/etc/passwd"}]
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        objects = {f"t/pictures/{name}": data for name, data in FILES.items()}
        servers.fill_bucket(s3, "pics", {**objects, "t/index.jsonl.gz": gzip.compress(lines)})
        arguments = ("s3://pics/t/index.jsonl.gz", "--image-column", "path", *servers.s3_options(s3))
        report = command.json("extract", *arguments, *FLAGS, env=scheduler)
        assert (report["items"]["embedded"], report["items"]["failed"]) == (10, 2)
        failures = command.json("failures", "s")["failures"]
        assert all("outside of s3://pics/t" in failure["message"] for failure in failures)
        photos.write_tar(tmp_path / "a.tar", FILES)
        web.files["/a.tar"] = (tmp_path / "a.tar").read_bytes()
        error = command.json("extract", f"{web.url}/", *FLAGS, env=scheduler, status=1)["error"]
        assert "cannot be listed" in error["message"]
