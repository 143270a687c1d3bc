"""URLs without what must not be written down: the signatures and tokens that stand in their queries."""

from __future__ import annotations

import re

REDACTED = "***"

_END = r"=[^&#\s'\"<>]*"

_SECRETS = re.compile(
    r"(?<=[?&;])(?:"
    r"x-amz-[\w-]+|x-goog-[\w-]+|awsaccesskeyid|googleaccessid"
    r"|sig|signature|hmac|jwt|token|password|passwd|pwd|secret|auth|authorization|credential"
    r"|[\w-]*[_-](?:token|secret|signature|sig)"
    r"|[\w-]*(?:api|access|auth|account|private|secret|subscription)[_-]?key(?:[_-]?id)?"
    rf"){_END}",
    re.IGNORECASE,
)
"""Parameters that are secrets, or stand beside them: of S3, of Google Cloud Storage, and of common names."""

_COMPANIONS = re.compile(
    rf"(?<=[?&;])(?:expires|policy|key-pair-id|hash|se|st|sp|sv|sr|ss|srt|spr|sip|ske|sks|skt|skv|skoid|sktid){_END}",
    re.IGNORECASE,
)
"""Parameters that change with every signature, of Azure, CloudFront and others; only beside a secret."""

_SEVERAL = re.compile(r"\*\*\*(?:&\*\*\*)+")


def redact(text: str) -> str:
    """Return a URL, or a message with URLs in it, with `***` in place of the secret parts of queries.

    Of one URL that is signed anew each day the result stays the same, so that it can serve as a name.
    """
    if "=" not in text:
        return text
    text, found = _SECRETS.subn(_cut, text)
    return _SEVERAL.sub(REDACTED, _COMPANIONS.sub(_cut, text)) if found else text


def is_redacted(url: str) -> bool:
    """Whether something was cut out of a URL, so that it cannot be fetched any more."""
    return REDACTED in url.partition("?")[2]


def _cut(found: re.Match[str]) -> str:
    value = found[0]
    return REDACTED + value[len(value.rstrip(".,:;)]")) :]  # the punctuation of the sentence around it
