"""gs:// against a server with Google's JSON interface; needs the library gcsfs (`embedx[gs]`)."""

import base64
import hashlib
import importlib
import json
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from embedx.core.errors import CorpusError
from embedx.core.specs import Access, CorpusSpec
from embedx.corpora.content import ImageReader
from embedx.corpora.listing import open_corpus
from embedx.corpora.systems import open_system
from tests import photos

FILES = {name: data for name, data in photos.photos().items() if name not in ("cats/cut.png", "dogs/page.jpg")}


@contextmanager
def google_server(objects, page=3):
    """Lists, describes and gives the objects of one bucket."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            parts = urlsplit(self.path)
            asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
            words = parts.path.partition("/b/")[2].split("/")
            name = unquote(words[2]) if len(words) > 2 else ""
            if not name:
                return self.answer(self.listing(asked))
            if name not in objects:
                return self.answer({"error": {"code": 404, "message": "No such object"}}, 404)
            if asked.get("alt") != "media":
                return self.answer(described(name))
            first, _, last = self.headers.get("Range", "bytes=0-").partition("=")[2].partition("-")
            data = objects[name][int(first) : int(last) + 1 if last else None]
            self.answer(data, 206 if "Range" in self.headers else 200)

        def listing(self, asked):
            names = sorted(name for name in objects if name.startswith(asked.get("prefix", "")))
            if asked.get("delimiter"):
                return {"items": [described(name) for name in names if "/" not in name[len(asked.get("prefix", "")) :]],
                        "prefixes": sorted({name[: name.index("/", len(asked.get("prefix", ""))) + 1] for name in names
                                            if "/" in name[len(asked.get("prefix", "")) :]})}  # fmt: skip
            start = int(asked.get("pageToken", 0))
            more = {"nextPageToken": str(start + page)} if start + page < len(names) else {}
            return {"items": [described(name) for name in names[start : start + page]], **more}

        def answer(self, body, status=200):
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    def described(name):
        digest = base64.b64encode(hashlib.md5(objects[name]).digest()).decode()
        tags = {"etag": f"tag-{digest}", "md5Hash": digest, "generation": "1"}
        return {"kind": "storage#object", "name": name, "bucket": "pics", "size": str(len(objects[name])), **tags}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        yield Access((("endpoint_url", endpoint), ("token", "anon"), ("project", "p")))
    finally:
        server.shutdown()
        server.server_close()


def rows_of(access, source):
    corpus = open_corpus(CorpusSpec((source,), access=access), modality="image")
    return [row for batch in corpus.iterate_batches() for row in batch.to_pylist()]


def read_all(rows, access):
    with ImageReader([row["locator"] for row in rows], [row["identity"] for row in rows], access) as reader:
        return [reader.read(position) for position in range(len(rows))]


def test_objects_and_tars_of_google(tmp_path, monkeypatch):
    # Else gcsfs asks by gRPC first what kind of bucket it is, for a minute.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    pytest.importorskip("gcsfs", reason="embedx[gs] is not installed")
    tar = photos.write_tar(tmp_path / "a.tar", FILES).read_bytes()
    objects = {**{f"p/{name}": data for name, data in FILES.items()}, "p/notes.md": b"x", "t/a.tar": tar}
    with google_server(objects) as access:
        for source in ("gs://pics/p/", "gs://pics/t/a.tar", "gs://pics/t/"):
            rows = rows_of(access, source)
            assert [row["item_id"] for row in rows] == list(FILES), source
            assert [content.size_bytes for content in read_all(rows, access)] == list(map(len, FILES.values()))
        objects["t/a.tar"] = bytes(reversed(tar))
        assert {content.item.error for content in read_all(rows, access)} == {"SourceChanged"}
        with pytest.raises(CorpusError, match="gone.tar"):
            rows_of(access, "gs://pics/t/gone.tar")


@pytest.mark.parametrize(("scheme", "library", "remedy"), [
    ("gs", "gcsfs", r"embedx\[gs\]"), ("az", "adlfs", r"embedx\[az\]"), ("hf", "huggingface_hub", "Install what"),
])  # fmt: skip
def test_a_library_that_is_missing_is_asked_for_by_name(monkeypatch, scheme, library, remedy):
    monkeypatch.setattr(importlib.import_module("fsspec.registry"), "_registry", {})
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(CorpusError, match=f"{scheme}:// needs a library.*{remedy}"):
        open_system(scheme, Access((("unlike", scheme),)))
