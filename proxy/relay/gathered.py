"""A request that holds many: may its key make each of these calls, and what may they cost together?

Owns the hold of a batch whose calls stand in its own request (money.md 19). What a batch only names by a
file, nobody here can know: it is held by the price of its submit. Reads everything; run it in a thread.
"""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from proxy.dialects.owned import found
from proxy.errors import ModelMissing, ModelNotPermitted, ModelNotPriced, OptionNotPriced
from proxy.metering.bounds import hold_bound
from proxy.metering.pricing import cost_nanos, unpriced_options
from proxy.metering.quote import Sale
from proxy.relay.exchange import Exchange, Standing
from proxy.routing.table import Model

KIND = "text"  # of such calls
CALLS_MAX = 100_000  # of one request: the most that a vendor takes


def hold_nanos(x: Exchange, standing: Standing, estimates: Mapping[str, int], floor: int) -> int:
    """What the calls in a request may cost; `estimates` and `floor`: expected tokens of output of one call.

    Raises ModelMissing, ModelNotPermitted, ModelNotPriced, OptionNotPriced.
    """
    assert x.operation is not None and x.operation.task is not None
    snapshot, tier, total = standing.snapshot, standing.tier, 0
    known: dict[str, tuple[Sale, Model | None]] = {}
    for at, call in enumerate(found(x.doc, x.operation.calls_in)):
        name = call.get("model") if type(call) is dict else None
        if type(name) is not str or not name or at == CALLS_MAX:
            raise ModelMissing(param="model")
        if name not in known:
            known[name] = _sale(standing, name, x.operation.task.service_tier), snapshot.model_for(name)
        sale, model = known[name]
        unpriced = unpriced_options(sale.price, call, KIND)
        if unpriced:
            raise OptionNotPriced(param=unpriced[0])
        context, most = (model.context, model.max_output) if model is not None else (None, None)
        bound = hold_bound(KIND, call, len(orjson.dumps(call)), context, most)
        usage = bound.usage
        if tier.hold == "estimate":
            usage.output = min(usage.output, estimates.get(name, floor) * bound.n)
        total += cost_nanos(sale.price, usage, sale.model_ppm, sale.tier_ppm)
    return total


def _sale(standing: Standing, name: str, service_tier: str) -> Sale:
    snapshot, key, tier = standing.snapshot, standing.key, standing.tier
    status = snapshot.table.station.not_permitted_status
    if not snapshot.permitted(tier.models, name):
        raise ModelNotPermitted(param="model", status=status)
    key.check_model(name, snapshot.permitted, status)
    sale = snapshot.sale(name, tier, key.overrides)
    if sale is None:
        raise ModelNotPriced(param="model")
    return sale._replace(price=sale.price.narrowed(service_tier=service_tier))
