import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedx.core.digests import fingerprint
from embedx.core.errors import EmbedxError, InterruptedRunError, UsageError
from embedx.core.specs import CorpusSpec, EncoderSpec, FailureLimit, Resources, shard_items_override


def test_failure_limits():
    assert FailureLimit.parse("1%").allows(10, 1000)
    assert not FailureLimit.parse("1%").allows(11, 1000)
    assert FailureLimit.parse("3").allows(3, 4)
    assert not FailureLimit.parse("0").allows(1, 10**9)
    assert str(FailureLimit.parse("2.5%")) == "2.5%"
    for text in ("", "x", "-1", "101%", "%"):
        with pytest.raises(UsageError, match="max-failures"):
            FailureLimit.parse(text)


def test_encoder_spec_round_trip_and_unknown_keys():
    spec = EncoderSpec.from_dict({"family": "timm", "name": "x", "preprocess": {"mean": [0.5, 0.5, 0.5]}})
    assert EncoderSpec.from_dict(spec.to_dict()) == spec
    with pytest.raises(UsageError, match="pooling_type"):
        EncoderSpec.from_dict({"family": "timm", "pooling_type": "avg"})
    with pytest.raises(UsageError, match="meen"):
        EncoderSpec.from_dict({"family": "timm", "preprocess": {"meen": 1}})
    with pytest.raises(UsageError, match="family"):
        EncoderSpec.from_dict({"name": "x"})


def test_bad_specs_name_the_flag():
    with pytest.raises(UsageError, match="no source"):
        CorpusSpec(())
    with pytest.raises(UsageError, match="limit"):
        CorpusSpec(("a",), limit=0)
    with pytest.raises(UsageError, match="cluster"):
        Resources(cluster="somewhere")
    with pytest.raises(UsageError, match="workers"):
        Resources(workers=0)


def test_shard_items_override(monkeypatch):
    monkeypatch.setenv("EMBEDX_SHARD_ITEMS", "12")
    assert shard_items_override() == 12
    monkeypatch.setenv("EMBEDX_SHARD_ITEMS", "many")
    with pytest.raises(UsageError, match="EMBEDX_SHARD_ITEMS"):
        shard_items_override()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner, max_size=4)
)


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_fingerprint_does_not_depend_on_key_order(value):
    assert fingerprint(value) == fingerprint(dict(reversed(value.items())))


def test_errors_cross_processes_with_their_remedy():
    error = pickle.loads(pickle.dumps(UsageError("what", "do this")))
    assert (error.message, error.remedy, error.exit_code) == ("what", "do this", 2)
    assert InterruptedRunError("stopped", "again", 15).exit_code == 143
    assert str(EmbedxError("a", "b")) == "a. b"
