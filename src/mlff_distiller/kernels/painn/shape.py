"""The sizes that painn's kernels are compiled for."""

import re
from dataclasses import astuple, dataclass

HIGHEST_OF_FIRST = 4
"""Order up to which there are harmonics of the first moments."""


@dataclass(frozen=True)
class Shape:
    """What kernels are compiled for."""

    channels: int
    radial_functions: int
    max_moment: int
    cutoff: float  # Å
    shortest: float  # Å, added in squares to a distance
    saturation: float  # 0 if messages do not saturate
    has_zbl: bool
    has_messages: bool  # beyond the first
    float64: bool

    @property
    def name(self) -> str:
        """Different for each."""
        return "_".join(re.sub(r"\W", "_", str(value)) for value in astuple(self))

    @property
    def half(self) -> int:
        return self.channels // 2

    @property
    def orders(self) -> range:
        """Those of half as many channels."""
        return range(2, self.max_moment + 1)

    def width(self, order: int) -> int:
        """Channels of the moments of an order."""
        return self.channels if order < 2 else self.half

    def place(self, order: int) -> int:
        """Where an order starts, in a buffer of moments: of one atom."""
        c = self.channels
        return min(order, 1) * c if order < 2 else 4 * c + (order**2 - 4) * self.half

    @property
    def mixes(self) -> list[int]:
        """Orders whose products take first moments mixed."""
        return [order for order in self.orders if order <= HIGHEST_OF_FIRST]

    @property
    def n_invariants(self) -> int:
        return sum(4 if order == 2 else 1 + (order in self.mixes) for order in self.orders)
