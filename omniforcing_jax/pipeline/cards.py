"""Graphics cards as data: memory, bandwidth and peaks, from NVIDIA's data sheets, dense, with float32 sums."""

import dataclasses

import numpy as np

GB, TERA = 1e9, 1e12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """One card.

    Attributes:
        name: As `--device` has it.
        memory: Bytes that its name promises; drivers show a little more.
        bandwidth: Bytes per second.
        wide: FLOP per second in bfloat16.
        int8: Operations per second in int8.
        float8: FLOP per second in float8; None where its products are computed in bfloat16.
    """

    name: str
    memory: float
    bandwidth: float
    wide: float
    int8: float
    float8: float | None

    def peak(self, dtype: np.dtype) -> float:
        """Return the operations per second of a product in this type; float32 is computed as TF32."""
        if dtype.itemsize == 1:
            return self.int8 if dtype.kind == "i" else self.float8 or self.wide
        return self.wide if dtype.itemsize == 2 else self.wide / 2


def _card(name: str, memory: int, bandwidth: float, wide: float, int8: float, float8: float | None) -> Card:
    return Card(
        name=name,
        memory=memory * GB,
        bandwidth=bandwidth * TERA,
        wide=wide * TERA,
        int8=int8 * TERA,
        float8=None if float8 is None else float8 * TERA,
    )


CARDS = {
    card.name: card
    for card in (
        _card("rtx4090", 24, 1.008, 165.2, 660.6, 330.3),
        _card("rtx5090", 32, 1.792, 209.5, 838.0, 419.0),
        _card("a100-40", 40, 1.555, 312.0, 624.0, None),
        _card("l40s", 48, 0.864, 362.0, 733.0, 733.0),
        _card("a100-80", 80, 2.039, 312.0, 624.0, None),
        _card("h100", 80, 3.35, 989.4, 1978.9, 1978.9),
        _card("h200", 141, 4.8, 989.4, 1978.9, 1978.9),
    )
}
