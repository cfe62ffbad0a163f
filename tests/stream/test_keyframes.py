"""Keyframes, references and negative prompts of `sample`: what is given, where it lies, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest
from lora_files import write_lora
from refusal import refusal
from safetensors.numpy import load_file, save_file
from tiny_stream import GRID, PROMPT, TOKENS, folders, teacher

from omniforcing_jax.cli.main import main
from omniforcing_jax.sample.clip import sample_clip
from omniforcing_jax.sample.guide import GivenFrames, begin_guided, choose_given, hold_given, make_guide
from omniforcing_jax.sample.keyframes import (
    FACTOR,
    Keyframe,
    Reference,
    encode_guides,
    parse_keyframe,
    parse_reference,
    plan_guides,
)
from omniforcing_jax.sample.plan import plan_clip
from omniforcing_jax.sample.request import ClipRequest
from omniforcing_jax.stream.conditioning.media import read_frames
from omniforcing_jax.stream.mp4 import write_mp4
from omniforcing_jax.streams import Streams

CONFIG = teacher().config
SIZE = CONFIG.resolution


def frames(count, seed=0, factor=1):
    shape = (count, SIZE[0] // factor, SIZE[1] // factor, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def plan(keyframes=(), references=(), seconds=1, headers=()):
    return plan_guides(CONFIG, GRID, 1 + 24 * seconds, keyframes, references, headers)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a clip of 9 frames, one of 25 at half the size, and an IC-LoRA for references of that size."""
    folder = tmp_path_factory.mktemp("given")
    for name, count, factor in (("clip", 9, 1), ("half", 25, 2)):
        sound = np.zeros((1, 2), np.float32)
        write_mp4(folder / f"{name}.mp4", frames(count, factor=factor), sound, frame_rate=24, sample_rate=24_000)
    lora = write_lora(folder / "plain.safetensors", CONFIG.model)
    save_file(load_file(lora), folder / "ic.safetensors", {FACTOR: "2"})
    return folder


def test_a_file_a_second_and_a_strength_are_read_from_one_word():
    assert parse_keyframe("a@b.png@2.5") == Keyframe(picture="a@b.png", second=2.5)
    assert parse_keyframe("C:/a.png@0:0.4") == Keyframe(picture="C:/a.png", second=0.0, strength=0.4)
    assert parse_reference("a:b/clip.mp4:0.5") == Reference(picture="a:b/clip.mp4", strength=0.5)
    assert parse_reference("clip.mp4") == Reference(picture="clip.mp4")


def test_a_clip_at_the_beginning_replaces_latents_and_all_others_have_their_own_seconds():
    whole, later, picture = plan(
        [
            Keyframe(picture=frames(9)),
            Keyframe(picture=frames(20), second=0.5),
            Keyframe(picture=frames(1), second=30 / 24),
        ],
        seconds=2,
    )
    assert (whole.first, whole.tokens) == (0, 0)
    assert (later.first, later.frames, later.tokens) == (12, 17, 3 * TOKENS)
    np.testing.assert_allclose(later.seconds() * 24, [16, 24, 32])
    assert picture.first == 30
    np.testing.assert_allclose(picture.seconds() * 24, [30.5])


def test_a_clip_that_is_longer_than_its_room_is_cut_and_that_is_said(caplog):
    (cut,) = plan([Keyframe(picture=frames(25), second=0.25)])
    assert cut.frames == 17
    assert "the first 17 of its 25 frames are used" in caplog.text


def test_references_have_the_size_that_the_lora_was_trained_with(caplog):
    def plan_wide(width, *headers):
        reference = Reference(picture=np.zeros((9, width // 2, width, 3), np.uint8))
        (planned,) = plan_guides(CONFIG, (2, 4), 25, (), [reference], headers)
        return planned

    half = plan_wide(64, {}, {FACTOR: "2"})
    assert (half.scale, half.grid, half.tokens) == (2, (1, 2), 4)
    np.testing.assert_allclose(half.seconds() * 24, [0.5, 5])
    assert not caplog.messages
    assert plan_wide(128).grid == (2, 4)
    assert "no LoRA says how large references are" in caplog.text
    with pytest.raises(ValueError, match=rf"{FACTOR}=\['2', '3'\]: the LoRAs contradict"):
        plan_wide(64, {FACTOR: "3"}, {FACTOR: "2"})
    with pytest.raises(ValueError, match=rf"{FACTOR}='half': must be a whole number"):
        plan_wide(64, {FACTOR: "half"})


def test_given_tokens_are_kept_in_every_row_and_others_are_made():
    clean = jnp.arange(24.0, dtype=jnp.float32).reshape(1, 12, 2)
    given = [GivenFrames(clean[:, :6], 6, 1.0, None), GivenFrames(clean, 6, 0.25, place=plan_positions())]
    guide = make_guide(given, 18)
    assert guide.strength.tolist() == [1, 0, 0, 0.25, 0.25]
    noise = Streams(jnp.ones((2, 30, 2)), jnp.ones((2, 3, 2)))
    begun = begin_guided(guide, noise, None, 0.8).video
    np.testing.assert_allclose(begun[:, :6], np.repeat(clean[:, :6], 2, axis=0))
    np.testing.assert_allclose(begun[:, 6:18], 0.8 * np.ones((2, 12, 2)), rtol=1e-6)
    np.testing.assert_allclose(begun[1, 18:], 0.6 + 0.4 * clean[0], rtol=1e-6)
    started = begin_guided(guide, noise, Streams(jnp.full((2, 18, 2), 7.0), jnp.zeros((2, 3, 2))), 0.8)
    np.testing.assert_array_equal(started.video[:, 6:18], np.full((2, 12, 2), 7.0))
    np.testing.assert_array_equal(started.video[:, :6], begun[:, :6])
    held = hold_given(guide, jnp.full((2, 30, 2), -1.0))
    np.testing.assert_array_equal(held[0, :6], clean[0, :6])
    np.testing.assert_allclose(held[1, 18:], -0.75 + 0.25 * clean[0])
    chosen = choose_given(guide, held, jnp.zeros((2, 30, 2)))
    assert not np.any(chosen[:, 6:18])
    np.testing.assert_array_equal(chosen[:, 18:], held[:, 18:])


def plan_positions():
    return encode_guides(teacher(), plan([Keyframe(picture=frames(1), second=0.5)]), 24, jnp.float32).appended[0]


def command(tmp_path, *more):
    flags = ["--prompt", PROMPT, "--seconds", 1, "--steps", 2, "--out", tmp_path / "a.mp4"]
    return [str(each) for each in ["sample", *flags, "--weights", folders() / "teacher", *more]]


def test_the_command_makes_the_clip_that_python_makes_of_the_same_frames(files, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("omniforcing_jax.cli.sample.write_mp4", lambda path, video, *rest, **_: written.append(video))
    clip, flags = files / "clip.mp4", ["--renewal", 0.5, "--negative-prompt", "a green ball", "--guidance", 2]
    assert main(command(tmp_path, *flags, "--keyframe", f"{clip}@0", "--keyframe", f"{clip}@0.5:0.5")) == 0
    (pixels,) = read_frames(clip, iter([9]))
    given = [Keyframe(picture=pixels), Keyframe(picture=pixels, second=0.5, strength=0.5)]
    options = {"steps": 2, "renewal": 0.5, "negative_prompt": "a green ball", "guidance": 2.0}
    (ours,) = sample_clip(teacher(), [PROMPT], 1, keyframes=given, **options)
    np.testing.assert_array_equal(written[0], ours.video)
    (other,) = sample_clip(teacher(), [PROMPT], 1, keyframes=given, **options | {"negative_prompt": ""})
    assert not np.array_equal(other.video, ours.video)


REFUSED = {
    "lies outside the clip, which ends at 1 s": ["--keyframe", "{clip}@1.5"],
    "must be FILE@SECOND": ["--keyframe", "{clip}"],
    "'soon' is no number": ["--keyframe", "{clip}@soon"],
    "strength=1.5: must be above 0 and at most 1": ["--keyframe", "{clip}@0:1.5"],
    "are given for frame 4 (0.166667 s)": ["--keyframe", "{clip}@0", "--keyframe", "{clip}@0.167"],
    "--fit crop, pad or stretch": ["--keyframe", "{half}@0"],
    "has 9 frames, not one": ["--keyframe", "{clip}@0", "--compress", 33],
    "references 2 times smaller than the clip": ["--reference", "{half}", "--lora", "{ic}", 1],
    "nothing.mp4": ["--keyframe", "nothing.mp4@0"],
    "needs guidance: cfg is 1": ["--negative-prompt", "a ball", "--guidance", 1],
    "did you mean": ["--negative-prompt", "a bell"],
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_given_is_refused(files, capsys, tmp_path, no_work, message):
    names = {"clip": files / "clip.mp4", "half": files / "half.mp4", "ic": files / "ic.safetensors"}
    line = refusal(capsys, command(tmp_path, *[str(each).format(**names) for each in REFUSED[message]]))
    assert message in line


def test_negative_contexts_of_no_prompt_have_no_negative_prompt(tmp_path):
    widths = dict(zip(("video", "audio"), CONFIG.context_widths, strict=True))
    save_file({name: np.zeros((1, 4, width), np.float32) for name, width in widths.items()}, tmp_path / "n.safetensors")
    request = ClipRequest(
        prompts=[PROMPT], seconds=1, negative_prompt="a ball", negative_contexts=tmp_path / "n.safetensors"
    )
    with pytest.raises(ValueError, match=r"negative-prompt='a ball': the negative contexts are of no prompt"):
        plan_clip(teacher(), request)
