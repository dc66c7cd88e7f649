"""A form is read in one way or not at all, in bounded memory, however it is cut."""

from __future__ import annotations

from email.parser import BytesParser
from email.policy import HTTP

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import ClientFault, DuplicateMember, ParameterRefused, ProxyError
from proxy.http1.multipart import (
    FILE_HEAD_BYTES,
    GUARDED_BYTES_MAX,
    PART_HEAD_BYTES_MAX,
    PARTS_MAX,
    TEXT_BYTES_MAX,
    FormReader,
    Splicer,
    boundary_of,
    is_form,
    text_part,
)

GUARDED = ("model", "stream", "n")
SOUND = bytes(range(256)) * 40


def part(name: str, value: bytes, more: str = "") -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n' % (
        name.encode(), more.encode(), value,
    )  # fmt: skip


def file(name: str, value: bytes, filename: str = "a.mp3") -> bytes:
    return part(name, value, f'; filename="{filename}"\r\nContent-Type: audio/mpeg')


FORM = file("file", SOUND) + part("model", b"whisper-1") + part("prompt", "Ä ö".encode()) + b"--b--\r\n"


def read(body: bytes, size: int = 1 << 20, guarded: tuple[str, ...] = GUARDED) -> FormReader:
    form = FormReader("b", guarded)
    for at in range(0, len(body), size):
        form.feed(body[at : at + size])
    form.finish()
    return form


def refusal(body: bytes) -> ProxyError:
    """It is the same one, whether the body comes whole or byte by byte."""
    errors = []
    for size in (1 << 20, 1):
        with pytest.raises(ClientFault) as refused:
            read(body, size)
        errors.append(refused.value)
    assert str(errors[0]) == str(errors[1])
    return errors[0]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000, 1 << 20])
def test_a_form_is_read_however_it_is_cut(size: int):
    form = read(FORM, size)
    assert form.fields == {"model": "whisper-1", "prompt": "Ä ö"}
    assert FORM[slice(*form.spans["model"])] == b"whisper-1"
    assert FORM[slice(*form.parts["model"])] == part("model", b"whisper-1")
    assert [(f.field, f.name, f.size) for f in form.files] == [("file", "a.mp3", len(SOUND))]
    assert form.files[0].head == SOUND[:FILE_HEAD_BYTES]


def test_a_form_as_curl_browsers_and_sdks_write_it():
    body = (
        b'--b\r\ncontent-disposition: Form-Data; filename="\xb2\xe2.mp3"; name=model\r\n'
        b"Content-Length: 1\r\nContent-Transfer-Encoding: binary\r\n\r\nx\r\n"
        b'--b\r\nContent-Disposition: form-data; name="timestamp_granularities[]"\r\n\r\nword\r\n'
        b'--b\r\nContent-Disposition: form-data; name="timestamp_granularities[]"\r\n\r\nsegment\r\n'
        b'--b\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; name="empty"\r\n'
        b"\r\n\r\n--b--"
    )
    form = read(body, guarded=())
    assert form.fields == {"timestamp_granularities[]": "word", "empty": ""}
    assert form.files[0].field == "model"


def test_the_head_of_a_file_is_known_before_its_end():
    form = FormReader("b", GUARDED)
    form.feed(file("file", SOUND)[:300])
    assert not form.has_file_head
    form.feed(file("file", SOUND)[300:-40])
    assert form.has_file_head
    short = FormReader("b", GUARDED)
    short.feed(file("file", b"abc") + b"--b\r\n")
    assert short.has_file_head


@pytest.mark.parametrize(
    "body",
    [
        b"", b"--b", b"--b\r\n", FORM[:-8], FORM[:100],  # ends early
        b"x" + FORM, b"\r\n" + FORM, b'{"model":"m"}', b"\xff\xfe-\x00-\x00b\x00",  # is something else
        FORM.replace(b"\r\n", b"\n"),  # other line ends
        FORM + b"more", FORM + FORM, FORM + b"\r\n" * 600,  # goes on
        part("a", b"x--b"), part("a", b"x\n--b\nfoo"), part("a", b"x\r\n--bb"), part("a", b"x\r\n--b \r\n"),
        b"--b\r\n\r\nvalue\r\n--b--", b"--b\r\nX: y\r\n\r\nvalue\r\n--b--",  # parts without a name
        b"--b\r\nContent-Disposition: form-data; name=a\r\n\r\n--b--",  # no line end before the boundary
        b"--b\r\nContent-Disposition: form-data; name=a\r\n--b\r\n\r\n",
        b'--b\r\nContent-Disposition: form-data; name="a"; name="model"\r\n\r\nx\r\n--b--',
        b"--b\r\nContent-Disposition: form-data; name*=utf-8''model; name=a\r\n\r\nx\r\n--b--",
        b'--b\r\nContent-Disposition: form-data; name="a\r\n model"\r\n\r\nx\r\n--b--',
        b'--b\r\nContent-Disposition: form-data; name="a"\r\n folded\r\n\r\nx\r\n--b--',
        b'--b\r\nContent-Disposition: form-data; name="a" model\r\n\r\nx\r\n--b--',
        b"--b\r\nContent-Disposition: attachment; name=a\r\n\r\nx\r\n--b--",
        b"--b\r\nContent-Disposition: form-data; name=a\r\nContent-Disposition: form-data; name=b\r\n\r\n"
        b"x\r\n--b--",
        part("a", b"eA==", "\r\nContent-Transfer-Encoding: base64") + b"--b--",
        b"--b\r\nX: " + b"y" * PART_HEAD_BYTES_MAX + b"\r\n\r\n",
        part("a", b"x") * (PARTS_MAX + 1) + b"--b--",
    ],
)  # fmt: skip
def test_what_is_no_form_or_two_is_refused(body: bytes):
    error = refusal(body)
    assert (error.status, error.code, error.param) == (400, "invalid_request", None)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (part("model", b"a") + part("model", b"b"), DuplicateMember),
        (part("model", b"a") + file("model", b"b"), DuplicateMember),
        (file("model", b"b"), ParameterRefused),
        (part("model", b"x" * (GUARDED_BYTES_MAX + 1)), ParameterRefused),
        (part("model", "m".encode("utf-16")), ParameterRefused),
        (part("model", b"a\r\nb"), ParameterRefused),
        (part("model", b"a\0"), ParameterRefused),
    ],
)
def test_a_field_that_decides_is_there_once_short_and_text(body: bytes, kind: type[ProxyError]):
    error = refusal(body + b"--b--")
    assert (type(error), error.param) == (kind, "model")


def test_a_model_of_a_megabyte_is_refused_before_it_has_come():
    form = FormReader("b", GUARDED)
    begin = part("model", b"x" * (1 << 20))[: GUARDED_BYTES_MAX + 200]
    with pytest.raises(ParameterRefused):
        form.feed(begin)


def test_long_texts_are_kept_up_to_a_bound():
    form = read(part("a", b"x" * TEXT_BYTES_MAX) + part("b", b"y" * 100) + part("model", b"m") + b"--b--")
    assert len(form.fields["a"]) == TEXT_BYTES_MAX
    assert (form.fields["b"], form.fields["model"]) == ("", "m")


def test_a_file_of_any_size_is_not_kept():
    form = FormReader("b", GUARDED)
    form.feed(file("file", b"")[:-2])
    for _ in range(100):
        form.feed(b"\r\n--" * 1000)
    assert form.files[0].size > 390_000
    assert len(form._rest) < 10


# -- content types ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=b", "b"),
        ('Multipart/Form-Data;Boundary="a b\'()+_,-./:=?c"', "a b'()+_,-./:=?c"),
        (
            "multipart/form-data; charset=utf-8; boundary=----WebKitFormBoundary7MA4",
            "----WebKitFormBoundary7MA4",
        ),
        ("multipart/form-data; boundary=" + "x" * 70, "x" * 70),
    ],
)
def test_the_boundary_is_what_the_type_says(content_type: str, boundary: str):
    assert is_form(content_type)
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data", "multipart/form-data; boundary=", 'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=a; boundary=b", 'multipart/form-data; boundary="a "',
        'multipart/form-data; boundary="a\\"b"', "multipart/form-data; boundary=" + "x" * 71,
        "multipart/form-data; boundary=" + "x" * 10_000, "multipart/form-data; boundary=ü",
        "multipart/form-data; boundary=a junk", "multipart/mixed; boundary=b",
        "multipart/form-datax; boundary=b",
    ],
)  # fmt: skip
def test_a_boundary_that_is_none_is_refused(content_type: str):
    with pytest.raises(ClientFault):
        boundary_of(content_type)


# -- changes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 5, 64, 1 << 20])
def test_the_value_of_model_is_all_that_changes(size: int):
    form = read(FORM)
    splicer = Splicer([(*form.spans["model"], b"gpt-4o-transcribe")])
    sent = b"".join(b"".join(splicer.feed(FORM[at : at + size])) for at in range(0, len(FORM), size))
    assert sent == FORM.replace(b"whisper-1", b"gpt-4o-transcribe")
    assert splicer.growth == len(sent) - len(FORM)


def test_what_nobody_changes_is_the_same_object():
    assert Splicer([]).feed(FORM)[0] is FORM


def test_a_model_that_nobody_named_is_put_in_front():
    body = file("file", b"x") + b"--b--"
    sent = b"".join(Splicer([(0, 0, text_part("b", "model", "m"))]).feed(body))
    assert sent == part("model", b"m") + body
    assert read(sent).fields == {"model": "m"}


@given(
    st.binary(max_size=60),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 5), st.binary(max_size=4)), max_size=4),
    st.integers(1, 61),
)
def test_edits_are_made_wherever_the_body_is_cut(body: bytes, found: list[tuple[int, int, bytes]], size: int):
    edits, last, expected = [], -1, b""
    for start, length, new in sorted(found):
        if start > last and start + length <= len(body) and start < len(body):
            edits.append((start, start + length, new))
            expected += body[max(last, 0) : start] + new
            last = start + length
    expected += body[max(last, 0) :]
    splicer = Splicer(edits)
    assert (
        b"".join(b"".join(splicer.feed(body[at : at + size])) for at in range(0, len(body), size)) == expected
    )


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.binary(max_size=80)),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 300),
)
def test_a_form_means_what_another_reader_sees(parts: list[tuple[str, bytes]], size: int):
    parts = [(name, value) for name, value in parts if b"--b" not in value]
    body = b"".join(part(name, value) for name, value in parts) + b"--b--"
    if not parts:
        return
    form = read(body, size, guarded=())
    theirs = BytesParser(policy=HTTP).parsebytes(
        b"Content-Type: multipart/form-data; boundary=b\r\n\r\n" + body
    )
    names = [str(p["Content-Disposition"].params["name"]) for p in theirs.iter_parts()]
    assert names == [name for name, _ in parts]
    firsts = dict(reversed(parts))
    assert form.fields == {name: value.decode("utf-8", "replace") for name, value in firsts.items()}
