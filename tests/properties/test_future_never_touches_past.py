import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omniforcing_jax.model.transformer import predict
from omniforcing_jax.streams import Streams
from tests.properties.clips import Clip, Masked, build, forward
from tests.tiny import SINKS, TOKENS

CLIP = Clip(SINKS, frames=10)  # four blocks
VIEWS = {dense: build(SINKS, Masked(CLIP.blocks, dense=dense), CLIP.positions, CLIP.sigmas) for dense in (True, False)}


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "prefixes"])
@pytest.mark.parametrize("k", [1, 3])
def test_changing_a_block_leaves_earlier_blocks_bit_equal(dense, k):
    block, (video, audio) = CLIP.blocks[k], CLIP.latents
    rows = slice(block.video_start * TOKENS, block.video_end * TOKENS)
    late = slice(block.audio_start, block.audio_end)
    changed = Streams(video.at[:, rows].add(1.0), audio.at[:, late].multiply(-2.0))
    before, _ = forward(SINKS, CLIP.params, CLIP.latents, VIEWS[dense], CLIP.text)
    after, _ = forward(SINKS, CLIP.params, changed, VIEWS[dense], CLIP.text)
    np.testing.assert_array_equal(before[0][:, : rows.start], after[0][:, : rows.start])
    np.testing.assert_array_equal(before[1][:, : block.audio_start], after[1][:, : block.audio_start])
    assert np.abs(before[0] - after[0])[:, rows.start :].min(axis=(0, 2)).max() > 1e-3
    assert np.abs(before[1] - after[1])[:, block.audio_start :].max() > 1e-3


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "prefixes"])
def test_no_gradient_reaches_the_future(dense):
    block = CLIP.blocks[2]

    def loss(latents):
        out = predict(CLIP.params, SINKS, latents, VIEWS[dense], CLIP.text).velocity
        early_v, early_a = out.video[:, : block.video_start * TOKENS], out.audio[:, : block.audio_start]
        return jnp.sum(early_v**2) + jnp.sum(early_a**2)

    video, audio = jax.jit(jax.grad(loss))(CLIP.latents)
    assert not np.asarray(video[:, block.video_start * TOKENS :]).any()
    assert not np.asarray(audio[:, block.audio_start :]).any()
    assert np.asarray(video[:, : block.video_start * TOKENS]).any(axis=(0, 2)).all()
    assert np.asarray(audio[:, : block.audio_start]).any(axis=(0, 2)).all()
