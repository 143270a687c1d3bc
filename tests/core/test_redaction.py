"""Secrets in the queries of URLs: cut out wherever a URL is written down, and the rest of it stays a name."""

import pickle

import pytest

from embedx.core.errors import CorpusError
from embedx.core.redaction import is_redacted, redact

S3 = (
    "https://b.s3.amazonaws.com/a/cat.png?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA%2F2026&X-Amz-Date=1"
    "&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature=canary&X-Amz-Security-Token=canary"
)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (S3, "https://b.s3.amazonaws.com/a/cat.png?***"),
        ("https://h/c.png?id=7&sig=canary&se=2026&w=100", "https://h/c.png?id=7&***&w=100"),
        (
            "https://a.blob.core.windows.net/c/x.png?sv=1&sr=b&sig=canary%3D&se=2",
            "https://a.blob.core.windows.net/c/x.png?***",
        ),
        ("https://h/x?Expires=1&GoogleAccessId=a&Signature=canary", "https://h/x?***"),
        ("https://h/x?Expires=1&Signature=canary&Key-Pair-Id=K", "https://h/x?***"),
        ("https://h/x?access_token=canary", "https://h/x?***"),
        ("https://h/x?api_key=canary#part", "https://h/x?***#part"),
        ("https://h/x?apikey=canary&a=1", "https://h/x?***&a=1"),
        ("https://h/x?client-secret=canary", "https://h/x?***"),
        ("https://h/x?TOKEN=canary", "https://h/x?***"),
        ("tar:512:9:https://h/a.tar?sig=canary", "tar:512:9:https://h/a.tar?***"),
    ],
)
def test_secrets_are_cut_out(url, shown):
    assert redact(url) == shown == redact(shown) and is_redacted(shown)
    assert redact(f"{url}: HTTP 403 (Forbidden)").startswith(shown) and "HTTP 403" in redact(f"{url}: HTTP 403")
    assert redact(f"see '{url}', and {url}.") == f"see '{shown}', and {shown}." or "#" in url


@pytest.mark.parametrize(
    "text",
    [
        "https://h/x.png?id=1&page=2&expires=never&policy=a",
        "https://h/signature=1/x.png",
        "/photos/sig=3?/a.png",
        "s3://b/a=b/c.png",
        "tokens are no secrets",
        "https://h/x?design=1&assignature=2",
    ],
)
def test_other_urls_stay_as_they_are(text):
    assert redact(text) == text and not is_redacted(text)


def test_errors_say_no_secrets():
    error = CorpusError(f"{S3} cannot be read", f"Fetch {S3} first")
    for shown in (str(error), error.message, error.remedy, repr(error), str(pickle.loads(pickle.dumps(error)))):
        assert "canary" not in shown and "cat.png" in str(error)
