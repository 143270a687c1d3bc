"""Requests are counted across processes, and never more are taken than allowed."""

import subprocess
import sys

import pytest

from embedx.core.errors import EmbedxError
from embedx.core.meter import Meter, RequestLimitError, current_meter, metered

CHILD = """
import sys
from pathlib import Path
from embedx.core.meter import Meter, RequestLimitError
meter = Meter(1000, Path(sys.argv[1]))
taken = 0
try:
    while True:
        meter.take_request()
        taken += 1
        meter.add_tokens(2)
except RequestLimitError:
    print(taken)
"""


def test_four_processes_take_exactly_what_is_allowed(tmp_path):
    meter = Meter(1000)
    meter.take_request()
    meter.move_to(tmp_path / "requests.json")
    command = [sys.executable, "-c", CHILD, str(tmp_path / "requests.json")]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    taken = [int(child.communicate()[0]) for child in children]
    assert sum(taken) == 999 and sum(count > 0 for count in taken) > 1
    assert meter.sums() == {"requests": 1000, "retries": 0, "tokens": 1998}


def test_a_damaged_or_vanished_counter_allows_nothing(tmp_path):
    path = tmp_path / "run" / "requests.json"
    path.parent.mkdir()
    meter = Meter(5, path)
    meter.take_request(is_retry=True)
    assert meter.sums() == {"requests": 1, "retries": 1}
    path.write_text("{")
    with pytest.raises(EmbedxError, match="damaged"):
        meter.take_request()
    with pytest.raises(EmbedxError, match="is over"):
        Meter(5, tmp_path / "gone" / "requests.json").take_request()


def test_the_meter_of_the_block():
    assert current_meter().limit is None
    with metered(Meter(1)) as meter:
        current_meter().take_request()
        with pytest.raises(RequestLimitError, match="all 1 requests"):
            meter.take_request()
    assert current_meter() is not meter
