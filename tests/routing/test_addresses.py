"""Where addresses of a vendor's API lead here."""

from __future__ import annotations

import pytest

from proxy.routing.addresses import Addresses

KNOWN = Addresses([
    ("/v1/predictions/{id}", "/replicate/v1/predictions/{id}"),
    ("/v1/{model}/requests/{id}", "/fal/{model}/requests/{id}"),
    ("/v1/get_result", "/v1/get_result"),
])  # fmt: skip


@pytest.mark.parametrize(("url", "path"), [
    ("https://api.vendor.example/v1/predictions/ab%2Fc", "/replicate/v1/predictions/ab%2Fc"),
    ("https://eu.vendor.example:8443/v1/flux/requests/7?logs=1", "/fal/flux/requests/7?logs=1"),
    ("https://api.vendor.example/v1/get_result?id=7", "/v1/get_result?id=7"),
    ("https://hub.example/base/v1/get_result", "/v1/get_result"),
    ("https://cdn.example/v1/files/7", None),
    ("https://api.vendor.example/v1/predictions/7/cancel", None),
    ("https://api.vendor.example", None),
])  # fmt: skip
def test_an_address_leads_to_the_same_operation_or_stays_what_it_is(url, path):
    ours = KNOWN.here(url, ["/base", ""], "https://station.example")
    assert ours == (None if path is None else f"https://station.example{path}")
