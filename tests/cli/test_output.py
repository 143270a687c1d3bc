import io
import json
import pty
import subprocess
import sys

import pytest

from embedx.cli import output
from embedx.core.reports import Progress


def test_without_a_terminal_progress_is_a_line_now_and_then():
    stream = io.StringIO()
    show = output.ProgressLine(stream)
    state = Progress("extract", total=1000, done=100, reused=50, failed=3, note="starting")
    state.started -= 10
    for _ in range(5):
        show(state)
    show(Progress("extract", note="loading"))
    show.close()
    first, second = stream.getvalue().splitlines()
    assert first.startswith("extract  100/1,000 (10 %)  5/s  ") and "left" in first
    assert first.endswith("3 failed  starting") and second == "extract  loading"


def test_on_a_terminal_there_is_a_bar_and_it_goes_away():
    code = (
        "import sys; from embedx.cli.output import ProgressLine; from embedx.core.reports import Progress\n"
        "show = ProgressLine(); show(Progress('extract', total=10, done=5)); show.close(); print('after')"
    )
    leader, follower = pty.openpty()
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=follower, check=True)
    import os

    os.close(follower)
    try:
        shown = os.read(leader, 10_000).decode()
    finally:
        os.close(leader)
    assert "5/10 (50 %)" in shown and "━" in shown


@pytest.mark.parametrize(("seconds", "text"), [(4.24, "4.2 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")])
def test_durations(seconds, text):
    assert output.format_seconds(seconds) == text


def test_errors_are_one_line_or_one_object(capsys):
    assert output.show_error("what", "do this", 3, as_json=False) == 3
    assert capsys.readouterr().err == "embedx: what. do this\n"
    output.show_error("what", "do this", 3, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"error": {"code": 3, "message": "what", "remedy": "do this"}}


def test_control_characters_of_ids_do_not_reach_the_terminal(capsys):
    output.show_report({}, False, ["evil\x1b[1A\x1b[2K\tid\u202e, caf\u00e9 \u4f60"])
    assert capsys.readouterr().out == "evil\\x1b[1A\\x1b[2K\tid\\u202e, caf\u00e9 \u4f60\n"
    output.show_error("bad \x07 id", "", 1, as_json=False)
    assert "\x07" not in capsys.readouterr().err
