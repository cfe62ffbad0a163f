"""`judge` on files: any rates, sizes and channels, one stream missing, a reference; and every bad request refused."""

import json
from fractions import Fraction

import av
import numpy as np
import pytest

from omniforcing_jax.cli.main import main
from omniforcing_jax.judge import media
from omniforcing_jax.judge.judge_file import judge_file
from omniforcing_jax.judge.sound import RATE, Listener


def write(path, *, seconds=11, rate=Fraction(30000, 1001), size=(50, 70), sound_rate=44_100, layout="mono", late_s=0.0):
    """Write a square that jumps, with a burst at each jump; `rate` or `sound_rate` None leaves a stream out."""
    height, width = size
    rng = np.random.default_rng(0)
    jumps = np.array([0.9, 2.1, 2.9, 4.4, 6.1, 7.3, 8.8, 9.5])
    with av.open(str(path), "w") as file:
        video = rate and file.add_stream("mpeg4", rate=rate, width=width, height=height, pix_fmt="yuv420p")
        sound = sound_rate and file.add_stream("aac", rate=sound_rate, layout=layout)
        for i in range(int(seconds * rate) if video else 0):
            picture = np.full((height, width, 3), (40, 60, 50), np.uint8)
            left = 2 + 6 * int((jumps <= float(i / rate) + 1e-9).sum())
            picture[10:30, left : left + 10] = (200, 90, 60)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, 1 / rate
            file.mux(video.encode(frame))
        if sound:
            samples = rng.normal(0, 1e-3, seconds * sound_rate)
            for time in jumps + late_s:
                since = np.arange(len(samples)) - round(time * sound_rate)
                ring = np.where(since >= 0, np.exp(-np.maximum(since, 0) / 1500), 0)
                samples += 0.2 * ring * rng.normal(size=len(samples))
            planes = np.tile(samples.astype(np.float32), (len(sound.codec_context.layout.channels), 1))
            frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = sound_rate, 0, Fraction(1, sound_rate)
            file.mux(sound.encode(frame))
        for stream in (video, sound):
            if stream:
                file.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write(tmp_path_factory.mktemp("clips") / "clip.mp4")


@pytest.fixture(scope="module")
def late(tmp_path_factory):
    return write(tmp_path_factory.mktemp("late") / "late.mp4", late_s=0.12, sound_rate=16_000, layout="stereo")


def judge(folder, *arguments):
    """Run the command; returns its figures."""
    assert main(["judge", *map(str, arguments), "--json", str(folder / "out.json")]) == 0
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    return json.loads((folder / "out.json").read_text())


def test_a_file_of_odd_rates_and_size_is_judged(tmp_path, clip, capsys):
    figures = judge(tmp_path, clip, "--block-seconds", 0.5, "--first-block-frames", 3)
    media = figures["media"]
    assert (media["width"], media["height"], media["frames"]) == (70, 50, 329)
    assert (media["sample_rate"], media["channels"], media["undecodable"]) == (44_100, 1, 0)
    assert media["frame_rate"] == pytest.approx(29.97, abs=0.01)
    assert media["seconds"] == pytest.approx(11, abs=0.1)
    assert abs(figures["synchrony"]["lag_ms"]) <= 20
    assert figures["seams"]["block_seconds"] == 0.5
    assert figures["drift"]["window_s"] == 5
    assert "clip.mp4: 11.0 s" in capsys.readouterr().out


def test_a_reference_is_judged_beside_the_file_and_drawn(tmp_path, clip, late):
    figures = judge(tmp_path, late, "--reference", clip, "--plot", tmp_path / "page.png")
    lags = [figures[name]["synchrony"]["lag_ms"] for name in ("file", "reference", "difference")]
    assert lags[2] == pytest.approx(lags[0] - lags[1])
    assert lags[2] == pytest.approx(120, abs=15)
    assert figures["difference"]["media"]["channels"] == 1
    assert figures["agreement"]["psnr_db"] == 100  # the pictures are the same
    assert figures["agreement"]["log_mel_db"] > 1
    with av.open(str(tmp_path / "page.png")) as page:
        assert page.streams.video[0].width == 1500


def test_files_of_other_lengths_have_differences_but_no_agreement(tmp_path, clip):
    short = write(tmp_path / "short.mp4", seconds=4)
    figures = judge(tmp_path, clip, "--reference", short)
    assert figures["agreement"] == {"psnr_db": None, "log_mel_db": None}
    assert figures["reference"]["drift"] is None
    assert figures["difference"]["drift"] is None
    assert figures["difference"]["levels"]["sound"]["loudness_db"] is not None


def test_a_file_is_its_own_reference_up_to_nothing(tmp_path, clip):
    figures = judge(tmp_path, clip, "--reference", clip)
    assert figures["agreement"] == {"psnr_db": 100, "log_mel_db": 0}
    assert figures["difference"].pop("stereo") is None  # the clip is mono
    assert set(_leaves(figures["difference"])) == {0}


def _leaves(tree):
    return [leaf for value in tree.values() for leaf in _leaves(value)] if isinstance(tree, dict) else [tree]


@pytest.mark.parametrize(("missing", "left"), [("picture", "sound"), ("sound", "picture")])
def test_what_one_stream_alone_cannot_show_is_null(tmp_path, missing, left):
    file = write(tmp_path / "half.mp4", **{"picture": {"rate": None}, "sound": {"sound_rate": None}}[missing])
    figures = judge(tmp_path, file, "--plot", tmp_path / "page.svg")
    assert figures["synchrony"] is None
    for part in ("seams", "levels", "drift"):
        assert figures[part][missing] is None
        assert figures[part][left] is not None


def test_damaged_packets_are_counted_and_the_rest_is_judged(tmp_path, clip):
    content = bytearray(clip.read_bytes())
    start = content.index(b"mdat") + 20_000
    content[start : start + 3000] = np.random.default_rng(0).bytes(3000)
    (tmp_path / "damaged.mp4").write_bytes(content)
    figures = judge(tmp_path, tmp_path / "damaged.mp4")
    assert figures["media"]["undecodable"] > 0
    assert figures["media"]["frames"] > 200


def test_a_fault_of_a_measure_is_raised_and_is_no_damage_to_the_file(monkeypatch, clip):
    def see(self, frame, time_s):
        raise ValueError("shapes differ")

    monkeypatch.setattr(media.Watcher, "see", see)
    with pytest.raises(ValueError, match=r"^shapes differ$"):
        media.read_media(clip)


def test_sound_that_damage_turned_into_another_form_is_counted(tmp_path):
    file = tmp_path / "turns.ts"
    parts = [write(tmp_path / f"{rate}.ts", seconds=3, rate=None, sound_rate=rate) for rate in (44_100, 22_050)]
    file.write_bytes(b"".join(part.read_bytes() for part in parts))
    judged = media.read_media(file)
    assert judged.undecodable > 50
    assert judged.sound.stop_s - judged.sound.start_s == pytest.approx(3, abs=0.1)


def test_the_figures_of_the_command_are_those_of_judge_file(tmp_path, clip, late):
    blocks = {"block_seconds": 0.5, "first_block_frames": 3}
    flags = ["--block-seconds", 0.5, "--first-block-frames", 3]
    assert judge(tmp_path, late, *flags) == judge_file(late, **blocks)
    assert judge(tmp_path, late, "--reference", clip, *flags) == judge_file(late, clip, **blocks)


@pytest.fixture
def no_work(monkeypatch):
    def read_media(*arguments):
        raise AssertionError("the file was read")

    monkeypatch.setattr("omniforcing_jax.cli.judge.read_media", read_media)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere.mp4"], "cannot read nowhere.mp4: no such file"),
        (["{folder}"], "cannot read {folder}: is a directory"),
        (["{text}"], "cannot read {text}: invalid data"),
        (["{words}"], "{words}: it has neither picture nor sound"),
        (["{clip}", "--reference", "nowhere.mp4"], "cannot read nowhere.mp4"),
        (["{clip}", "--json", "/dev/null/out.json"], "cannot write /dev/null/out.json"),
        (["{clip}", "--json", "{clip}"], "{clip}"),
        (["{clip}", "--plot", "/dev/null/out.png"], "cannot write /dev/null/out.png"),
        (["{clip}", "--plot", "out.gif"], "out.gif"),
        (["{clip}", "--block-seconds", "0"], "block-seconds=0"),
        (["{clip}", "--block-seconds", "nan"], "block-seconds=nan"),
        (["{clip}", "--first-block-frames", "0"], "first-block-frames=0"),
        (["{clip}", "--refrence", "{clip}"], "did you mean --reference?"),
        ([], "missing from omniforcing judge: FILE"),
    ],
)
def test_a_judgement_that_cannot_be_is_refused(tmp_path, clip, capsys, no_work, arguments, named):
    (tmp_path / "text.mp4").write_text("no media")
    (tmp_path / "words.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nhello\n")
    names = {"folder": tmp_path, "clip": clip, "text": tmp_path / "text.mp4", "words": tmp_path / "words.srt"}
    given = [argument.format(**names) for argument in arguments]
    before = clip.read_bytes()
    assert main(["judge", *given, *([] if "--json" in given else ["--json", str(tmp_path / "out.json")])]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert named.format(**names) in line.replace("Missing", "missing")
    assert clip.read_bytes() == before
    assert not (tmp_path / "out.json").exists()


def test_sound_is_the_same_in_whatever_pieces_it_comes(monkeypatch):
    samples = np.random.default_rng(0).normal(0, 0.1, (2, 3 * RATE + 77)).astype(np.float32)
    whole, pieces = Listener(2), Listener(2)
    whole.hear(samples)
    monkeypatch.setattr("omniforcing_jax.judge.sound.PIECE", RATE)
    for start in range(0, samples.shape[1], 1000):
        pieces.hear(samples[:, start : start + 1000])
        assert pieces._waiting.shape[1] <= 2 * RATE  # what was worked on is let go
    a, b = (listener.sound(sample_rate=RATE, start_s=0.0) for listener in (whole, pieces))
    for name in ("power", "mel", "edge"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-5)


def test_a_hole_in_the_sound_is_heard_as_silence_and_later_sound_keeps_its_place(tmp_path):
    rng, rate = np.random.default_rng(0), 16_000
    with av.open(str(tmp_path / "hole.mka"), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=rate, layout="mono")
        for start in (0, 3 * rate):
            noise = (3000 * rng.normal(size=(1, rate))).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(noise, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    sound = media.read_media(tmp_path / "hole.mka").sound
    loud = sound.power > 1e-4
    assert sound.stop_s == pytest.approx(4, abs=0.03)
    assert loud[:98].all()
    assert not loud[103:297].any()
    assert loud[303:397].all()


def test_time_stamps_that_stand_still_go_on_by_a_frame():
    class Frame:
        def __init__(self, time):
            self.time = time

    clock = media._Clock(None, "clip")
    times = [clock.time_of(Frame(time)) for time in (0.0, None, 0.0, 0.5)]
    assert times == pytest.approx([0, 1 / 24, 2 / 24, 0.5])
