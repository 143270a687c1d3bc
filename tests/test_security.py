"""What a hostile file, id or environment must not be able to do."""

from __future__ import annotations

import ast
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from embedx.store.files import as_file
from embedx.store.reader import open_store
from embedx.store.shards import read_arrow
from tests.conftest import ROOT, write_jsonl

SOURCE = ROOT / "src" / "embedx"

# -- the source: nothing that a file is read by can run code --------------------------------------------------------

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "imp", "telnetlib"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "yaml.load",
    "yaml.unsafe_load",
    "pandas.read_pickle",
    "torch.hub.load",
    "tempfile.mktemp",
}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def is_true(node: ast.expr | None) -> bool:
    """Whether an argument may be true: anything but the constant False."""
    return not (isinstance(node, ast.Constant) and not node.value)


def wrong_call(call: ast.Call) -> str | None:
    name = dotted(call.func)
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if name in FORBIDDEN_CALLS:
        return name
    if "trust_remote_code" in keywords and is_true(keywords["trust_remote_code"]):
        return f"{name}(trust_remote_code)"
    if "allow_pickle" in keywords and is_true(keywords["allow_pickle"]):
        return f"{name}(allow_pickle)"
    if "shell" in keywords and is_true(keywords["shell"]):
        return f"{name}(shell)"
    if name in ("torch.load", "torch.hub.load_state_dict_from_url"):
        weights_only = keywords.get("weights_only")
        if not (isinstance(weights_only, ast.Constant) and weights_only.value is True):
            return f"{name} without weights_only=True"
    if name.startswith("skops") and name.endswith("load") and "trusted" not in keywords:
        return f"{name} without trusted"
    return None


def findings(text: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{node.lineno}: import {m}" for m in modules if m.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.Call) and (wrong := wrong_call(node)):
            found.append(f"{node.lineno}: {wrong}")
    return found


def test_nothing_that_is_read_can_run_code():
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 50
    assert {str(path.relative_to(ROOT)): found for path in files if (found := findings(path.read_text()))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "import marshal, shelve",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=flag)",
        "yaml.load(text)",
        "eval(text)",
        "exec(text)",
        "subprocess.run(command, shell=True)",
        "skops.io.load(path)",
    ],
)
def test_the_scan_sees(line):
    assert findings(line)


# -- ids -----------------------------------------------------------------------------------------------------------

IDS = [
    "../../escape",
    "../_embedx/encoder.json",
    "/tmp/escape-absolute",
    "..\\..\\escape",
    "nul\0byte",
    "new\nline",
    "'; DROP TABLE decision; --",
    '"quoted"',
    "%2e%2e%2fescape",
    "~/escape",
    "$(touch escape)",
    "\u202egpj.exe",
    "x" * 100_000,
]


def entries(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_ids_are_data_and_no_paths(embedx, tmp_path):
    work = tmp_path / "a" / "b" / "c"
    work.mkdir(parents=True)
    rows = [*({"id": item_id, "text": f"good text {n}"} for n, item_id in enumerate(IDS)), {"id": "../bad", "text": ""}]
    write_jsonl(work / "t.jsonl", rows)
    before = entries(tmp_path)
    arguments = ("extract", work / "t.jsonl", "--encoder", "minilm", "--out", work / "s", "--max-failures", "1")
    report = embedx.json(*arguments, env={"EMBEDX_SHARD_ITEMS": "3"})
    assert (report["items"]["embedded"], report["items"]["failed"]) == (len(IDS), 1)
    inside = {name for name in entries(tmp_path) - before if not name.startswith("a/b/c/s")}
    assert not inside, "nothing is written beside the store"
    assert not any("escape" in name or "bad" in name for name in entries(work / "s"))
    assert set(open_store(work / "s").vectors()[0]) == set(IDS)
    assert [failure["id"] for failure in embedx.json("failures", work / "s")["failures"]] == ["../bad"]
    again = embedx.json(*arguments)
    assert (again["items"]["unchanged"], again["items"]["planned"]) == (len(IDS), 0)
    assert embedx.json("verify", work / "s")["ok"]
    embedx("index", work / "s", "--out", work / "i")
    hits = embedx.json("search", work / "i", "--id", "../../escape", "-k", "3")["hits"]
    assert hits and {hit["id"] for hit in hits} <= set(IDS)


# -- temporary files and secrets -------------------------------------------------------------------------------------

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "canary-aws-5f1d",
    "AWS_SESSION_TOKEN": "canary-session-77aa",
    "AZURE_STORAGE_KEY": "canary-azure-91c3",
    "GOOGLE_APPLICATION_CREDENTIALS": "canary-google-0b2e",
    "OPENAI_API_KEY": "canary-openai-d4d4",
    "HF_TOKEN": "canary-hf-e8f0",
}


def unpacked(path: Path) -> bytes:
    """A file's bytes, and what its compressed columns hold."""
    readers = {".parquet": pq.read_table, ".arrow": lambda path: read_arrow(as_file(path))}
    table = readers[path.suffix](path) if path.suffix in readers else None
    return path.read_bytes() + (repr(table.to_pydict()) + repr(table.schema) if table is not None else "").encode()


def files_with(needle: bytes, folders: list[Path]) -> list[str]:
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            if needle in os.fsencode(path.name) or (path.is_file() and needle in unpacked(path)):
                found.append(str(path))
    return found


def test_secrets_stay_in_the_environment(embedx, tmp_path):
    write_jsonl(
        tmp_path / "t.jsonl", [*({"id": str(n), "text": f"text {n}"} for n in range(12)), {"id": "x", "text": ""}]
    )
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    env = {**SECRETS, "EMBEDX_CACHE": str(tmp_path / "cache"), "TMPDIR": str(temporary), "EMBEDX_SHARD_ITEMS": "5"}
    extract = ("extract", "t.jsonl", "--encoder", "minilm", "--out", "s")
    outputs = [
        embedx(*extract, "--json", status=3, env=env),
        embedx(*extract, "--max-failures", "1", env=env),
        embedx(*extract, "--dry-run", env=env),
        embedx("index", "s", "--out", "i", env=env),
        embedx("search", "i", "--text", "text", "--json", env=env),
        embedx("extract", "gone.jsonl", "--encoder", "minilm", "--out", "s", status=1, env=env),
    ]
    folders = [tmp_path / name for name in ("s", "i", "cache", "tmp")]
    assert files_with(b"text 3", folders), "the search finds what is there"
    for name, secret in SECRETS.items():
        assert not files_with(secret.encode(), folders), name
        assert not [done.args for done in outputs if secret in done.stdout + done.stderr], name


def test_temporary_files_are_private_and_go_away(embedx, tmp_path, monkeypatch):
    """Under an umask that gives everything to everybody, what lies outside the store is still for the user alone."""
    write_jsonl(tmp_path / "t.jsonl", [{"id": str(n), "text": f"text {n}"} for n in range(12)])
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    before = os.umask(0)
    try:
        from embedx.core.specs import CorpusSpec, ExtractSpec
        from embedx.encoders.registry import parse_ref
        from embedx.steps.forecast import plan_extract

        seen: dict[str, int] = {}

        def look(_progress) -> None:
            for path in temporary.iterdir():
                seen[path.name] = stat.S_IMODE(path.stat().st_mode)

        monkeypatch.setattr("tempfile.tempdir", str(temporary))
        corpus = CorpusSpec((str(tmp_path / "t.jsonl"),))
        plan_extract([ExtractSpec(corpus, parse_ref("minilm"), tmp_path / "s")], tmp_path / "s", look)
    finally:
        os.umask(before)
    assert seen and all(mode & 0o077 == 0 for mode in seen.values()), seen
    embedx("extract", "t.jsonl", "--encoder", "minilm", "--out", "s", env={"TMPDIR": str(temporary)})
    # torch makes itself a folder where a model is converted, which one test of a session does.
    left = {path.name for path in temporary.rglob("*") if not path.name.startswith("torchinductor_")}
    assert left <= {"dask-scratch-space", "global.lock", "purge.lock"}, "nothing is left but Dask's own empty files"


# -- headers of what is read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        (2**63 - 1).to_bytes(8, "little"),
        (2**40).to_bytes(8, "little") + b"{}",
        (10).to_bytes(8, "little") + b"[" * 10,
        (2).to_bytes(8, "little") + b"{}"[:1],
    ],
)
def test_a_giant_safetensors_header_is_an_error(embedx, tmp_path, header):
    model = tmp_path / "model"
    model.mkdir()
    (model / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "StaticEmbedding"}]))
    (model / "tokenizer.json").write_text("{}")
    (model / "model.safetensors").write_bytes(header)
    write_jsonl(tmp_path / "t.jsonl", [{"text": "x"}])
    error = embedx.json("extract", "t.jsonl", "--encoder", f"sentence_transformers:{model}", "--out", "s", status=1)[
        "error"
    ]
    assert "model" in error["message"] and error["remedy"]


def test_a_pickle_that_wants_to_run_code_is_refused(embedx, tmp_path):
    import pickle

    class Harmful:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'escaped'}",)

    (tmp_path / "w.pth").write_bytes(pickle.dumps({"features.0.weight": Harmful()}))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.png").write_bytes(b"x")
    arguments = ("extract", "c", "--encoder", "torchvision:squeezenet1_0", "--weights", "w.pth", "--out", "s")
    error = embedx.json(*arguments, status=1)["error"]
    assert "w.pth" in error["message"] and error["remedy"]
    assert not (tmp_path / "escaped").exists() and not (tmp_path / "s").exists()


# -- the network -----------------------------------------------------------------------------------------------------


def test_a_local_run_listens_to_this_machine_only(tmp_path):
    """Whoever reaches a Dask scheduler or worker can run code in it."""
    write_jsonl(tmp_path / "t.jsonl", [{"id": str(n), "text": f"text {n}"} for n in range(500)])
    command = [sys.executable, "-m", "embedx", "extract", "t.jsonl", "--encoder", "minilm", "--out", "s"]
    seen = set()
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        try:
            while run.poll() is None:
                seen |= listening(run.pid)
                time.sleep(0.05)
        finally:
            run.kill()
    assert run.returncode == 0
    assert seen and {address for address, _ in seen} <= {"127.0.0.1", "::1"}, seen


def listening(pid: int) -> set[tuple[str, int]]:
    found = set()
    try:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            found |= {tuple(c.laddr) for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    except psutil.Error:  # it ended meanwhile
        pass
    return found
