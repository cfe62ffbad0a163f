"""From pixels to balls: who is in a frame, where to a fraction of a pixel, and how true the colours are.

Tracking knows what a viewer may know: the palette, the backdrop and the radius of a ball. It knows nothing of the
world that was rendered and nothing of physics. Events in these tracks are found in `detect.py`.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage

from omniforcing_jax.chime.box import PALETTE, RADIUS, backdrop
from omniforcing_jax.layout import FRAME_RATE

TINT = 60.0  # 8-bit levels off the line from backdrop to palette colour at which a pixel's membership has fallen to 1/e
SEEN = 0.2  # least visible share of a disc for a position
USUAL = 1 / 3  # share of the frames in which what belongs to the clip is seen: one ball may hide another for seconds
SOFT = 2.0  # pixels over which the edge of the fitted disc rises: generated edges are softer than rendered ones
STEPS = 6  # of Gauss-Newton; the second already moves by less than a hundredth of a pixel on truth
BATCH = 240  # frames looked at together


@dataclass(frozen=True, kw_only=True)
class Tracks:
    """What is seen in F frames, per colour of the palette (c = 6)."""

    centres: Float[np.ndarray, "F c 2"]  # x and y in box units; NaN where not seen
    spread: Float[np.ndarray, "F c 2"]  # standard deviations of the centres in box units, up to a common factor
    visible: Float[np.ndarray, "F c"]  # share of the disc that is not hidden, 0 to 1
    twins: Bool[np.ndarray, "F c"]  # a second ball of the same colour is in the frame
    strangers: Bool[np.ndarray, " F"]  # a ball of no known colour is in the frame
    colour_error: Float[
        np.ndarray, "F c"
    ]  # RGB distance of a ball's inner half from its palette colour, in 8-bit levels

    def between(self, start: float | int, stop: float | int) -> "Tracks":
        """Return the frames at times in [start, stop)."""
        low, high = np.searchsorted(np.arange(len(self.visible)) / FRAME_RATE, [start, stop])
        return Tracks(**{name: value[low:high] for name, value in vars(self).items()})

    def presence(self) -> Float[np.ndarray, " c"]:
        """Return the share of the frames in which each colour is seen; 0 if there are none."""
        return (self.visible >= SEEN).mean(axis=0) if len(self.visible) else np.zeros(self.visible.shape[1])

    def colours(self) -> tuple[int, ...]:
        """Return the colours that are usually seen."""
        return tuple(np.flatnonzero(self.presence() >= USUAL).tolist())

    def count(self) -> int:
        """Count balls: the colours usually seen, those of them that are usually there twice, and usual strangers."""
        seen = self.colours()
        twins = sum(bool(self.twins[:, colour].mean() >= USUAL) for colour in seen)
        return len(seen) + twins + bool(len(self.strangers) and self.strangers.mean() >= USUAL)


def _memberships(
    video: UInt8[np.ndarray, "F S S 3"],
) -> tuple[Float[np.ndarray, "F c S S"], Float[np.ndarray, "F S S"]]:
    """Return how much of each pixel each colour covers, and how much of it nothing known explains, all 0 to 1.

    A pixel is taken as a blend of the backdrop and one colour, the one whose blend comes nearest.
    """
    size = video.shape[1]
    behind = backdrop(size).astype(np.float32)
    above = video.astype(np.float32) - behind  # [F, S, S, 3]
    rise = PALETTE.astype(np.float32)[:, None, None] - behind  # [c, S, S, 3]
    length = (rise**2).sum(-1)
    share = np.einsum("fijk,cijk->fcij", above, rise, optimize=True) / length
    miss = (above**2).sum(-1)[:, None] - 2 * share * share * length + share**2 * length
    nearest = miss.argmin(axis=1)[:, None] == np.arange(len(PALETTE))[None, :, None, None]
    cover = np.where(nearest & (share > 0.15), np.clip(share, 0, 1), 0) * np.exp(-np.maximum(miss, 0) / TINT**2)
    size_above = np.sqrt((above**2).sum(-1))
    unexplained = np.where((size_above > TINT) & (miss.min(axis=1) > TINT**2), 1.0, 0.0)
    return cover.astype(np.float32), unexplained.astype(np.float32)


def _seek(cover: Float[np.ndarray, "F S S"], radius: float) -> tuple[Int[np.ndarray, "F 2"], Float[np.ndarray, " F"]]:
    """Return the pixel (row, column) where a ball's worth of cover is densest, and the share of a disc found there."""
    side = max(3, round(radius * np.sqrt(np.pi)))
    dense = ndimage.uniform_filter1d(cover, side, axis=1, mode="constant")
    dense = ndimage.uniform_filter1d(dense, side, axis=2, mode="constant")
    flat = dense.reshape(len(cover), -1)
    best = flat.argmax(axis=1)
    found = np.stack(np.unravel_index(best, cover.shape[1:]), axis=1)
    return found, np.take_along_axis(flat, best[:, None], axis=1)[:, 0]


def _patches(
    maps: Float[np.ndarray, "F S S"], corner: Int[np.ndarray, "F 2"], width: int
) -> Float[np.ndarray, "F w w"]:
    """Cut a square out of each frame, its first pixel at `corner` (row, column); beyond the picture there are zeros."""
    padded = np.pad(maps, ((0, 0), (width, width), (width, width)))
    rows, columns = (corner[:, axis, None] + width + np.arange(width) for axis in (0, 1))
    return padded[np.arange(len(maps))[:, None, None], rows[:, :, None], columns[:, None, :]]


def _fit_disc(
    cover: Float[np.ndarray, "F w w"], open_: Float[np.ndarray, "F w w"], radius: float
) -> tuple[Float[np.ndarray, "F 2"], Float[np.ndarray, "F 2"], Float[np.ndarray, " F"]]:
    """Fit the centre of a disc of known radius to the pixels that nothing else hides, by Gauss-Newton.

    A soft edge and a sharp one of the same radius balance each other along the radius, so blur does not move the
    centre, and where another ball hides a part the rest of the rim still tells the place.

    Returns:
        The centre (row, column), its standard deviations up to a factor, and the visible share of the disc.
    """
    grid = np.stack(np.meshgrid(*(np.arange(cover.shape[1], dtype=np.float32),) * 2, indexing="ij"), -1)  # [w, w, 2]
    weight = cover * open_ + 1e-6
    centre = (weight[..., None] * grid).sum((1, 2)) / weight.sum((1, 2))[:, None]
    model, normal = np.zeros_like(cover), np.zeros((len(cover), 2, 2), np.float32)
    for _ in range(STEPS):
        offset = grid - centre[:, None, None]
        distance = np.sqrt((offset**2).sum(-1)) + 1e-6
        model = np.clip((radius - distance) / SOFT + 0.5, 0, 1)
        slope = np.where((model > 0) & (model < 1), open_ / SOFT, 0)[..., None] * offset / distance[..., None]
        normal = np.einsum("fijm,fijn->fmn", slope, slope) + 0.02 * np.eye(2, dtype=np.float32)
        push = np.einsum("fijm,fij->fm", slope, cover - model)
        centre = centre + np.clip(np.linalg.solve(normal, push[..., None])[..., 0], -2, 2)
    spread = np.sqrt(np.linalg.inv(normal)[:, [0, 1], [0, 1]])
    visible = (np.minimum(cover, model) * open_).sum((1, 2)) / (np.pi * radius**2)
    return centre, spread, visible


def _watch_batch(video: UInt8[np.ndarray, "F S S 3"]) -> Tracks:
    """Find the balls of every frame, one colour at a time."""
    frames, size = video.shape[:2]
    radius = RADIUS * size
    width = int(np.ceil(2 * radius)) + 6
    covers, unexplained = _memberships(video)
    centres = np.full((frames, len(PALETTE), 2), np.nan)
    spread, visible = np.ones_like(centres), np.zeros((frames, len(PALETTE)))
    twins, error = np.zeros((frames, len(PALETTE)), bool), np.full((frames, len(PALETTE)), np.nan)
    total = covers.sum(axis=1)
    for colour in range(len(PALETTE)):
        cover = covers[:, colour]
        seen = np.flatnonzero(cover.sum((1, 2)) >= SEEN * np.pi * radius**2)
        if not len(seen):
            continue
        others = ndimage.maximum_filter((total - cover)[seen] + unexplained[seen], size=(1, 3, 3))
        place, _ = _seek(cover[seen], radius)
        corner = place - width // 2
        patch = _patches(cover[seen], corner, width)
        inside = _patches(np.ones((len(seen), size, size), np.float32), corner, width)
        hidden = _patches(others, corner, width) > 0.15
        centre, deviation, share = _fit_disc(patch, inside * ~hidden, radius)
        centre = centre + corner
        keep = share >= SEEN
        at = seen[keep]
        centres[at, colour] = (np.stack([centre[:, 1] + 0.5, size - 0.5 - centre[:, 0]], -1) / size)[keep]
        spread[at, colour] = deviation[keep][:, ::-1] / size
        visible[at, colour] = np.minimum(share[keep], 1)
        gap = np.hypot(*(np.indices((size, size))[:, None] - centre.T[:, :, None, None]))  # [n, S, S]
        twins[seen, colour] = _seek(np.where(gap < 1.4 * radius, 0, cover[seen]), radius)[1] > 0.6
        core = np.where((gap < 0.7 * radius) & (cover[seen] > 0.3), 1.0, 0.0)
        mean = (
            np.einsum("fij,fijk->fk", core, video[seen].astype(np.float32)) / np.maximum(core.sum((1, 2)), 1)[:, None]
        )
        error[at, colour] = np.linalg.norm(mean - PALETTE[colour], axis=1)[keep]
    strangers = _seek(unexplained, radius)[1] > 0.6
    return Tracks(centres=centres, spread=spread, visible=visible, twins=twins, strangers=strangers, colour_error=error)


def watch(video: UInt8[np.ndarray, "F H W 3"]) -> Tracks:
    """Find the balls in every frame of a clip.

    Raises:
        ValueError: There is no frame, or the pictures are not square.
    """
    if not len(video) or video.shape[1] != video.shape[2]:
        raise ValueError(f"a clip of shape {video.shape}: needs frames, and square ones")
    parts = [_watch_batch(video[i : i + BATCH]) for i in range(0, len(video), BATCH)]
    return Tracks(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})
