"""Our own keys: 256 bits, a checksum, never shown whole."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.access.keyformat import DIGITS, digest_of, is_well_formed, make_key, masked

secrets = st.binary(min_size=32, max_size=32)


@given(secrets)
def test_a_key_has_one_length_and_a_right_checksum(secret):
    key = make_key(secret)
    assert len(key) == 52 and key.startswith("sk-") and set(key[3:]) <= set(DIGITS)
    assert is_well_formed(key)


@given(secrets, st.integers(3, 51), st.sampled_from(DIGITS))
def test_a_mistyped_character_is_noticed(secret, position, other):
    key = make_key(secret)
    if key[position] != other:
        assert not is_well_formed(key[:position] + other + key[position + 1 :])


@given(st.lists(secrets, min_size=2, max_size=2, unique=True))
def test_different_secrets_are_different_keys(pair):
    assert make_key(pair[0]) != make_key(pair[1])


@pytest.mark.parametrize("key", ["", "sk-short", "sk-" + "a" * 48, "old-station-7", "sk-ant-x_y", "sk-ü"])
def test_a_key_of_another_kind_is_not_judged(key):
    assert is_well_formed(key)


def test_a_key_is_made_of_32_bytes_only():
    with pytest.raises(ValueError, match="32"):
        make_key(b"short")


def test_the_digest_is_of_the_whole_key():
    key = make_key(bytes(range(32)))
    assert digest_of(key) == hashlib.sha256(key.encode()).digest()
    assert len(digest_of("sk-\udcff")) == 32  # bytes of a header that are no UTF-8


@pytest.mark.parametrize("key", ["sk-" + "a" * 49, "tiny", "sk-12345678901234"])
def test_what_is_shown_of_a_key_does_not_help_to_guess_it(key):
    shown = masked(key)
    assert len(shown.replace("…", "")) <= min(10, len(key) // 2 + 1)
