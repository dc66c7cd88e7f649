"""Requests that parsers disagree about (faults.md, S01 to S52), each with a canary right behind it.

REFUSED: one 4xx or 5xx, the connection ends, nothing reached the upstream, not even the canary.
ONE: exactly one well-formed request at the upstream, and the canary gets its own answer.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import pytest

from proxy.dialects.openai_format import REQUEST_PASS
from tests.fakes.raw_client import COMPLETE, CUT, Left, request
from tests.fakes.upstream_server import Request, chunk, whole
from tests.system.troubled import CHAT, Lane, Troubled, completion

# A placeholder stands for what differs by run: BODY, its LENGTH (decimal) and SIZE (hex), AUTH.
START = "POST /v1/chat/completions HTTP/1.1\r\nHost: station.test\r\nAUTH\r\n"
PLAIN = START + "Content-Length: LENGTH\r\n\r\nBODY"
SMUGGLED = "POST /v1/chat/completions HTTP/1.1\r\nHost: station.test\r\nAUTH\r\nX-Smuggled: 1\r\n\r\n"


def with_fields(*fields: str) -> str:
    return START + "".join(f"{field}\r\n" for field in fields) + "Content-Length: LENGTH\r\n\r\nBODY"


def with_length(value: str) -> str:
    return START + f"Content-Length:{value}\r\n\r\nBODY"


def with_coding(*fields: str, content: str = "SIZE\r\nBODY\r\n0\r\n\r\n") -> str:
    return START + "".join(f"{field}\r\n" for field in fields) + "\r\n" + content


CHUNKED = "Transfer-Encoding: chunked"

REFUSED = {
    "S01 length, then chunked": with_coding(
        "Content-Length: LENGTH", CHUNKED, content="0\r\n\r\n" + SMUGGLED
    ),
    "S02 chunked, then length": with_coding(
        CHUNKED, "Content-Length: 4", content="SIZE\r\nBODY\r\n0\r\n\r\n"
    ),
    "S03 xchunked": with_coding("Transfer-Encoding: xchunked"),
    "S04 chunked twice": with_coding(CHUNKED, CHUNKED),
    "S04 chunked, then identity": with_coding(CHUNKED, "Transfer-Encoding: identity"),
    "S05 chunked, identity": with_coding("Transfer-Encoding: chunked, identity"),
    "S06 an empty coding and a length": with_coding("Transfer-Encoding: ,chunked", "Content-Length: 4"),
    "S07 a vertical tab before chunked": with_coding("Transfer-Encoding: \x0bchunked"),
    "S08 a space before the colon": with_coding("Transfer-Encoding : chunked"),
    "S09 chunked in HTTP/1.0": with_coding(CHUNKED).replace("HTTP/1.1", "HTTP/1.0"),
    "S10 two lengths": with_fields("Content-Length: 4"),
    "S10 the same length twice": with_fields("Content-Length: LENGTH"),
    "S11 a list of lengths": with_length(" LENGTH, LENGTH"),
    "S12 a plus": with_length(" +LENGTH"),
    "S13 a hex length": with_length(" 0xSIZE"),
    "S14 an empty length": with_length(""),
    "S15 a negative length": with_length(" -1"),
    "S16 an underscore": with_length(" 1_0"),
    "S17 twenty digits": with_length(" 18446744073709551621"),
    "S18 a folded field": with_fields("X-Title: a", " b"),
    "S19 a folded Transfer-Encoding": with_coding("Transfer-Encoding:", " chunked"),
    "S20 bare LF line ends": PLAIN.replace("\r\n", "\n"),
    "S20 one bare LF": with_fields("X-Title: a\nX-Smuggled: 1"),
    "S21 LF behind a chunk size": with_coding(CHUNKED, content="SIZE\nBODY\r\n0\r\n\r\n"),
    "S22 a bare CR": with_fields("X-Title: a\rX-Smuggled: 1"),
    "S23 NUL in a value": with_fields("X-Title: a\0b"),
    "S23 NUL in a name": with_fields("X-Ti\0tle: a"),
    "S24 LF in a chunk extension": with_coding(CHUNKED, content="SIZE;a\nb\r\nBODY\r\n0\r\n\r\n"),
    "S26 an underscore in a chunk size": with_coding(CHUNKED, content="0_SIZE\r\nBODY\r\n0\r\n\r\n"),
    "S27 a prefix of a chunk size": with_coding(CHUNKED, content="0xSIZE\r\nBODY\r\n0\r\n\r\n"),
    "S28 seventeen hex digits": with_coding(CHUNKED, content="10000000000000000\r\nBODY\r\n0\r\n\r\n"),
    "S29 a chunk longer than its size": with_coding(CHUNKED, content="SIZE\r\nBODYxx\r\n0\r\n\r\n"),
    "S30 a trailer with framing and a key": with_coding(
        CHUNKED, content="SIZE\r\nBODY\r\n0\r\nContent-Length: 5\r\nAuthorization: Bearer x\r\n\r\n"
    ),
    "S31 two Hosts": with_fields("Host: evil.test"),
    "S32 no Host": PLAIN.replace("Host: station.test\r\n", ""),
    "S33 a Host with a path": PLAIN.replace("station.test", "a/?x"),
    "S33 a Host with a user": PLAIN.replace("station.test", "u@station.test"),
    "S33 an empty Host": PLAIN.replace("Host: station.test", "Host:"),
    "S34 absolute-form": PLAIN.replace(" /v1", " http://evil.test/v1", 1),
    "S35 another scheme": PLAIN.replace(" /v1/chat/completions", " file:///etc/passwd", 1),
    "S36 CONNECT": PLAIN.replace("POST /v1/chat/completions", "CONNECT evil.test:443", 1),
    "S38 encoded traversal": PLAIN.replace("/v1/chat/completions", "/..%2f..%2fadmin%00", 1),
    "S45 HTTP/2.0": PLAIN.replace("HTTP/1.1", "HTTP/2.0", 1),
    "S45 HTTP/1.2": PLAIN.replace("HTTP/1.1", "HTTP/1.2", 1),
    "S45 HTTP/0.9": PLAIN.replace("HTTP/1.1", "HTTP/0.9", 1),
    "S45 the preface of HTTP/2": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "S47 a space in a name": with_fields("X Title: a"),
    "S47 a bracket in a name": with_fields("X(Title): a"),
    "S47 no name": with_fields(": a"),
    "S47 no colon": with_fields("X-Title"),
    "S48 a leading space": PLAIN.replace("Host:", " Host:", 1),
    "S49 a header of 100 KB": with_fields("X-Title: " + "a" * 100_000),
    "S50 20,000 headers": with_fields(*(f"X-{n}: 1" for n in range(20_000))),
    "S51 a space in the target": PLAIN.replace("completions HTTP", "completions x HTTP", 1),
    "no version": PLAIN.replace(" HTTP/1.1", "", 1),
    "garbage": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}

ONE = {
    "S25 a chunk extension": with_coding(CHUNKED, content="SIZE;name=value\r\nBODY\r\n0;x\r\n\r\n"),
    "S37 two slashes at the start": PLAIN.replace(" /v1", " //v1", 1),
    "S39 Upgrade with a body": with_fields("Connection: Upgrade", "Upgrade: websocket"),
    "S39 Upgrade to HTTP/2": with_fields(
        "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"
    ),
    "S44 Connection names fields": with_fields(
        "Connection: authorization, x-forwarded-for, content-length, user-agent, host", "User-Agent: evil"
    ),
    "S46 Content_Length": with_fields("Content_Length: 0"),
    "S46 Transfer_Encoding": with_fields("Transfer_Encoding: chunked"),
    "S46 X_Forwarded_For": with_fields("X_Forwarded_For: 10.9.9.9"),
    "S52 raw bytes in a value": with_fields("X-Title: caf\xe9 \xff"),
    "another case of chunked": with_coding("transfer-encoding: CHUNKED"),
    "leading zeros of a chunk size": with_coding(CHUNKED, content="000SIZE\r\nBODY\r\n0\r\n\r\n"),
    "an empty line first": "\r\n" + PLAIN,
    "a tab around a value": with_fields("X-Title:\ta\t"),
    "an empty value": with_fields("X-Title:"),
    "hop-by-hop fields": with_fields(
        "Connection: keep-alive",
        "Keep-Alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "TE: trailers",
        "Trailer: x",
        "Proxy-Authorization: Basic eDp5",
        "Proxy-Authenticate: Basic",
    ),
}


@pytest.fixture(scope="module")
def lane(troubled: Troubled) -> Lane:
    """Its upstream answers with the text that it was asked with."""

    def echo(asked: Request) -> bytes:
        return whole(completion("canary" if b"canary" in asked.body else "first"))

    made = troubled.lane()
    made.script([echo])
    return made


@pytest.fixture(scope="module", autouse=True)
def no_call_failed_unexpectedly(troubled: Troubled) -> Iterator[None]:
    yield
    assert "call failed" not in troubled.station.log()


def filled(template: str, troubled: Troubled, lane: Lane) -> bytes:
    body = lane.body("first")
    values = {
        "AUTH": f"Authorization: Bearer {troubled.key}",
        "LENGTH": str(len(body)),
        "SIZE": f"{len(body):x}",
        "BODY": body.decode(),
    }
    for name, value in values.items():
        template = template.replace(name, value)
    return template.encode("latin-1")


def canary(troubled: Troubled, lane: Lane) -> bytes:
    return request("POST", CHAT, f"authorization: Bearer {troubled.key}", body=lane.body("canary"))


def assert_canary_lives(troubled: Troubled, lane: Lane) -> None:
    with troubled.connect() as client:
        assert client.ask(canary(troubled, lane)).body == completion("canary")


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_with_all_that_follows_it(troubled: Troubled, lane: Lane, case: str) -> None:
    before = len(troubled.server.requests)
    with troubled.connect() as client:
        client.send(filled(REFUSED[case], troubled, lane) + canary(troubled, lane))
        answer = client.answer()
        assert 400 <= answer.status < 600
        assert answer.end == COMPLETE
        assert answer.says_close
        assert client.end() == CUT
    assert troubled.server.requests[before:] == []
    assert_canary_lives(troubled, lane)
    assert len(troubled.server.requests) == before + 1


@pytest.mark.parametrize("case", ONE)
def test_it_becomes_exactly_one_request(troubled: Troubled, lane: Lane, case: str) -> None:
    before = len(lane.asked())
    with troubled.connect() as client:
        client.send(filled(ONE[case], troubled, lane) + canary(troubled, lane))
        answer = client.answer()
        assert answer.body == completion("first"), answer
        if answer.says_close:
            assert client.end() == CUT
        else:
            assert client.answer().body == completion("canary")
    asked = lane.asked()[before:]
    assert_well_formed(asked[0], lane)
    assert [b"canary" in r.body for r in asked[1:]] in ([], [True])
    assert_canary_lives(troubled, lane)


# What the relay writes itself, and what passes of a client's fields.
OWN = {b"host", b"accept-encoding", b"authorization", b"content-length"}


def assert_well_formed(asked: Request, lane: Lane) -> None:
    assert (asked.method, asked.target) == ("POST", f"/{lane.model}/0{CHAT}")
    assert asked.body == lane.body("first")
    names = [name.lower() for name, _ in asked.headers]
    assert len(names) == len(set(names))
    assert set(names) <= OWN | REQUEST_PASS
    assert asked.header(b"content-length") == str(len(asked.body)).encode()
    assert asked.header(b"authorization") == f"Bearer sk-upstream-canary-{lane.model}-0-0".encode()


def test_raw_bytes_of_a_value_arrive_as_they_were_sent(troubled: Troubled, lane: Lane) -> None:
    troubled.ask(lane.body("first"), "x-title: caf\xe9 \xff")
    assert lane.asked()[-1].header(b"x-title") == b"caf\xe9 \xff"


def test_what_connection_names_ends_here_but_ours_stays(troubled: Troubled, lane: Lane) -> None:
    troubled.ask(
        lane.body("first"), "connection: x-title, authorization, host", "x-title: a", "user-agent: b"
    )
    asked = lane.asked()[-1]
    assert (asked.header(b"x-title"), asked.header(b"user-agent")) == (None, b"b")
    assert (asked.header(b"authorization") or b"").startswith(b"Bearer sk-upstream-canary")


# -- a body that is a request ------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [(), ("expect: 100-continue",)], ids=["S40", "S42 with Expect"])
def test_a_refused_body_is_never_read_as_a_request(
    troubled: Troubled, lane: Lane, fields: tuple[str, ...]
) -> None:
    before = len(lane.asked())
    hidden = canary(troubled, lane)
    with troubled.connect() as client:
        answer = client.ask(request("POST", CHAT, *fields, body=hidden))
        assert answer.status == 401
        if not answer.says_close:
            assert client.ask(canary(troubled, lane)).body == completion("canary")
            before += 1
        else:
            assert client.end() == CUT
    assert len(lane.asked()) == before


def test_the_body_of_a_get_is_never_read_as_a_request(troubled: Troubled, lane: Lane) -> None:
    """S43, a fat GET."""
    before = len(lane.asked())
    hidden = canary(troubled, lane)
    with troubled.connect() as client:
        client.send(request("GET", "/v1/models", f"authorization: Bearer {troubled.key}", body=hidden))
        models = client.answer("GET")
        assert (models.status, models.json()["object"]) == (200, "list")
        if models.says_close:
            assert client.end() == CUT
        else:
            assert client.ask(canary(troubled, lane)).body == completion("canary")
            before += 1
    assert len(lane.asked()) == before


def test_an_unknown_expectation_is_no_reason_to_read_the_body_as_a_request(
    troubled: Troubled, lane: Lane
) -> None:
    """S41."""
    before = len(lane.asked())
    with troubled.connect() as client:
        client.send(filled(with_fields("Expect: y 100-continue"), troubled, lane) + canary(troubled, lane))
        assert client.answer().status == 417
        assert client.answer().body == completion("canary")
    assert len(lane.asked()) == before + 1


def test_a_trailer_alone_is_no_field(troubled: Troubled, lane: Lane) -> None:
    """S30's second half: an Authorization behind the body is nobody's key."""
    before = len(lane.asked())
    head = request("POST", CHAT, "transfer-encoding: chunked")
    trailer = b"0\r\nauthorization: Bearer %b\r\n\r\n" % troubled.key.encode()
    with troubled.connect() as client:
        assert client.ask(head + chunk(lane.body("first")) + trailer).status in (400, 401)
    assert len(lane.asked()) == before


# -- cut anywhere ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["S01 length, then chunked", "S29 a chunk longer than its size",
                                  "S24 LF in a chunk extension", "S22 a bare CR"])  # fmt: skip
def test_it_is_refused_byte_by_byte_as_well(troubled: Troubled, lane: Lane, case: str) -> None:
    before = len(lane.asked())
    data = filled(REFUSED[case], troubled, lane)
    with troubled.connect() as client:
        try:
            for at in range(len(data)):
                client.send(data[at : at + 1])
        except OSError:
            pass  # refused before its end
        assert client.answer().status == 400
    assert len(lane.asked()) == before


# -- at random ---------------------------------------------------------------------------------------

BITS = [
    b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b",", b";", b"\x0b", b"0", b"-", b"+", b"\xff",
    b"HTTP/1.1", b"chunked", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n",
    b"0\r\n\r\n", b"\r\n\r\n",
]  # fmt: skip


def mutated(rng: random.Random, data: bytes) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(data))
        data = rng.choice(
            (
                data[:at] + data[at + 1 :],
                data[:at] + data[at : at + 1] + data[at:],
                data[:at] + rng.choice(BITS) + data[at:],
                data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :],
                data[:at] + data[at + rng.randrange(1, 20) :],
            )
        )
    return data


@pytest.mark.parametrize("seed", range(5))
def test_a_mutated_request_is_refused_or_one_request(troubled: Troubled, lane: Lane, seed: int) -> None:
    """2,500 of them were tried once; these few stay as a guard."""
    rng = random.Random(seed)
    templates = [filled(template, troubled, lane) for template in ONE.values()]
    before, answered = len(lane.asked()), 0
    for _ in range(30):
        # Some mutations are of the key, and an address may try few that nobody knows.
        with troubled.connect(source=f"127.0.1.{seed + 1}") as client:
            client.sock.settimeout(0.1)  # some wait for the rest of what they announce
            with contextlib.suppress(Left, OSError):
                client.send(mutated(rng, rng.choice(templates)) + canary(troubled, lane))
                while answer := client.answer():
                    assert answer.status < 500 or answer.status == 505
                    answered += answer.status == 200
    asked = lane.asked()[before:]
    assert len(asked) >= answered > 0
    for one in asked:
        names = [name.lower() for name, _ in one.headers]
        assert len(names) == len(set(names)) and set(names) <= OWN | REQUEST_PASS
        assert one.header(b"content-length") == str(len(one.body)).encode()
    assert_canary_lives(troubled, lane)
