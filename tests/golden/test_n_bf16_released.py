"""Golden n: what bfloat16 makes of positions and levels in the released inference. Ours are the exact ones beside them.

Nothing of it is copied: the cases show how far the released rounding is from what float32 computes.
"""

import jax.numpy as jnp
import numpy as np
from echowm import echo_case, needs_echowm

from omniforcing_jax.config import RotaryConfig, RotaryKind
from omniforcing_jax.layout import video_seconds
from omniforcing_jax.nn.rope import angles, combine, frequencies
from omniforcing_jax.schedule import sigma_lookup

pytestmark = needs_echowm
NAME = "n_bf16_released"
FULL_HEADS, SHOWN_HEADS = 32, (0, 15, 31)  # of the real width; the case has three of them


def half(x) -> np.ndarray:
    """Round to bfloat16, and back."""
    return np.asarray(jnp.asarray(x, jnp.float32).astype(jnp.bfloat16).astype(jnp.float32))


def test_positions_are_exact_and_the_released_ones_are_rounded():
    case = echo_case(NAME)
    ends, slots = case["positions.float32.video"], len(case["positions.float32.video"])
    mid = video_seconds(0, slots)
    case.compare("positions.float32.video_mid", mid.astype(np.float32))
    fraction = mid / case.config["max_seconds"]
    case.compare("positions.float32.video_fraction", fraction.astype(np.float32))
    case.compare("positions.float32.video_fraction2", (2 * fraction - 1).astype(np.float32))
    first = np.maximum(0, 8 * np.arange(slots) - 7)
    own_ends = np.stack([first, 8 * np.arange(slots) + 1], axis=1) / case.config["video_fps"]
    case.compare("positions.float32.video", own_ends.astype(np.float32))
    rounded = half(ends)
    case.compare("positions.bfloat16.video", rounded)
    case.compare("positions.bfloat16.video_mid", middle := half(half(rounded.sum(1)) / 2))
    case.compare("positions.bfloat16.video_fraction", part := half(middle / case.config["max_seconds"]))
    case.compare("positions.bfloat16.video_fraction2", half(half(2 * part) - 1))
    off = np.abs(middle - mid).max()
    np.testing.assert_allclose(off, case.meta["checks"]["midpoints_off_by_seconds_max"], atol=1e-4)


def test_tables_follow_the_positions_that_they_are_made_of():
    """Full width shows what rounding does: the crossing's cosines are off by up to 2, a third on average."""
    case = echo_case(NAME)
    shape = case["window.video_cross_full_width.float32.cos"].shape
    heads, pairs = case.config["heads"], shape[-1]
    for kind in ("float32", "bfloat16"):
        middle = (case[f"positions.{kind}.video_fraction2"].astype(np.float64) + 1) / 2
        tiny = make_table(case, middle, case[f"window.video_cross.{kind}.cos"].shape[-1], heads)
        case.compare(f"window.video_cross.{kind}.cos", np.swapaxes(tiny.cos, 1, 2))
        case.compare(f"window.video_cross.{kind}.sin", np.swapaxes(tiny.sin, 1, 2))
        wide = np.swapaxes(make_table(case, middle, pairs, FULL_HEADS).cos, 1, 2)
        case.compare(f"window.video_cross_full_width.{kind}.cos", wide[:, list(SHOWN_HEADS)])


def make_table(case, middle, pairs, heads):
    """A one-axis table of some midpoints, as fractions of the longest clip."""
    config = RotaryConfig(theta=case.config["theta"], max_seconds=float(case.config["max_seconds"]))
    width = 2 * pairs * heads
    return combine((angles(frequencies(config, 1, width), middle),), width, heads, RotaryKind.SPLIT)


def test_levels_are_exact_and_the_released_ones_are_rounded():
    case = echo_case(NAME)
    lookup = sigma_lookup()
    exact = np.array([lookup[t] for t in (1000, 750, 500, 250)[: len(case["timesteps.exact"])]])
    case.compare("timesteps.exact", exact)
    rounded = half(exact)
    case.compare("timesteps.sigma_of_x0_in_bfloat16", rounded)
    case.compare("timesteps.seen_in_bfloat16", half(1000 * rounded))
