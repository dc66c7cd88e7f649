"""Tiers earned by top-ups: the station's FAQ and every date that the formula was written with."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from proxy.access.calendar import after, around
from proxy.access.tiers import Held, Payment, earned, line_of
from proxy.routing.tiers import Earning
from proxy.routing.units import Period, period

SHANGHAI = ZoneInfo("Asia/Shanghai")
YUAN = 1_000_000_000
RULES = (Earning(20 * YUAN, period("1 month")), Earning(40 * YUAN, period("6 months")))


def day(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-{text}T10:00:00").replace(tzinfo=SHANGHAI)


def until(*paid: tuple[int, str], rules=RULES) -> str | None:
    payments = [Payment(n, day(at), yuan * YUAN) for n, (yuan, at) in enumerate(paid)]
    found = earned(payments, rules, SHANGHAI)
    return None if found is None else f"{found.until:%m-%d}"


def test_vip_comes_with_a_top_up_of_20_for_a_month():
    assert until((20, "01-01")) == "02-01"


def test_a_top_up_of_40_gives_six_months():
    assert until((40, "01-01")) == "07-01"


def test_less_than_20_earns_nothing():
    assert until((19, "01-01")) is None


def test_twice_10_within_the_month_earn_what_20_do_from_the_first():
    assert until((10, "01-01"), (10, "01-20")) == "02-01"
    assert until((10, "01-01"), (10, "02-20")) is None


def test_20_again_after_vip_has_expired_gives_5_months():
    """The FAQ: counted from the first payment, whose month was over on 1 February."""
    assert until((20, "01-01"), (20, "02-01")) == "07-01"


def test_20_on_1_jan_and_20_on_1_feb_until_1_jul():
    assert until((20, "01-01"), (20, "02-01")) == "07-01"


def test_20_on_1_jan_and_20_on_15_mar_until_1_jul():
    assert until((20, "01-01"), (20, "03-15")) == "07-01"


def test_20_on_1_jan_and_20_on_1_aug_until_1_sep():
    assert until((20, "01-01"), (20, "08-01")) == "09-01"


def test_40_on_1_jan_and_40_on_1_jun_until_1_dec_not_stacked():
    assert until((40, "01-01"), (40, "06-01")) == "12-01"


def test_what_was_paid_back_does_not_count():
    payments = [Payment(1, day("01-01"), 20 * YUAN), Payment(2, day("02-01"), 0)]
    found = earned(payments, RULES, SHANGHAI)
    assert found is not None and (f"{found.until:%m-%d}", found.payments) == ("02-01", (1,))


def test_a_grant_names_the_payments_that_earned_it():
    payments = [Payment(7, day("01-01"), 20 * YUAN), Payment(9, day("03-15"), 20 * YUAN)]
    found = earned(payments, RULES, SHANGHAI)
    assert found is not None and found.payments == (7, 9)


@pytest.mark.parametrize(
    ("moment", "span", "end"),
    [
        ("2026-01-31T23:30:00+08:00", "1 month", "2026-02-28T23:30:00+08:00"),
        ("2024-02-29T00:00:00+08:00", "1 year", "2025-02-28T00:00:00+08:00"),
        ("2026-12-15T00:00:00+08:00", "2 weeks", "2026-12-29T00:00:00+08:00"),
        # In the station's zone it is the 31st already.
        ("2026-01-30T20:00:00+00:00", "1 month", "2026-02-28T04:00:00+08:00"),
    ],
)
def test_months_are_calendar_months_of_the_station_and_clipped(moment, span, end):
    later = after(datetime.fromisoformat(moment), period(span), SHANGHAI)
    assert later == datetime.fromisoformat(end)


@pytest.mark.parametrize(
    ("span", "begin", "end"),
    [
        (Period(1, "day"), "2026-03-19", "2026-03-20"),
        (Period(1, "week"), "2026-03-16", "2026-03-23"),
        (Period(1, "month"), "2026-03-01", "2026-04-01"),
        (Period(3, "month"), "2026-01-01", "2026-04-01"),
        (Period(1, "year"), "2026-01-01", "2027-01-01"),
    ],
)
def test_free_quota_begins_where_the_stations_calendar_does(span, begin, end):
    moment = datetime.fromisoformat("2026-03-18T17:00:00+00:00")  # the 19th in Shanghai
    assert [f"{m:%Y-%m-%d}" for m in around(moment, span, SHANGHAI)] == [begin, end]


def test_tiers_follow_each_other_as_they_end():
    held = [Held("Premium", 50), Held("VIP", 90), Held("VIP", 40)]
    assert line_of(held, "") == [Held("Premium", 50), Held("VIP", 90), Held("", None)]


def test_a_tier_without_an_end_is_the_last_of_its_line():
    assert line_of([Held("VIP", None), Held("Basic", 90)], "Free") == [Held("VIP", None)]
    assert line_of([], "Free") == [Held("Free", None)]
