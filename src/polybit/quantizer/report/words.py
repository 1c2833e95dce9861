"""Figures as people read them."""

import math


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def number(value: float, places: int = 4) -> str:
    return f"{value:,.{places}f}" if math.isfinite(value) else "not a number"


def percent(share: float) -> str:
    return f"{share:.1%}" if math.isfinite(share) else "not a number"
