"""Rounds logged figures to their meaningful digits."""

from __future__ import annotations

_DECIMALS = {
    "top1": 4,  # percent: one image of 50,000 is 0.002
    "top5": 4,
    "data_wait": 4,
}
_DIGITS = {"images_per_s": 4}  # measured by a clock
_FLOAT32 = 7  # about the digits of a float32, such as a loss


def rounded(values: dict[str, float]) -> dict[str, float]:
    """The figures of an event by name, without meaningless digits; zero has no sign.

    A prefix of an accuracy's name, as in ``ema_top1``, does not matter.
    """
    return {
        name: value if isinstance(value, int) else _rounded(name, value) for name, value in values.items()
    }


def _rounded(name: str, value: float) -> float:
    decimals = _DECIMALS.get(name, _DECIMALS.get(name.rpartition("_")[2]))
    if decimals is not None:
        return round(value, decimals) + 0.0
    return float(f"{value:.{_DIGITS.get(name, _FLOAT32)}g}") + 0.0
