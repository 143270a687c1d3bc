"""What a machine has, as its driver says it."""

import ctypes

import pytest

from embedx.core.machine import cpu_name, gpu_names


class Driver:
    """NVIDIA's, with some devices."""

    def __init__(self, devices, status=0):
        self.devices = devices
        self.status = status

    def cuInit(self, flags):
        return self.status

    def cuDeviceGetCount(self, place):
        place._obj.value = self.devices
        return 0


@pytest.mark.parametrize(
    ("listed", "devices", "names"),
    [
        (None, 2, ("0", "1")),
        ("5, 7", 2, ("5", "7")),
        ("GPU-5ebe,MIG-1f", 2, ("GPU-5ebe", "MIG-1f")),
        ("3,nonsense", 1, ("3",)),  # what follows an unknown name does not count
        ("", 0, ()),
    ],
)
def test_gpus_are_those_that_the_driver_counts(monkeypatch, listed, devices, names):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(devices))
    assert gpu_names.__wrapped__() == names


def test_no_driver_or_one_without_devices(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(3, status=100))
    assert gpu_names.__wrapped__() == ()

    def absent(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert gpu_names.__wrapped__() == ()


def test_a_cpu_has_a_name():
    assert len(cpu_name()) > 3 and cpu_name() == cpu_name.__wrapped__()
