"""Spans of the calendar in the station's time zone: what comes after a moment, and the period it is in.

Owns clipped months (31 January and a month is 28 February) and where days, weeks, months and years
begin. Pure: moments are aware datetimes and come in, as does the zone.
"""

from __future__ import annotations

from calendar import monthrange
from datetime import datetime, timedelta, tzinfo

from proxy.routing.units import Period

_DAYS = {"day": 1, "week": 7}
_MONTHS = {"month": 1, "year": 12}


def after(moment: datetime, period: Period, zone: tzinfo) -> datetime:
    """The same time of day in the station's zone, a period later."""
    local = moment.astimezone(zone).replace(tzinfo=None)
    if period.unit in _DAYS:
        later = local + timedelta(days=_DAYS[period.unit] * period.count)
    else:
        year, month = _shifted(local.year * 12 + local.month - 1, _MONTHS[period.unit] * period.count)
        later = local.replace(year=year, month=month, day=min(local.day, monthrange(year, month)[1]))
    return later.replace(tzinfo=zone)


def around(moment: datetime, period: Period, zone: tzinfo) -> tuple[datetime, datetime]:
    """[begin, end) of the period that a moment is in: from midnight, Monday, the first of a month or year.

    Periods of several units are counted from the year 1, so that everybody's begin at the same time.
    """
    local = moment.astimezone(zone)
    if period.unit in _DAYS:
        step = _DAYS[period.unit] * period.count
        day = local.toordinal() - 1  # the first day of the year 1 was a Monday
        first = datetime.fromordinal(day // step * step + 1)
        return first.replace(tzinfo=zone), (first + timedelta(days=step)).replace(tzinfo=zone)
    step = _MONTHS[period.unit] * period.count
    month = local.year * 12 + local.month - 1
    begin, end = (datetime(*_shifted(month // step * step, n), 1, tzinfo=zone) for n in (0, step))
    return begin, end


def _shifted(month: int, by: int) -> tuple[int, int]:
    """(year, month) of a count of months since the year 0, so many later."""
    year, index = divmod(month + by, 12)
    return year, index + 1
