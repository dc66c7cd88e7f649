"""Signatures are those that AWS's own library (botocore 1.42) makes of the same requests."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from proxy.routing.sigv4 import key_of, region_of, signed

PAIR = "AKIDEXAMPLE:wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
AT_MS = int(datetime(2026, 11, 22, 5, tzinfo=UTC).timestamp() * 1000)
HEAD = (
    b"POST /model/us.anthropic.claude-v1%3A0/converse?b=2&a=x%20y HTTP/1.1\r\n"
    b"host: bedrock-runtime.eu-west-1.amazonaws.com\r\ncontent-type: application/json\r\n"
)


def test_a_pair_signs():
    lines = signed(HEAD, b'{"messages":[]}', PAIR, AT_MS).split(b"\r\n")
    assert lines == [
        b"x-amz-date: 20261122T050000Z",
        b"authorization: AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261122/eu-west-1/bedrock/aws4_request, "
        b"SignedHeaders=host;x-amz-date, "
        b"Signature=27b4a4d5543d9167d8b5db5855fe804b9880efd22e80d081a95b7f5a73c1c339",
        b"",
    ]


def test_a_session_token_is_signed_and_sent():
    lines = signed(HEAD, b'{"messages":[]}', PAIR + ":SESSION/TOKEN==", AT_MS)
    assert b"SignedHeaders=host;x-amz-date;x-amz-security-token, " in lines
    assert b"Signature=c6baa3e8da3f21772bcf3b47d556b3baea41ddd8f97ad8a60b67e32dfb823d91\r\n" in lines
    assert lines.endswith(b"x-amz-security-token: SESSION/TOKEN==\r\n")


def test_the_vanilla_request_of_awss_test_suite():
    at_ms = int(datetime(2015, 8, 30, 12, 36, tzinfo=UTC).timestamp() * 1000)
    lines = signed(b"GET / HTTP/1.1\r\nHost: example.amazonaws.com\r\n", b"", PAIR, at_ms, service="service")
    assert b"Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31\r\n" in lines


def test_an_api_key_is_a_bearer_token():
    assert key_of("ABSKexample") is None
    assert signed(HEAD, b"", "ABSKexample", AT_MS) == b"authorization: Bearer ABSKexample\r\n"


def test_another_body_time_or_path_has_another_signature():
    plain = signed(HEAD, b"x", PAIR, AT_MS)
    others = (
        signed(HEAD, b"y", PAIR, AT_MS),
        signed(HEAD, b"x", PAIR, AT_MS + 1000),
        signed(HEAD.replace(b"converse", b"invoke"), b"x", PAIR, AT_MS),
    )
    assert len({plain, *others}) == 4


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("bedrock-runtime.eu-west-1.amazonaws.com", "eu-west-1"),
        ("bedrock-runtime-fips.us-gov-west-1.amazonaws.com:443", "us-gov-west-1"),
        ("bedrock-runtime.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("127.0.0.1:9000", "us-east-1"),
    ],
)
def test_the_region_is_in_the_hosts_name(host: str, region: str):
    assert region_of(host) == region
