"""What a file says about callbacks, as tables have it."""

from __future__ import annotations

from proxy.routing.callbacks import Callbacks
from proxy.routing.foreign import networks
from proxy.routing.table import Table
from tests.routing.compiling import MINIMAL, compile_text, mistakes

ENDPOINT = 'endpoints: {direct: {url: "https://api.example.com/v1/"}}\n'


def callbacks(text: str) -> Callbacks:
    return Table.from_document(compile_text(MINIMAL + ENDPOINT + text).document).callbacks


def test_without_a_word_vendors_call_nobody_and_only_public_addresses_are_called():
    assert callbacks("") == Callbacks("", ())


def test_vendors_call_an_endpoint_and_the_operator_adds_networks():
    found = callbacks('callbacks: {through: direct, allow: [10.0.0.1/8, 127.0.0.1, "fd00::/8"]}\n')
    assert found == Callbacks("https://api.example.com/v1", networks(["10.0.0.0/8", "127.0.0.1", "fd00::/8"]))


def test_a_route_may_not_stand_where_vendors_call():
    route = "routes: [{path: '/callbacks/{id}', operation: chat, candidates: [{upstream: openai}]}]\n"
    assert "is answered by the relay itself" in mistakes(MINIMAL + route)[0]
