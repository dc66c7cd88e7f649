"""Amounts of the file in the station's currency, and the rate card: the file's prices, then official ones.

Owns which price a model gets. Nano-units; token prices are per million tokens, the others for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from proxy.routing import units
from proxy.routing.figures import Figures, Price
from proxy.routing.globs import Globs, is_glob, matches, overlap
from proxy.routing.loader.draft import Draft
from proxy.routing.loader.families import SECTION
from proxy.routing.loader.mistakes import Path, did_you_mean
from proxy.routing.loader.vendors import Content

ONE = Decimal(1)
_GROUPS = ("tools", "units", "sizes")
_FIGURES = tuple(name for name in Figures.model_fields if name not in _GROUPS)


def nanos(draft: Draft, path: Path, amount: units.Amount) -> int:
    """An amount of the file; a currency without a rate is a mistake."""
    station = draft.file.station
    if amount.currency in (None, station.currency):
        return units.nanos(amount.value, ONE)
    rate = station.rates.get(amount.currency)
    if rate is None:
        if draft.shaped.is_whole(("station",)):
            what = (
                f"no rate from {amount.currency} to {station.currency}: station.rates lacks {amount.currency}"
            )
            draft.wrong(path, what)
        return 0
    return units.nanos(amount.value, rate)


def own_prices(draft: Draft) -> dict[str, Content]:
    """The prices of the file by name or glob, and those of its task families for what it does not name.
    They come before the official ones, however particular."""
    prices = draft.file.prices
    own = {name: price_content(draft, ("prices", name), price) for name, price in prices.items()}
    for one in draft.families:
        for name, price in one.said.prices.items():
            if name not in prices:
                own.setdefault(name, price_content(draft, (SECTION, one.name, "prices", name), price))
    return own


def official_prices(draft: Draft) -> dict[str, Content]:
    """Those of the official prices that a model of the file may need, by name or glob in lower case.

    A literal model that neither the file nor the library prices is a mistake.
    """
    models = draft.file.models
    own = Globs(draft.file.prices)
    bare = [
        n for n in models if not is_glob(n) and own.find(n) is None and not draft.shaped.knows("prices", n)
    ]
    globs = [name for name in models if is_glob(name)]
    if not bare and not globs:
        return {}
    official = _official(draft)
    if official is None:
        return {}
    known = Globs(official)
    needed = set()
    for name in bare:
        pattern = known.find(name.lower())
        needed.add(pattern)
        if pattern is None:
            what = "has no price: name it under prices" + did_you_mean(name, official)
            draft.wrong(("models", name), what, of_key=True)
    for name in official:
        if any(
            overlap(name, glob.lower()) if is_glob(name) else matches(glob.lower(), name) for glob in globs
        ):
            needed.add(name)
    return {name: content for name, content in official.items() if name in needed}


def _official(draft: Draft) -> Mapping[str, Content] | None:
    station = draft.file.station
    try:
        return draft.vendors.prices(station.currency, station.rates)
    except LookupError:
        if draft.shaped.is_whole(("station",)):
            what = f"official prices are in USD: station.rates needs what 1 USD is in {station.currency}"
            draft.wrong(("station", "currency"), what)
        return None


def price_content(draft: Draft, path: Path, price: Price) -> Content:
    """A price of the file as metering.pricing keeps it: what is not written is not there."""
    content = _figures(draft, path, price)
    if price.above:
        content["above"] = [
            {"input_tokens": level.input_tokens, **_figures(draft, (*path, "above", i), level)}
            for i, level in enumerate(price.above)
        ]
    if price.service_tiers:
        content["service_tiers"] = {
            name: _figures(draft, (*path, "service_tiers", name), tier)
            for name, tier in price.service_tiers.items()
        }
    if not content and not price.free and draft.shaped.is_whole(path):
        draft.wrong(path, "has no figure ('free: true' if it costs nothing)", of_key=True)
    if content and price.free:
        draft.wrong((*path, "free"), "is free and has figures: only one of them can be meant")
    if price.free:
        content["free"] = True
    if not price.multiplied:
        content["multiplied"] = False
    return content


def _figures(draft: Draft, path: Path, figures: Figures) -> Content:
    content: Content = {
        name: nanos(draft, (*path, name), amount)
        for name in _FIGURES
        if (amount := getattr(figures, name)) is not None
    }
    for group in _GROUPS:
        rows = getattr(figures, group)
        if rows:
            content[group] = {kind: nanos(draft, (*path, group, kind), row) for kind, row in rows.items()}
    return content
