"""torch.compile where it pays: tried late, for full batches, kept only if it is faster and the vectors stay."""

import shutil
import threading

import pytest
import torch
from torch import nn

from embedx.core.paths import cached_json
from embedx.inference import compiling
from embedx.inference.compiling import CompiledWhenItPays
from embedx.inference.torch import TorchRuntime

ONES = {"pixels": torch.ones(4, 3)}


class Doubled(nn.Module):
    """Doubles, and counts how often it ran as it is."""

    def __init__(self):
        super().__init__()
        self.runs = 0

    def forward(self, pixels):
        self.runs += 1
        return pixels * 2


@pytest.fixture
def compile_as(monkeypatch, tmp_path):
    """Stand-ins for torch.compile and for the times it takes."""
    monkeypatch.setenv("EMBEDX_CACHE", str(tmp_path))

    def install(compiled, seconds=1.0, eager=2.0):
        made = []
        times = iter([seconds, eager] * 9)
        monkeypatch.setattr(torch, "compile", lambda module, **how: made.append(how) or compiled)
        monkeypatch.setattr(compiling, "best_of", lambda call: next(times))
        return made

    return install


def twice(pixels):
    return pixels * 2


def test_only_after_a_while(compile_as, monkeypatch):
    made = compile_as(twice)
    now = [100.0]
    monkeypatch.setattr(compiling.time, "monotonic", lambda: now[0])
    module = CompiledWhenItPays(Doubled(), ["key"], 4, "fp32")
    module(**ONES)
    now[0] += 59
    module(**ONES)
    assert not made
    now[0] += 2
    assert torch.equal(module(**ONES), ONES["pixels"] * 2)
    assert module.is_compiled
    assert made == [{"dynamic": False}]


def test_only_full_batches(compile_as):
    compile_as(twice)
    plain = Doubled()
    module = CompiledWhenItPays(plain, ["key"], 4, "fp32", after_s=0)
    module(pixels=torch.ones(3, 3))
    assert not module.is_compiled
    module(**ONES)
    assert module.is_compiled
    before = plain.runs
    module(**ONES)
    assert plain.runs == before
    module(pixels=torch.ones(3, 3))
    assert plain.runs == before + 1


def test_texts_are_compiled_for_every_shape(compile_as):
    made = compile_as(twice)
    module = CompiledWhenItPays(Doubled(), ["key"], 0, "fp32", after_s=0)
    module(pixels=torch.ones(3, 5))
    assert made == [{"dynamic": True}]


@pytest.mark.parametrize(
    ("compiled", "seconds"),
    [(twice, 1.95), (lambda pixels: pixels * torch.tensor([2.0, 2.0, 2.2]), 1.0)],
    ids=["hardly faster", "other vectors"],
)
def test_it_is_dropped_and_remembered(compile_as, compiled, seconds):
    made = compile_as(compiled, seconds)
    for _ in range(2):
        module = CompiledWhenItPays(Doubled(), ["key"], 4, "fp32", after_s=0)
        for _ in range(3):
            assert torch.equal(module(**ONES), ONES["pixels"] * 2)
        assert not module.is_compiled
    assert len(made) == 1, "what did not pay is not tried again"


def test_a_compiler_that_fails_costs_nothing(compile_as):
    def broken(pixels):
        raise RuntimeError("no compiler found")

    compile_as(broken)
    module = CompiledWhenItPays(Doubled(), ["key"], 4, "fp32", after_s=0)
    assert torch.equal(module(**ONES), ONES["pixels"] * 2)
    key = ["key", str(torch.__version__), {"pixels": [4, 3]}]
    assert "no compiler found" in cached_json("compiled", key)["why"]


def test_others_go_on_while_one_compiles(compile_as):
    inside, go_on = threading.Event(), threading.Event()

    def slow(pixels):
        inside.set()
        assert go_on.wait(30)
        return pixels * 2

    compile_as(slow)
    module = CompiledWhenItPays(Doubled(), ["key"], 4, "fp32", after_s=0)
    one = threading.Thread(target=lambda: module(**ONES))
    one.start()
    assert inside.wait(30)
    assert torch.equal(module(**ONES), ONES["pixels"] * 2)
    assert not module.is_compiled
    go_on.set()
    one.join()
    assert module.is_compiled


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("full", [4, 0], ids=["images", "texts"])
def test_the_real_compiler(monkeypatch, tmp_path, full):
    monkeypatch.setenv("EMBEDX_CACHE", str(tmp_path))
    monkeypatch.setattr(compiling, "FASTER", 0.0)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.LayerNorm(64))

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = module

        def forward(self, ids):
            return self.layers(ids.float())

    runtime = TorchRuntime(Named().eval(), "fp32", "cpu")
    runtime.compile_when_it_pays(["key"], full, after_s=0)
    for count in (4, 3, 5):
        ids = torch.randint(0, 50, (count, 8))
        with torch.no_grad():
            reference = module(ids.float()).numpy()
        assert abs(runtime.forward({"ids": ids.numpy()}) - reference).max() < 1e-5
    assert runtime.way == "torch fp32, compiled"
