"""The sizes of a text model of Gemma 3 or 4, and the two published models that LTX-2 reads prompts with.

Source: transformers@5.23.0:models/gemma3/configuration_gemma3.py;
transformers@5.23.0:models/gemma4_unified/configuration_gemma4_unified.py.
"""

import dataclasses

from omniforcing_jax.strict_json import LARGEST_SIZE, MOST_LAYERS, Config, require, require_counts

MOST_TOKENS = 2**24  # of a vocabulary or a window: far more than any model has


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlobalHeads(Config):
    """Heads of global layers where they differ from those of sliding layers (Gemma 4).

    Attributes:
        kv_heads: Key heads of a global layer.
        head_size: Channels of a head of a global layer.
        keys_are_values: The projection to keys is the one to values, too.
    """

    kv_heads: int
    head_size: int
    keys_are_values: bool = False

    def __post_init__(self):
        require_counts(self, LARGEST_SIZE, "kv_heads", "head_size")
        require(self.head_size % 2 == 0, "head_size", self.head_size, "must be even, rotation pairs channels")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GemmaConfig(Config):
    """A text model of Gemma 3 or 4; defaults are Gemma 3's.

    Attributes:
        vocabulary: Rows of the embedding table.
        width: Channels of a hidden state.
        mlp_width: Channels inside the feed-forward part.
        heads: Query heads.
        kv_heads: Key heads; each serves heads / kv_heads query heads.
        head_size: Channels of a head.
        query_scale: Scores are divided by its square root. It is the head size, except in the largest model.
        window: Tokens that a sliding layer sees, the current one included.
        is_global: For each layer, whether it sees all tokens before it.
        local_theta: Longest over shortest period of the rotations of sliding layers.
        global_theta: The same for global layers.
        global_stretch: Positions in global layers are divided by it.
        global_rotated: Share of a head's channels that are rotated in global layers, those of the highest frequencies.
        global_heads: Heads of global layers; None where they are those of sliding layers.
        norm_offset: Added to the weights of norms: 1 in Gemma 3, 0 in Gemma 4.
        value_norm: Whether values are normalised, without a weight (Gemma 4).
        layer_scale: Whether the output of a layer is multiplied by a number of its own (Gemma 4).
    """

    vocabulary: int
    width: int
    mlp_width: int
    heads: int
    kv_heads: int
    head_size: int
    query_scale: float
    window: int
    is_global: tuple[bool, ...]
    local_theta: float = 10_000.0
    global_theta: float = 1_000_000.0
    global_stretch: float = 1.0
    global_rotated: float = 1.0
    global_heads: GlobalHeads | None = None
    norm_offset: float = 1.0
    value_norm: bool = False
    layer_scale: bool = False

    def __post_init__(self):
        require_counts(self, MOST_TOKENS, "vocabulary", "window")
        require_counts(self, LARGEST_SIZE, "width", "mlp_width", "heads", "kv_heads", "head_size")
        for field in ("query_scale", "local_theta", "global_theta", "global_stretch"):
            require(getattr(self, field) > 0, field, getattr(self, field), "must be positive")
        for name, kv_heads in (("", self.kv_heads), ("global_heads.", self.of_global.kv_heads)):
            rule = f"must be a multiple of {name}kv_heads={kv_heads}"
            require(self.heads % kv_heads == 0, "heads", self.heads, rule)
        require(self.head_size % 2 == 0, "head_size", self.head_size, "must be even, rotation pairs channels")
        require(len(self.is_global) >= 1, "is_global", self.is_global, "must have an entry for each layer")
        require_counts(self, MOST_LAYERS, "layers")
        require(0 < self.global_rotated <= 1, "global_rotated", self.global_rotated, "must be above 0 and at most 1")
        both = len(set(self.is_global)) == 2
        rule = "must have layers of both kinds, as global_heads are given"
        require(both or not self.is_gemma_4, "is_global", self.is_global, rule)

    @property
    def is_gemma_4(self) -> bool:
        """Whether it is Gemma 4, whose global layers have heads of their own."""
        return self.global_heads is not None

    @property
    def of_global(self) -> GlobalHeads:
        """Heads of global layers."""
        return self.global_heads or GlobalHeads(kv_heads=self.kv_heads, head_size=self.head_size)

    @property
    def stacks(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of the layers in each stack: all in one, or sliding layers in one and global layers in another."""
        numbers = range(self.layers)
        if not self.is_gemma_4:
            return (tuple(numbers),)
        return tuple(tuple(i for i in numbers if self.is_global[i] == kind) for kind in (False, True))

    @property
    def layers(self) -> int:
        """L, the number of layers."""
        return len(self.is_global)

    @property
    def states(self) -> int:
        """Z, the hidden states per token: the embedding, and one for each layer."""
        return 1 + self.layers


def every_sixth(layers: int) -> tuple[bool, ...]:
    """Return Gemma's pattern: five sliding layers, then a global one."""
    return tuple(i % 6 == 5 for i in range(layers))


GEMMA_3_12B = GemmaConfig(
    vocabulary=262_208,
    width=3840,
    mlp_width=15_360,
    heads=16,
    kv_heads=8,
    head_size=256,
    query_scale=256.0,
    window=1024,
    is_global=every_sixth(48),
    global_stretch=8.0,
)
GEMMA_4_12B = dataclasses.replace(
    GEMMA_3_12B,
    vocabulary=262_144,
    query_scale=1.0,
    global_stretch=1.0,
    global_rotated=0.25,
    global_heads=GlobalHeads(kv_heads=1, head_size=512, keys_are_values=True),
    norm_offset=0.0,
    value_norm=True,
    layer_scale=True,
)
