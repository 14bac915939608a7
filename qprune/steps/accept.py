"""Trust region of the quadratic model: an adaptive price per changed decision."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Trust:
    """Trust region in the form of a price, nats per changed decision.

    rho = real / predicted change (Conn, Gould, Toint, "Trust-Region Methods", section 6.1):
    the price rises when rho < `low` or the move is refused, and falls when rho > `high`.

    Args:
        price: initial price.
        low, high: thresholds of rho.
        factor: factor of each change of the price.
    """

    price: float = 0.0
    low: float = 0.25
    high: float = 0.75
    factor: float = 4.0

    def taken(self, predicted: float, real: float, flips: int) -> Trust:
        """Return the region after an accepted move."""
        rho = real / predicted if predicted < 0 else 0.0
        if rho < self.low:
            return self.raised(predicted, flips)
        return self.lowered() if rho > self.high else self

    def raised(self, predicted: float, flips: int) -> Trust:
        """Return it with a higher price, at least a tenth of the predicted gain per flip."""
        floor = 0.1 * -predicted / max(flips, 1)
        return self._with(max(self.price * self.factor, floor))

    def lowered(self) -> Trust:
        """Return it with a lower price, after a good prediction or when no decision changed."""
        return self._with(self.price / self.factor)

    def _with(self, price: float) -> Trust:
        return Trust(price, self.low, self.high, self.factor)
