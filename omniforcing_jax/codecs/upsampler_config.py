"""The shape of a latent upsampler as data, and presets of the published ones."""

import dataclasses
import enum

from omniforcing_jax.codecs.video_config import Stride
from omniforcing_jax.strict_json import LARGEST_SIZE, MOST_PARTS, Config, require, require_counts

GROUPS = 32
"""Groups of channels that every norm has."""


class Resampling(enum.StrEnum):
    """The axes that are resampled, between the two stages of residual blocks.

    RATIONAL resamples the picture by a ratio: it folds out a whole number of cells, then blurs and takes every second,
    third or fourth one.
    """

    SPACE = "space"
    RATIONAL = "rational"
    TIME = "time"
    ALL = "all"


RATIOS: dict[float, tuple[int, int]] = {0.75: (3, 4), 1.5: (3, 2), 2.0: (2, 1), 4.0: (4, 1)}
"""Scales of a rational resampling: cells per latent, and the step between the cells that stay."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpsamplerConfig(Config):
    """The shape of a latent upsampler.

    Attributes:
        latent_channels: C, the channels of a latent.
        width: Width of the residual blocks.
        layers: Residual blocks of each of the two stages.
        resampling: The axes that are resampled.
        scale: Factor by which the sides of the picture grow: 2, except for a rational resampling. 1 where only time is
            resampled.

    Source: ltx-core@1.0.0:model/upsampler/model.py.
    """

    latent_channels: int
    width: int
    layers: int
    resampling: Resampling
    scale: float = 2.0

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        require_counts(self, LARGEST_SIZE, "latent_channels", "width", name="UpsamplerConfig.")
        require_counts(self, MOST_PARTS, "layers", name="UpsamplerConfig.")
        require(self.width % GROUPS == 0, "UpsamplerConfig.width", self.width, f"must be a multiple of {GROUPS}")
        scales = {Resampling.RATIONAL: tuple(RATIOS), Resampling.TIME: (1.0,)}.get(self.resampling, (2.0,))
        rule = f"must be one of {', '.join(map(str, scales))} with resampling {self.resampling.value!r}"
        require(self.scale in scales, "UpsamplerConfig.scale", self.scale, rule)

    @property
    def stride(self) -> Stride:
        """Cells per latent in time, height and width, before any are left out."""
        side = 1 if self.resampling is Resampling.TIME else self.ratio[0]
        return (2 if self.doubles_time else 1), side, side

    @property
    def ratio(self) -> tuple[int, int]:
        """The scale as a ratio of whole numbers."""
        return (1, 1) if self.resampling is Resampling.TIME else RATIOS[self.scale]

    def enlarge(self, latents: int) -> int:
        """Return the rows or columns that so many rows or columns of latents become."""
        return -(-latents * self.ratio[0] // self.ratio[1])

    @property
    def doubles_time(self) -> bool:
        """Whether F latent frames become 2 F - 1."""
        return self.resampling in (Resampling.TIME, Resampling.ALL)

    @property
    def reach(self) -> int:
        """Latent frames on either side that a frame depends on through convolutions, where time is not resampled."""
        return 2 + 4 * self.layers


LTX2_SPATIAL_UPSAMPLER = UpsamplerConfig(
    latent_channels=128, width=1024, layers=4, resampling=Resampling.RATIONAL, scale=2.0
)
LTX23_SPATIAL_UPSAMPLER = dataclasses.replace(LTX2_SPATIAL_UPSAMPLER, resampling=Resampling.SPACE)
LTX25_TEMPORAL_UPSAMPLER = UpsamplerConfig(
    latent_channels=128, width=512, layers=4, resampling=Resampling.TIME, scale=1.0
)
