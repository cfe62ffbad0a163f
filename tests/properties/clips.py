"""One clip through the network in each regime, with few compiled programs: what the properties compare."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.layout import PREFIX, block_of_frames
from omniforcing_jax.model.cache import commit, empty_cache, past_masks
from omniforcing_jax.model.positions import clip_block, make_positions, rotaries, shift_phases, shift_rotations
from omniforcing_jax.model.transformer import list_layers, predict
from omniforcing_jax.model.view import Sigmas, masked, one_sigma, streaming
from omniforcing_jax.nn.attention import NO_PAST
from omniforcing_jax.streams import Streams
from tests.tiny import BATCH, GRID, TOKENS, random_latents, random_params, random_text

SITES = ("video_self", "audio_self", "a2v", "v2a")


@dataclasses.dataclass(frozen=True)
class Clip:
    """A random clip with a random sigma per block, and the network it goes through."""

    config: object
    layout: object = PREFIX
    frames: int = 13
    seed: int = 0

    @property
    def blocks(self):
        return self.layout.blocks(self.frames)

    def with_values(self, **values):
        """The same clip with some of its random values replaced."""
        clip = dataclasses.replace(self)
        clip.__dict__.update(values)
        return clip

    @functools.cached_property
    def params(self):
        return random_params(self.config, self.seed)

    @functools.cached_property
    def latents(self):
        return random_latents(self.config, self.frames, self.blocks[-1].audio_end, self.seed + 1)

    @functools.cached_property
    def text(self):
        return random_text(self.config, self.params, self.seed + 2)

    @functools.cached_property
    def block_sigmas(self):
        """[B, K], away from 0 and 1."""
        rng = np.random.default_rng(self.seed + 3)
        return jnp.asarray(rng.uniform(0.05, 0.95, (BATCH, len(self.blocks))), jnp.float32)

    @property
    def sigmas(self):
        video, audio = block_of_frames(self.blocks)
        return Sigmas(video=self.block_sigmas[:, video], audio=self.block_sigmas[:, audio])

    @property
    def positions(self):
        return make_positions(self.config, clip_block(self.frames, self.blocks[-1].audio_end), GRID)

    def block_of(self, k):
        """Latents of block k."""
        block, (video, audio) = self.blocks[k], self.latents
        rows = slice(block.video_start * TOKENS, block.video_end * TOKENS)
        return Streams(video[:, rows], audio[:, block.audio_start : block.audio_end])


def horizon(clip, **changes):
    """A sampler whose trained clips are as long as this one."""
    seconds = clip.layout.start_seconds(len(clip.blocks))
    return SamplerConfig(sigmas=(1.0, 0.0), layout=clip.layout, horizon_seconds=seconds, **changes)


@functools.partial(jax.jit, static_argnums=0)
def forward(config, params, noisy, view, text, past=NO_PAST):
    """The network, compiled once per form of the view."""
    return predict(params, config, noisy, view, text, past=past)


@functools.partial(jax.jit, static_argnums=(0, 1))
def build(config, regime, positions, sigmas):
    """A view, made by `regime(config, rotaries, sigmas)`."""
    return regime(config, rotaries(config, positions), sigmas)


@dataclasses.dataclass(frozen=True)
class Masked:
    """The masked regime as a value, so that its view is compiled once."""

    blocks: tuple
    window: int | None = None
    pinned: int = 0
    dense: bool = False

    def __call__(self, config, rotaries, sigmas):
        options = {"window": self.window, "pinned": self.pinned, "dense": self.dense}
        return masked(config, rotaries, sigmas, self.blocks, **options)


def run_masked(clip, **options):
    """Velocities of the whole clip, and its keys and values."""
    view = build(clip.config, Masked(clip.blocks, **options), clip.positions, clip.sigmas)
    return forward(clip.config, clip.params, clip.latents, view, clip.text)


@functools.partial(jax.jit, static_argnums=0)
def run_block(config, params, latents, positions, sigma, text, past, masks):
    """One block; without masks it is the first."""
    view = streaming(config, rotaries(config, positions), one_sigma(sigma), masks)
    return predict(params, config, latents, view, text, past=past)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _commit(config, cache, fresh, shift):
    cache = commit(cache, fresh)
    return cache, past_masks(cache, shift_rotations(config, shift))


def run_stream(clip, sampler, *, has_list=False, eight_bits=None):
    """Velocities of the whole clip, one block at a time, each block committed as it is; layers stacked or in a list."""
    cache = empty_cache(clip.config, sampler, GRID, BATCH, has_list=has_list, eight_bits=eight_bits)
    masks, pieces = None, []
    params = list_layers(clip.params) if has_list else clip.params
    text = listed_text(clip.text) if has_list else clip.text
    for k, block in enumerate(clip.blocks):
        past = NO_PAST if k == 0 else cache.past
        positions, sigma = make_positions(clip.config, block, GRID), clip.block_sigmas[:, k]
        out, fresh = run_block(clip.config, params, clip.block_of(k), positions, sigma, text, past, masks)
        cache, masks = _commit(clip.config, cache, fresh, shift_phases(clip.config, sampler.shift_seconds(k + 1)))
        pieces.append(out)
    return jax.tree.map(lambda *blocks: jnp.concatenate(blocks, axis=1), *pieces)


def listed_text(text):
    """Text keys and values by layer."""
    layers = jax.tree.leaves(text.kv)[0].shape[0]
    return text.replace(kv=tuple(jax.tree.map(lambda x, k=k: x[k], text.kv) for k in range(layers)))


def assert_close(actual, expected, atol):
    """Compare both streams."""
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=atol, rtol=0)
