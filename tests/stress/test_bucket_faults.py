"""Buckets that misbehave for long: every fault by itself, a store that is down, one without conditional writes."""

from __future__ import annotations

import pytest
from s3_server import S3Server
from test_buckets import write_read_and_replace

from catdog import storage
from catdog.errors import CatdogError


@pytest.mark.parametrize("fault", [{"busy": 0.3}, {"cut": 0.2}, {"slow": 0.3, "delay": 0.2}])
def test_what_a_store_refuses_or_the_network_loses_is_repeated(bucket: S3Server, fault: dict[str, float]) -> None:
    bucket.set_faults(seed=1, **fault)
    write_read_and_replace(12)
    assert bucket.take_counts()[next(iter(fault))] >= 5


def test_a_store_that_only_refuses_ends_with_one_line(bucket: S3Server) -> None:
    storage.write_bytes("s3://bucket/x", b"1")
    bucket.set_faults(busy=1.0, only="PUT /bucket/x")
    with pytest.raises(CatdogError, match=r"^could not write s3://bucket/x: [^\n]*SLOW_DOWN[^\n]*$"):
        storage.write_bytes("s3://bucket/x", b"2")
    bucket.set_faults()
    assert storage.read_bytes("s3://bucket/x") == b"1"


def test_a_store_without_conditional_writes_is_asked_first(bucket: S3Server) -> None:
    bucket.set_faults(unconditional=True)
    assert storage.create_text("s3://bucket/one", "first")
    assert not storage.create_text("s3://bucket/one", "late")
    assert not storage.replace_text("s3://bucket/one", b"other", "late")
    assert not storage.replace_text("s3://bucket/none", b"other", "late")
    assert storage.replace_text("s3://bucket/one", b"first", "next")
    assert storage.read_bytes("s3://bucket/one") == b"next"
