"""Samples whose prompt changes: another clip's past up to a border, the own clip from there on."""

import jax
import numpy as np

from experiments.chime import train_student, train_teacher
from omniforcing_jax.layout import block_of_frames


def _batch(count):
    clips = np.arange(count, dtype=np.float32)
    video = np.broadcast_to(clips[:, None, None, None, None], (count, 16, 2, 2, 3))
    audio = np.broadcast_to(clips[:, None, None], (count, 126, 4))
    return {"video": video, "audio": audio, "ids": np.zeros((count, 16), np.int32)}


def test_no_share_changes_nothing():
    batch = _batch(4)
    changed, since = train_student.change_pasts(batch, jax.random.key(0), 0.0)
    assert not since.any()
    np.testing.assert_array_equal(changed["video"], batch["video"])


def test_both_streams_change_at_the_same_border():
    count = 64
    changed, since = train_student.change_pasts(_batch(count), jax.random.key(0), 1.0)
    assert set(np.unique(since)) == set(range(1, len(train_student.BLOCKS)))
    frames_v, frames_a = block_of_frames(train_student.BLOCKS)
    for i in range(count):
        for name, blocks in (("video", frames_v), ("audio", frames_a)):
            rows = np.asarray(changed[name])[i].reshape(len(blocks), -1)
            wanted = np.where(blocks >= since[i], i, (i - 1) % count)
            np.testing.assert_array_equal(rows, np.broadcast_to(wanted[:, None], rows.shape))


def test_clips_of_many_balls_come_more_often():
    vocabulary = train_teacher.latents.WORDS_CONFIG
    prompts = ("a red ball", "three bouncing balls: red, cyan and blue", "a green ball and a red ball")
    ids = np.stack([train_teacher.words.tokenise(vocabulary, prompt)[0] for prompt in prompts])
    rows = train_teacher.by_balls({"ids": ids, "video": np.arange(3)})
    np.testing.assert_array_equal(rows["video"], [0, 1, 1, 1, 2, 2])
    np.testing.assert_array_equal(rows["ids"], ids[[0, 1, 1, 1, 2, 2]])
