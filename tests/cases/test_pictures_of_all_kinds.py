"""Pictures that people bring: turned, of another rate or size, with names that look like addresses, damaged or huge."""

import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image
from refusal import refusal
from tiny_stream import PROMPT, folders
from work_began import WorkBeganError

from omniforcing_jax.io import media_file
from omniforcing_jax.io.media_file import open_media
from omniforcing_jax.judge.media import check_readable, decode_pictures, read_media
from omniforcing_jax.stream.conditioning.media import fit_picture, read_frames, read_picture_info, read_sound
from omniforcing_jax.stream.mp4 import check_kind, write_mp4

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
STORED = {  # by EXIF's orientation: what a camera stores of what is to be shown
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
    8: lambda x: np.rot90(x, -1),
}


def corners(height, width):
    """A picture with another colour in each quarter."""
    picture = np.zeros((height, width, 3), np.uint8)
    h, w = height // 2, width // 2
    picture[:h, :w], picture[:h, w:], picture[h:, :w], picture[h:, w:] = RED, GREEN, BLUE, WHITE
    return picture


def assert_upright(path, height, width):
    info, (frame,) = read_picture_info(path), next(read_frames(path, iter([1])))
    assert (info.height, info.width) == (height, width) == frame.shape[:2]
    for y, x, colour in ((8, 8, RED), (8, -8, GREEN), (-8, 8, BLUE), (-8, -8, WHITE)):
        assert np.abs(frame[y, x].astype(int) - colour).max() <= 40


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_photo_is_shown_as_its_exif_says(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](corners(48, 64)))
    options = {"quality": 95} if kind in ("jpg", "webp") else {}
    Image.fromarray(stored).save(tmp_path / f"a.{kind}", exif=exif, **options)
    assert_upright(tmp_path / f"a.{kind}", 48, 64)


def write_video(path, frames, times, *, container=None, rate=24, **settings):
    """Write frames at times in milliseconds."""
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream("libx264", rate=rate, options={"bf": "0", "crf": "5"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if "rotation" in settings:
            stream.set_display_rotation(settings["rotation"])
        if "aspect" in settings:
            stream.codec_context.sample_aspect_ratio = settings["aspect"]
        for time, pixels in zip(times, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = round(time), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("degrees", "turns"), [(90, -1), (-90, 1), (180, 2), (0, 0)])
def test_a_phones_video_is_shown_as_its_display_matrix_says(tmp_path, degrees, turns):
    stored = [np.rot90(corners(48, 64), turns)] * 3
    path = write_video(tmp_path / "a.mp4", stored, [0, 42, 83], rotation=degrees)
    assert_upright(path, 48, 64)
    picture = read_media(path).picture
    assert (picture.height, picture.width) == (48, 64)
    assert np.abs(next(decode_pictures(path))[8, 8].astype(int) - RED).max() <= 40


def test_a_picture_that_is_turned_by_less_than_a_quarter_is_refused(tmp_path):
    path = write_video(tmp_path / "a.mp4", [corners(48, 64)] * 3, [0, 42, 83], rotation=30)
    with pytest.raises(ValueError, match=r"a\.mp4: its picture is turned by no multiple of 90 degrees"):
        read_picture_info(path)


def test_pixels_that_are_not_square_are_shown_as_players_show_them(tmp_path):
    path = write_video(tmp_path / "a.mp4", [corners(64, 48)] * 3, [0, 42, 83], aspect=Fraction(4, 3))
    assert_upright(path, 64, 64)


def ramp(count):
    """Frames that tell their number by their brightness."""
    return [np.full((32, 32, 3), 40 + 4 * i, np.uint8) for i in range(count)]


def numbers(path, count):
    (frames,) = read_frames(path, iter([count]))
    return [round((float(frame.mean()) - 40) / 4) for frame in frames]


TIMES = {
    "24 per second, in milliseconds": ([i * 1000 / 24 for i in range(25)], list(range(25))),
    "25 per second": ([i * 40 for i in range(25)], None),
    "30 per second": ([i * 1000 / 30 for i in range(30)], None),
    "12 per second": ([i * 1000 / 12 for i in range(12)], [k // 2 for k in range(24)]),
    "60 per second": ([i * 1000 / 60 for i in range(40)], None),
    "crowded, then sparse": ([*(20 * i for i in range(12)), *(240 + 63 * i for i in range(13))], None),
    "a long hold": ([0, 42, 1042, 1083], [0, *[1] * 24, 2, 3]),
    "late from the start": ([5000 + i * 1000 / 24 for i in range(25)], list(range(25))),
}


@pytest.mark.parametrize("container", ["matroska", "mp4"])
@pytest.mark.parametrize("kind", TIMES)
def test_frames_are_put_where_their_time_stamps_say(tmp_path, kind, container):
    """A frame is shown at k / 24 s if it began by half a frame later and the next one did not."""
    times, expected = TIMES[kind]
    path = write_video(tmp_path / "a.bin", ramp(len(times)), times, container=container)
    count = read_picture_info(path).frames
    found = numbers(path, count)
    since = np.array(times) - times[0]
    shown = [int(np.searchsorted(since, (k + 0.5) * 1000 / 24, side="left")) - 1 for k in range(count)]
    assert found == shown
    assert expected is None or (found == expected[:count] and count >= len(expected) - 1)
    with pytest.raises(ValueError, match="the picture ends 1 frames early"):
        list(read_frames(path, iter([count, 1])))


def test_time_stamps_that_span_years_are_refused(tmp_path):
    path = write_video(tmp_path / "a.mkv", ramp(3), [0, 42, 10**11])
    with pytest.raises(ValueError, match="over at most 86400 s by their time stamps"):
        read_picture_info(path)


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (20, 200), (200, 3), (1, 1)])
def test_fit_crops_pads_and_stretches_without_distortion(size):
    picture, page = corners(*size), (32, 64)
    for fit in ("crop", "pad", "stretch"):
        assert fit_picture(picture, page, fit, "x").shape == (*page, 3)
    cropped, padded = (fit_picture(picture, page, fit, "x") for fit in ("crop", "pad"))
    if min(size) > 1:
        assert np.abs(cropped[4, 4].astype(int) - RED).max() < 40
        assert np.abs(cropped[-4, -4].astype(int) - WHITE).max() < 40
    shown = padded.any(-1)
    rows, columns = shown.any(1).sum(), shown.any(0).sum()
    assert rows == 32 or columns == 64
    assert abs(rows * size[1] - columns * size[0]) <= 2 * max(size)
    with pytest.raises(ValueError, match=f"x: has a frame of {size[1]}x{size[0]} pixels among those of 64x32"):
        fit_picture(picture, page, None, "x")


def stream(tmp_path, *more, seconds=1, out="a.mp4"):
    flags = ["--prompt", PROMPT, "--seconds", seconds, "--out", tmp_path / out, "--weights", folders() / "student"]
    return ["stream", *flags, *more]


def test_another_size_is_refused_with_the_flag_that_helps_and_taken_with_it(tmp_path, capsys, no_work):
    Image.fromarray(corners(40, 40)).save(tmp_path / "a.png")
    line = refusal(capsys, stream(tmp_path, "--from-image", tmp_path / "a.png"))
    assert all(words in line for words in ("a.png", "40x40", "96x64", "--fit crop, pad or stretch"))
    assert "needs a picture" in refusal(capsys, stream(tmp_path, "--fit", "crop"))
    with pytest.raises(WorkBeganError):  # it was accepted
        refusal(capsys, stream(tmp_path, "--from-image", tmp_path / "a.png", "--fit", "pad"))


def test_names_with_colons_are_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_mp4("a:b.mp4", np.zeros((25, 64, 96, 3), np.uint8), np.zeros((24_000, 2), np.float32), **RATES)
    for name in ("a:b.mp4", "http:c.mp4", "concat:d.mp4", "pipe:0", "-x.mp4", "e%03d.mp4", "f*.mp4", "ü\n.mp4"):
        (tmp_path / name).write_bytes((tmp_path / "a:b.mp4").read_bytes())
        assert read_picture_info(name).frames == 25
        assert check_readable(name)
        assert len(read_sound(name, 16_000, 2)) > 16_000
    assert read_picture_info(png(tmp_path / "g%03d.png", 32)).frames == 1
    write_mp4("pipe:1", np.zeros((25, 64, 96, 3), np.uint8), np.zeros((24_000, 2), np.float32), **RATES)
    assert (tmp_path / "pipe:1").is_file()


RATES = {"frame_rate": 24, "sample_rate": 24_000}
LISTS = {
    "a.ffconcat": "ffconcat version 1.0\nfile near.mp4\n",
    "a.mp4": "ffconcat version 1.0\nfile near.mp4\n",
    "a.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nnear.mp4\n#EXT-X-ENDLIST\n",
    "a.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_other_files_is_not_followed(tmp_path, name):
    write_mp4(tmp_path / "near.mp4", np.zeros((25, 64, 96, 3), np.uint8), np.zeros((24_000, 2), np.float32), **RATES)
    (tmp_path / name).write_text(LISTS[name])
    for read in (read_picture_info, check_readable, lambda path: read_sound(path, 16_000, 2)):
        with pytest.raises(ValueError, match=f"cannot read .*{name}: no media, or a list of other files"):
            read(tmp_path / name)


def png(path, side):
    """Write an empty PNG of that size; it is small on disk."""
    row, pack = bytes(1 + 3 * side), zlib.compressobj(9)
    data = b"".join(pack.compress(row) for _ in range(side)) + pack.flush()

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(media_file, "LARGEST_PICTURE", 1000 * 1000)
    assert read_picture_info(png(tmp_path / "small.png", 900)).frames == 1
    large = png(tmp_path / "large.png", 1100)
    for read in (read_picture_info, check_readable):
        with pytest.raises(ValueError, match=r"large\.png: its picture has no size, or over 1000000 pixels"):
            read(large)


def test_a_format_that_tells_its_streams_late_is_read(tmp_path):
    with av.open(str(tmp_path / "a.mpg"), "w", format="mpeg") as file:
        stream = file.add_stream("mpeg1video", rate=24)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for _ in range(25):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(corners(48, 64), format="rgb24")))
        file.mux(stream.encode(None))
    info, (frame,) = read_picture_info(tmp_path / "a.mpg"), next(read_frames(tmp_path / "a.mpg", iter([1])))
    assert (info.height, info.width) == (48, 64)
    assert np.abs(frame[8, 8].astype(int) - RED).max() <= 40


@pytest.mark.parametrize("name", ["a.svg", "a.png", "a.jpg"])
def test_a_drawing_that_no_decoder_knows_is_refused(tmp_path, name):
    (tmp_path / name).write_text('<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>')
    for read in (read_picture_info, check_readable):
        with pytest.raises(ValueError, match=f"cannot read .*{name}"):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.webm", "a.avi", "a.mkv", "a.gif", "a.wav", "a", "a.mp4.part"])
def test_an_output_that_would_be_another_container_is_refused(tmp_path, capsys, no_work, name):
    named = ("cannot write", name, "must end in .mp4, .m4v, .mov")
    assert all(words in refusal(capsys, stream(tmp_path, out=name)) for words in named)
    sample = ["sample", "--prompt", PROMPT, "--seconds", 1, "--out", tmp_path / name]
    assert all(words in refusal(capsys, sample) for words in named)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.mp4", "A.MP4", "a.mov", "a.m4v", "/dev/null"])
def test_outputs_of_the_kind_that_is_written_are_free(tmp_path, name):
    check_kind(tmp_path / name)


def test_a_mov_is_written_as_one(tmp_path):
    write_mp4(tmp_path / "a.mov", np.zeros((25, 64, 96, 3), np.uint8), np.zeros((24_000, 2), np.float32), **RATES)
    assert (tmp_path / "a.mov").read_bytes()[8:12] == b"qt  "
    with open_media(tmp_path / "a.mov") as file:
        assert sum(1 for _ in file.decode(video=0)) == 25
