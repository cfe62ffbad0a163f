"""Sounds that people bring: any rate and channels, gaps, ends before the picture, samples that are none."""

import contextlib
import json
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from refusal import refusal
from tiny_stream import PROMPT, folders

from omniforcing_jax.cli.main import main
from omniforcing_jax.judge.media import check_readable, read_media
from omniforcing_jax.judge.report import describe_media, judge_media, summarise
from omniforcing_jax.judge.seams import Blocks
from omniforcing_jax.stream.chunk import Chunk
from omniforcing_jax.stream.conditioning.condition import continue_file, plan_conditioning
from omniforcing_jax.stream.conditioning.media import read_sound
from omniforcing_jax.stream.soundtrack import AAC_RATES, Soundtrack

CHANNELS = {"mono": 1, "stereo": 2, "2.1": 3, "quad": 4, "5.0": 5, "5.1": 6, "7.1": 8}


def write_sound(path, samples, rate, layout="stereo", starts_s=(0,), codec="pcm_f32le", kind="flt"):
    """Write samples [n, channels] once for each start."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        for start in starts_s:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples).reshape(1, -1), format=kind, layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, round(start * rate), Fraction(1, rate)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def wav(path, kind, bits, data, rate=24_000, channels=2):
    """Write a WAV by hand, also such as no program writes."""
    form = struct.pack("<IHHIIHH", 16, kind, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits)
    path.write_bytes(
        b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + form + b"data" + struct.pack("<I", len(data)) + data
    )
    return path


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_a_tone_of_any_rate_keeps_its_pitch_and_level(tmp_path, rate):
    tone = 0.25 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)
    path = write_sound(tmp_path / "a.wav", np.stack([tone, tone], 1).astype(np.float32), rate)
    wave = read_sound(path, 16_000, 2)
    assert len(wave) == 32_000
    expected = 0.25 * np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000)
    np.testing.assert_allclose(wave[500:-500, 0], expected[500:-500], atol=2e-3)


@pytest.mark.parametrize("layout", CHANNELS)
def test_every_channel_is_heard_and_full_scale_stays_full_scale(tmp_path, layout):
    count = CHANNELS[layout]
    full = np.full((16_000, count), 1, np.float32)
    wave = read_sound(write_sound(tmp_path / "a.wav", full, 16_000, layout), 16_000, 2)
    assert np.abs(wave).max() <= 1.0001
    silent = [c for c in range(count) if not _heard(tmp_path, layout, c)]
    lfe = {"2.1": [2], "5.1": [3], "7.1": [3]}  # subwoofers are left out of a mix
    assert silent == lfe.get(layout, [])


def _heard(folder, layout, channel):
    samples = np.zeros((16_000, CHANNELS[layout]), np.float32)
    samples[:, channel] = 0.5
    return np.abs(read_sound(write_sound(folder / "b.wav", samples, 16_000, layout), 16_000, 2)).max() > 0.05


def test_mono_is_copied_and_not_made_softer(tmp_path):
    samples = np.linspace(-1, 1, 16_000, dtype=np.float32)[:, None]
    wave = read_sound(write_sound(tmp_path / "a.wav", samples, 16_000, "mono"), 16_000, 2)
    np.testing.assert_array_equal(wave, np.broadcast_to(samples, (16_000, 2)))


def test_a_gap_between_time_stamps_is_silence_and_bounded(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, (16_000, 2)).astype(np.float32)
    path = write_sound(tmp_path / "a.mka", noise, 16_000, starts_s=(0, 3))
    wave = read_sound(path, 16_000, 2)
    assert abs(len(wave) - 4 * 16_000) <= 32
    np.testing.assert_array_equal(wave[:16_000], noise)
    assert not wave[16_000 : 3 * 16_000 - 32].any()
    for starts in ((0, 10**6), (0, 400, 800)):
        path = write_sound(tmp_path / "b.mka", noise[:1600], 16_000, starts_s=starts)
        for read in (lambda path: read_sound(path, 16_000, 2), read_media):
            with pytest.raises(ValueError, match=r"b\.mka: its sound has a gap of"):
                read(path)


BAD_SAMPLES = {
    "nan": np.full(96_000, np.nan, np.float32),
    "inf": np.full(96_000, np.inf, np.float32),
    "large": np.full(96_000, 1e30, np.float32),
    "one nan": np.r_[np.zeros(9_999, np.float32), np.float32("nan"), np.zeros(1000, np.float32)],
}


@pytest.mark.parametrize("kind", BAD_SAMPLES)
def test_samples_that_are_no_sound_are_refused(tmp_path, capsys, no_work, kind):
    path = wav(tmp_path / "a.wav", 3, 32, BAD_SAMPLES[kind].tobytes())
    with pytest.raises(ValueError, match=r"a\.wav: its sound has samples that are not finite, or beyond"):
        read_media(path)
    command = ["stream", "--prompt", PROMPT, "--seconds", 1, "--out", tmp_path / "a.mp4", "--sound", path]
    line = refusal(capsys, [*command, "--weights", folders() / "student"])
    assert "samples that are not finite" in line


def test_arrays_must_be_finite_too():
    from tiny_stream import STATIC, student

    from omniforcing_jax.stream.conditioning.condition import Condition

    bad = np.full((16_000, 2), np.nan, np.float32)
    with pytest.raises(ValueError, match="samples that are not finite"):
        plan_conditioning(student().config, STATIC, 2, Condition(), Condition(sound=bad))


@pytest.mark.parametrize(
    ("form", "named"),
    [
        ({"kind": 1, "bits": 0, "data": bytes(9600)}, "no decoder is known for its sound"),
        ({"kind": 1, "bits": 16, "data": b""}, ""),
        ({"kind": 1, "bits": 16, "data": bytes(9600), "rate": 1}, "at 1 Hz"),
        ({"kind": 1, "bits": 16, "data": bytes(9600), "rate": 4_000_000}, "at 4000000 Hz"),
        ({"kind": 77, "bits": 16, "data": bytes(9600)}, "no decoder is known for its sound"),
        ({"kind": 1, "bits": 16, "data": bytes(9600), "channels": 0}, ""),
    ],
)
def test_a_wav_that_no_program_writes_is_one_line(tmp_path, form, named):
    path = wav(tmp_path / "a.wav", **form)
    for read in (lambda path: [check_readable(path), read_media(path)], lambda path: read_sound(path, 16_000, 2)):
        with pytest.raises(ValueError, match=named) if named else contextlib.suppress(ValueError) as error:
            read(path)
        assert not named or str(path) in str(error.value)


def film(path, picture_s, sound_s, late_s=0.0, rate=48_000):
    """Write a film whose two streams have lengths of their own."""
    with av.open(str(path), "w") as file:
        video = file.add_stream("libx264", rate=24, options={"bf": "0"}, height=64, width=96, pix_fmt="yuv420p")
        audio = file.add_stream("aac", rate=rate, layout="stereo")
        for i in range(round(picture_s * 24)):
            file.mux(video.encode(av.VideoFrame.from_ndarray(np.full((64, 96, 3), i, np.uint8), format="rgb24")))
        file.mux(video.encode(None))
        wave = (0.3 * np.sin(np.arange(sound_s * rate) * 0.06)).astype(np.float32)
        for start in range(0, len(wave) - 1023, 1024):
            frame = av.AudioFrame.from_ndarray(
                np.tile(wave[start : start + 1024], (2, 1)), format="fltp", layout="stereo"
            )
            frame.sample_rate, frame.pts, frame.time_base = rate, start + round(late_s * rate), Fraction(1, rate)
            file.mux(audio.encode(frame))
        file.mux(audio.encode(None))
    return path


def test_the_judge_shows_a_sound_that_ends_before_its_picture(tmp_path):
    media = read_media(film(tmp_path / "a.mp4", 97 / 24, 2.2))
    told = describe_media(media)
    assert told["sound_s"] == pytest.approx(2.2, abs=0.1)
    assert told["picture_s"] == pytest.approx(97 / 24, abs=0.05)
    assert "picture 4.0 s but sound 2.2 s" in summarise(judge_media(media, Blocks()))
    same = read_media(film(tmp_path / "b.mp4", 97 / 24, 97 / 24))
    assert " but sound " not in summarise(judge_media(same, Blocks()))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--block-seconds", "1e-9"], "block-seconds=1e-09: must be from 0.05"),
        (["--block-seconds", "1e300"], "block-seconds=1e+300"),
        (["--first-block-frames", "1000000000000"], "first-block-frames=1000000000000"),
    ],
)
def test_blocks_of_absurd_sizes_are_refused(tmp_path, capsys, flags, named):
    clip = film(tmp_path / "a.mp4", 1, 1)
    assert named in refusal(capsys, ["judge", clip, "--json", tmp_path / "out.json", *flags])


def test_sound_of_a_continued_film_keeps_its_place_beside_the_picture(tmp_path):
    """Sound that begins half a second late is given half a second late: not at the first frame."""
    from tiny_stream import STATIC, student

    from omniforcing_jax.stream.conditioning.condition import Condition

    path = film(tmp_path / "a.mkv", 25 / 24, 0.6, late_s=0.5)
    plan = plan_conditioning(student().config, STATIC, 3, continue_file(path), Condition())
    assert plan.picture_blocks == plan.sound_blocks == 2
    assert plan.sound is not None
    level = np.abs(plan.sound[:, 0])
    assert level[:7500].max() < 0.02
    assert level[8500:15_000].max() > 0.2


def chunk(index, begin, samples, rate=24_000):
    video = np.zeros((24, 64, 96, 3), np.uint8)
    start = begin / rate
    audio = np.zeros((samples, 2), np.float32)
    return Chunk(index=index, video=video, video_start_s=start, audio=audio, audio_start_s=start, sample_rate=rate)


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000, 96_000])
def test_a_soundtrack_is_cut_to_the_times_of_chunks_without_a_seam(tmp_path, rate):
    noise = np.random.default_rng(0).normal(0, 0.1, (3 * rate, 2)).astype(np.float32)
    track = Soundtrack(write_sound(tmp_path / "a.wav", noise, rate))
    assert track.rate == (rate if rate in AAC_RATES else 48_000)
    lengths = [237, 20_017, 24_000, 24_000, 24_000]  # the sound of the first chunk is short, that of the last too long
    begins = np.cumsum([0, *lengths]).tolist()
    chunks = [track.replace(chunk(k, begins[k], lengths[k])) for k in range(len(lengths))]
    joined = np.concatenate([each.audio for each in chunks])
    assert len(joined) == round(begins[-1] * track.rate / 24_000)
    if rate == track.rate:
        np.testing.assert_array_equal(joined[: len(noise)], noise[: len(joined)])
    assert not joined[3 * track.rate + 64 :].any()
    assert all(each.sample_rate == track.rate for each in chunks)


def test_a_soundtrack_begins_in_the_middle_where_the_first_chunk_does(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, (48_000, 2)).astype(np.float32)
    track = Soundtrack(write_sound(tmp_path / "a.wav", noise, 24_000))
    made = track.replace(chunk(1, 24_000, 12_000))
    np.testing.assert_array_equal(made.audio, noise[24_000:36_000])
    assert made.audio_start_s == 1


@pytest.mark.long
def test_the_users_own_soundtrack_is_in_the_file_and_its_resynthesis_on_request(tmp_path, capsys):
    seconds = np.arange(48_000) / 48_000
    tone = (0.3 * np.sin(2 * np.pi * 9000 * seconds)).astype(np.float32)  # above what the network's codec can make
    path = write_sound(tmp_path / "a.wav", np.stack([tone, tone], 1), 48_000)
    powers = []
    for more in ([], ["--resynthesise"]):
        flags = ["--prompt", PROMPT, "--seconds", 1, "--weights", folders() / "student", "--sound", path, *more]
        assert main([str(each) for each in ["stream", *flags, "--out", tmp_path / "a.mp4"]]) == 0
        wave = read_sound(tmp_path / "a.mp4", 48_000, 2)[4000:40_000, 0]
        powers.append(np.abs(np.fft.rfft(wave))[9000 * len(wave) // 48_000 - 3 :][:6].max() / len(wave))
    assert powers[0] == pytest.approx(0.15, abs=0.03)
    assert powers[1] < 0.02
    capsys.readouterr()
    assert "needs --sound" in refusal(capsys, ["stream", "--seconds", 1, "--out", tmp_path / "b.mp4", "--resynthesise"])


def test_figures_of_a_film_are_json(tmp_path):
    clip = film(tmp_path / "a.mp4", 3, 3)
    assert main(["judge", str(clip), "--json", str(tmp_path / "a.json")]) == 0
    assert json.loads((tmp_path / "a.json").read_text())["media"]["sound_s"] > 2.5
