"""torch.compile where it pays: tried late, for full batches, kept only if it is faster and the vectors stay."""

import shutil
import threading

import pytest
import torch
from torch import nn

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
        monkeypatch.setattr(torch, "compile", lambda module, **how: made.append(how) or compiled)
        monkeypatch.setattr(compiling, "race", lambda ours, theirs: (seconds, eager))
        return made

    return install


def twice(pixels):
    return pixels * 2


def test_only_after_a_while(compile_as, monkeypatch):
    made = compile_as(twice)
    now = [100.0]
    monkeypatch.setattr(compiling.time, "monotonic", lambda: now[0])
    module = CompiledWhenItPays(Doubled(), ["key"], "fp32", False)
    module(**ONES)
    now[0] += 59
    module(**ONES)
    assert not made
    now[0] += 2
    assert torch.equal(module(**ONES), ONES["pixels"] * 2)
    assert module.is_compiled
    assert made == [{"dynamic": False}]


def test_only_full_batches(compile_as, monkeypatch):
    compile_as(twice)
    plain = Doubled()
    now = [100.0]
    monkeypatch.setattr(compiling.time, "monotonic", lambda: now[0])
    module = CompiledWhenItPays(plain, ["key"], "fp32", False, after_s=60)
    module(**ONES)
    now[0] += 61
    module(pixels=torch.ones(3, 3))
    assert not module.is_compiled, "the largest batch was one of four"
    module(**ONES)
    assert module.is_compiled
    before = plain.runs
    module(**ONES)
    assert plain.runs == before
    module(pixels=torch.ones(3, 3))
    assert plain.runs == before + 1


def test_texts_are_compiled_for_every_shape(compile_as):
    made = compile_as(twice)
    module = CompiledWhenItPays(Doubled(), ["key"], "fp32", True, after_s=0)
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
        module = CompiledWhenItPays(Doubled(), ["key"], "fp32", False, after_s=0)
        for _ in range(3):
            assert torch.equal(module(**ONES), ONES["pixels"] * 2)
        assert not module.is_compiled
    assert len(made) == 1, "what did not pay is not tried again"


def test_a_compiler_that_fails_costs_nothing_and_is_tried_again(compile_as):
    def broken(pixels):
        raise RuntimeError("no compiler found")

    made = compile_as(broken)
    for _ in range(2):
        module = CompiledWhenItPays(Doubled(), ["key"], "fp32", False, after_s=0)
        for _ in range(2):
            assert torch.equal(module(**ONES), ONES["pixels"] * 2)
    assert len(made) == 2, "once a process: another day there may be a compiler"


def test_a_later_failure_costs_nothing_either(compile_as):
    def moody(pixels):
        if len(pixels) == 1:
            raise RuntimeError("cannot compile for one")
        return pixels * 2

    compile_as(moody)
    module = CompiledWhenItPays(Doubled(), ["key"], "fp32", True, after_s=0)
    module(**ONES)
    assert module.is_compiled
    assert torch.equal(module(pixels=torch.ones(1, 3)), torch.ones(1, 3) * 2)
    assert not module.is_compiled


def test_a_lack_of_memory_is_the_runtime_s_to_handle(compile_as):
    def hungry(pixels):
        if len(pixels) == 7:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return pixels * 2

    compile_as(hungry)
    module = CompiledWhenItPays(Doubled(), ["key"], "fp32", True, after_s=0)
    module(**ONES)
    with pytest.raises(torch.OutOfMemoryError):
        module(pixels=torch.ones(7, 3))
    assert module.is_compiled


def test_others_go_on_while_one_compiles(compile_as):
    inside, go_on = threading.Event(), threading.Event()

    def slow(pixels):
        inside.set()
        assert go_on.wait(30)
        return pixels * 2

    compile_as(slow)
    module = CompiledWhenItPays(Doubled(), ["key"], "fp32", False, after_s=0)
    one = threading.Thread(target=lambda: module(**ONES))
    one.start()
    assert inside.wait(30)
    assert torch.equal(module(**ONES), ONES["pixels"] * 2)
    assert not module.is_compiled
    go_on.set()
    one.join()
    assert module.is_compiled


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("any_shape", [False, True], ids=["images", "texts"])
def test_the_real_compiler(monkeypatch, tmp_path, any_shape):
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
    runtime.compile_when_it_pays(["key"], any_shape, after_s=0)
    for count in (4, 3, 2):
        ids = torch.randint(0, 50, (count, 8))
        with torch.no_grad():
            reference = module(ids.float()).numpy()
        assert abs(runtime.forward({"ids": ids.numpy()}) - reference).max() < 1e-5
    assert runtime.way == "torch fp32, compiled"
