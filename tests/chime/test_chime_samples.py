"""The hook that shows what a student makes while it trains."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny_stream

from experiments.chime.judge import samples
from omniforcing_jax.chime.film import read_film
from omniforcing_jax.stream.chunk import Chunk
from omniforcing_jax.train import state


def test_the_hook_streams_the_weights_in_training_into_clips_and_sheets_named_by_the_step(tmp_path, monkeypatch):
    asked = []

    def grey_stream(pipeline, prompt, seconds, seed):
        """A second as grey as the weights say."""
        asked.append((prompt, seconds, seed, pipeline.config.name))
        frames = np.full((24, 64, 64, 3), pipeline.transformer.video.head.b[0], np.uint8)
        yield Chunk(
            index=0,
            video=frames,
            video_start_s=0.0,
            audio=np.zeros((16000, 2), np.float32),
            audio_start_s=0.0,
            sample_rate=16000,
        )

    monkeypatch.setattr(samples, "open_stream", grey_stream)
    grey = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 180, leaf.dtype), tiny_stream.student().transformer)
    trainer = state.create(grey, optax.sgd(0.1), 0, ema=False)
    call = samples.sampler(
        tmp_path / "samples", tiny_stream.student(), lambda s: s.params, prompts=("a", "b"), seconds=1, seed=3
    )
    call(40, trainer)
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["step_000040_0.mp4", "step_000040_0.png", "step_000040_1.mp4", "step_000040_1.png"]
    assert asked == [(prompt, 1, 3, tiny_stream.student().config.name) for prompt in ("a", "b")]
    frames = read_film(tmp_path / "samples" / "step_000040_0.mp4").video
    assert abs(float(frames.mean()) - 180) < 4  # H.264 is not exact
