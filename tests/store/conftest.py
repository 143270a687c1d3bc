import itertools

import pytest

from embedx.core.places import Access, Url
from tests import servers

_numbers = itertools.count()


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """An S3 API with the bucket `bucket`; in another process, for Delta's library holds the interpreter lock."""
    with servers.s3_process(tmp_path_factory.mktemp("s3")) as server:
        server.client().create_bucket(Bucket="bucket")
        yield server


@pytest.fixture
def url(s3):
    """A prefix that nothing lies below yet."""
    options = {**servers.S3_FLAGS, "endpoint_url": s3.url, "region": "us-east-1"}
    return Url(f"s3://bucket/place-{next(_numbers)}", Access(tuple(options.items())))
