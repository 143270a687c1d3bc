"""`embedx conformance`: sound encoders pass every check, and each broken promise is found by the check that names it."""

import importlib
import sys

import pytest

from embedx.encoders.registry import open_encoder, parse_ref
from embedx.steps.conformance_checks import CHECKS, SkippedError
from embedx.steps.conformance_subject import NoVectorsError, Subject
from tests.conftest import ROOT

PLUGIN = ROOT / "tests" / "plugins" / "wordhash"
FAMILY = (PLUGIN / "wordhash" / "family.py").read_text()

WINDOWED = (
    FAMILY.replace(
        """                positions.append(position)
""",
        """                truncated += len(words) > 50
                positions.append(position)
""",
    )
    .replace("entries, positions, failures = [], [], {}", "entries, positions, failures, truncated = [], [], {}, 0")
    .replace("dtype=np.int64))\n                trunc", "dtype=np.int64)[:50])\n                trunc")
    .replace("np.int64), failures)", "np.int64), failures, truncated)")
    .replace(
        """    def cost(""",
        """    def windows(self, texts):
        found = []
        for text in texts:
            words = list(re.finditer(r"\\w+", text))
            spans = [
                (words[first].start(), words[min(first + 50, len(words)) - 1].end())
                for first in range(0, max(1, len(words) - 10), 40)
            ]
            found.append(spans if len(words) > 50 else [(0, len(text))])
        return found

    def cost(""",
    )
)
"""The sound family, which reads 50 words of a text, with windows of 50 that share ten."""

BROKEN = {
    "card": [
        ("fingerprint=fingerprint(identity)", 'fingerprint="made up"'),
        ("identity=identity", "identity={}"),
        ("dim=SIZES[spec.name],\n            fingerprint", "dim=0,\n            fingerprint"),
        ("flops=2.0 * SIZES[spec.name]", "flops=0.0"),
        ('modality="text"', 'modality="audio"'),
        ('licence="Apache-2.0"', "licence={1}"),
    ],
    "spec": [("spec=spec.to_dict()", 'spec=EncoderSpec("wordhash", "large").to_dict()')],
    "process": [('"words": "lower case', '"words": str(hash("words")) + "lower case')],
    "prepare": [
        ('failures[position] = Broken("prepare", "NoWords", "the text has no word")', "pass"),
        ("positions, dtype=np.int64), failures", "positions, dtype=np.int32), failures"),
        ("positions, dtype=np.int64), failures", "positions[::-1], dtype=np.int64), failures"),
        ('Broken("prepare", "NoWords", "the text has no word")', '"no word"'),
    ],
    "cost": [("for words in prepared.items], dtype=np.int64", "for words in prepared.items], dtype=float")],
    "collate": [('return {"ids": ids, "mask": mask}', 'return {"ids": ids[:1], "mask": mask[:1]}')],
    "threads": [
        (
            "        for position, item in enumerate(items):\n",
            "        import time\n        self.shared = items[0] if len(items) else ''\n        self.shared += 'x'\n"
            "        self.count = getattr(self, 'count', 0) + 1\n        items = [f'{self.count} {i}' if isinstance(i, str) else i for i in items]\n"
            "        for position, item in enumerate(items):\n",
        )
    ],
    "vectors": [
        ("/ weights.sum(1)", "/ (weights.sum(1) - 1)"),  # NaN for texts of one word
        ("(self.table[ids] * weights).sum(1) / weights.sum(1)", "(self.table[ids] * 0 + 1).mean(1)"),
        ("(self.table[ids] * weights).sum(1) / weights.sum(1)", "(self.table[ids] * weights).sum(1)[:, :5]"),
    ],
    "canaries": [
        ('return ["one word", "The quick brown fox jumps over the lazy dog.", "naïve café, 3.5 °C"]', 'return ["one"]'),
        ('"naïve café, 3.5 °C"]', "str(np.random.random())]"),
        ('"naïve café, 3.5 °C"]', '"?!"]'),
    ],
    "failures": [
        ("failures[position] = item\n", 'failures[position] = Broken("a", "b", "c")\n'),
        ("            if words:\n", "            assert words, item\n            if words:\n"),
    ],
    "order": [("/ weights.sum(1)", "/ weights.sum(1) + torch.arange(ids.shape[0]).unsqueeze(-1)")],
    "neighbours": [("/ weights.sum(1)", "/ weights.sum(1) + self.table[ids].mean(1)")],  # padding counts
    "openvino": [
        (
            "        return Mean(self.table).eval()",
            "        self.built = getattr(self, 'built', 0) + 1\n        return Mean(self.table * (1 if self.built == 1 else np.roll(np.arange(1, 2, 1 / SIZES['small']), self.built).astype(np.float32))).eval()",
        )
    ],
}
"""Check -> changes of the sound family that break this promise."""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a family's source where Python and its entry points find it."""

    def put(source: str) -> None:
        home = tmp_path / "site"
        (home / "wordhash").mkdir(parents=True)
        (home / "wordhash" / "__init__.py").write_text("")
        (home / "wordhash" / "family.py").write_text(source)
        info = home / "embedx_wordhash-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: embedx-wordhash\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[embedx.encoders]\nwordhash = wordhash.family\n")
        for name in ("wordhash.family", "wordhash"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        monkeypatch.syspath_prepend(str(home))
        monkeypatch.setenv("PYTHONPATH", f"{home}:{ROOT / 'src'}")
        monkeypatch.setenv("EMBEDX_CACHE", str(tmp_path / "cache"))

    return put


def test_windows_are_checked(install):
    install(WINDOWED)
    assert failed_checks(*CHECKS) == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("first + 50,", "first + 51,"), "are truncated"),
        (("first + 50,", "first + 39,"), "lie in no window"),
        (("len(words) - 10), 40)", "len(words) - 60), 40)"), "lie in no window"),
        (("words[first].start()", "0"), "does not go on"),
        (("if len(words) > 50 else", "if len(words) > 5 else"), "fits, but is cut"),
        (("found.append(spans", "found.append([] and spans"), "has no window"),
        (("return found", "return found[1:]"), "lists of windows"),
        (
            ("return found", "self.n = getattr(self, 'n', 0) + 1; return found if self.n < 3 else found[::-1]"),
            "threads",
        ),
    ],
)
def test_windows_that_break_a_promise_are_found(install, change, said):
    assert WINDOWED.count(change[0]) == 1, change
    install(WINDOWED.replace(*change))
    assert said in failed_checks("windows")["windows"]


def failed_checks(*names: str) -> dict[str, str]:
    failed = {}
    with Subject(open_encoder(parse_ref("wordhash:small")), threads=1) as subject:
        for name in names:
            try:
                CHECKS[name](subject)
            except (SkippedError, NoVectorsError) as error:
                failed.update({name: str(error)} if name == "vectors" else {})
            except Exception as error:
                failed[name] = repr(error)
    return failed


def test_the_sound_family_passes_every_check(install):
    install(FAMILY)
    assert failed_checks(*CHECKS) == {}


@pytest.mark.parametrize(
    ("check", "change"), [(check, change) for check, changes in BROKEN.items() for change in changes]
)
def test_each_broken_promise_is_found(install, check, change):
    assert change[0] in FAMILY, change[0]
    install(FAMILY.replace(*change))
    failed = failed_checks(check)
    assert list(failed) == [check] and failed[check]


def test_the_command_names_what_fails_and_exits_with_one(embedx, install, tmp_path):
    install(FAMILY.replace("/ weights.sum(1)", "/ weights.sum(1) + self.table[ids].mean(1)"))
    report = embedx.json("conformance", "wordhash:small", status=1)
    status = {check["name"]: check["status"] for check in report["checks"]}
    assert not report["ok"] and status["neighbours"] == "failed" and status["card"] == "passed"
    assert list(status) == list(CHECKS) and "fp32 gate" in str(report)


def test_a_family_that_cannot_be_imported_is_named(embedx, install):
    install("import no_such_package\n")
    error = embedx.json("conformance", "wordhash:small", status=1)["error"]
    assert "wordhash cannot be imported" in error["message"] and "no_such_package" in error["message"]


def test_a_family_without_its_functions_is_named(embedx, install):
    install("def open_encoder(spec): raise RuntimeError('boom')\n")
    assert "has no list_encoders" in embedx.json("conformance", "wordhash:x", status=1)["error"]["message"]


def test_a_family_that_raises_is_reported(embedx, install):
    install("def open_encoder(spec): raise RuntimeError('boom')\ndef list_encoders(): return []\n")
    report = embedx.json("conformance", "wordhash:x", status=1)
    assert report["checks"] == [{"name": "opens", "status": "failed", "detail": "RuntimeError: boom"}]
