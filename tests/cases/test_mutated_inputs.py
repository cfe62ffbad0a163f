"""Requests, states, configs and media that are changed at random: a right result or one line, and no traceback."""

import contextlib
import copy
import json
import shutil

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_stream import PROMPT, folders, student

from converters.registry import COMPONENTS
from omniforcing_jax.io.media_file import as_url
from omniforcing_jax.judge.media import read_media
from omniforcing_jax.judge.report import judge_media
from omniforcing_jax.judge.seams import Blocks
from omniforcing_jax.pipeline import checks
from omniforcing_jax.pipeline.presets import TINY_STREAM
from omniforcing_jax.pipeline.weights_folder import read_pipeline_config
from omniforcing_jax.stream.conditioning.media import read_frames, read_picture_info, read_sound
from omniforcing_jax.stream.mp4 import write_mp4
from omniforcing_jax.stream.plan import resolve_request
from omniforcing_jax.stream.request import StreamRequest
from omniforcing_jax.stream.resume import resume
from omniforcing_jax.stream.saved import STATE, save
from omniforcing_jax.stream.start import open_stream

SCALARS = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, -1, 1, 2, 7, 2**31, 2**32, 2**62, 10**9, 1.5, 1e300, -1e-300, "", "x", "exact", "../x", "\0"])
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(max_size=4)
)
JUNK = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=3), SCALARS, max_size=2)
EVERY_JUNK = (
    *(None, True, 0, -1, 7, 2**31, 2**62, -(2**63), 1.5, 1e300, -1e-300, "", "x", "../x", "\0"),
    *([], [None], [1, "x", 2], {}, {"a": None}),
)
SAFE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
few = settings(max_examples=12, deadline=None, database=None, print_blob=True, suppress_health_check=SAFE)
many = settings(few, max_examples=80)
PARTS = {
    name: each for name, each in COMPONENTS.items() if name in ("transformer", "video_vae", "audio_vae", "vocoder")
}


@contextlib.contextmanager
def one_line():
    """Let pass what is refused in one line of a length that people read."""
    try:
        yield
    except ValueError as error:
        assert type(error) is ValueError or isinstance(error, UnicodeError), error  # noqa: PT017
        assert len(str(error).splitlines()) <= 1  # noqa: PT017
        assert len(str(error)) < 3000  # noqa: PT017


def changed(values, place, junk):
    """Put junk at a place of nested JSON; a place is a share of all of them."""
    values = copy.deepcopy(values)
    spots = [(inside, key) for inside in _objects(values) for key in _keys(inside)]
    inside, key = spots[int(place * len(spots))]
    inside[key] = junk
    return values


def _objects(value):
    if isinstance(value, dict | list):
        yield value
        for each in value.values() if isinstance(value, dict) else value:
            yield from _objects(each)


def _keys(value):
    return list(value) if isinstance(value, dict) else range(len(value))


PLACES = st.floats(0, 1, exclude_max=True)


def check_request(place, junk):
    values = changed(StreamRequest(prompt=PROMPT, seconds=3).to_dict(), place, junk)
    with one_line():
        plan = resolve_request(TINY_STREAM, StreamRequest.from_dict(json.loads(json.dumps(values))))
        assert plan.blocks is None or plan.blocks >= 1


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("state") / "state"
    save(open_stream(student(), PROMPT, seed=3), folder)
    return folder


class ReachedError(Exception):
    """Weights would be loaded: the state was accepted."""


def check_state(saved, folder, place, junk):
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved, folder)
    values = changed(json.loads((folder / STATE).read_text()), place, junk)
    (folder / STATE).write_text(json.dumps(values))

    def load(*arguments):
        raise ReachedError

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(ReachedError), one_line():
        patch.setattr(checks, "load", load)
        resume(folder, folders() / "student")


def check_folder(folder, name, place, junk):
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(folders() / "student", folder)
    path = folder / name / "config.json"
    path.write_text(json.dumps(changed(json.loads(path.read_text()), place, junk)))
    with one_line():
        assert read_pipeline_config(folder)


def _written_tables(name):
    config = {"transformer": TINY_STREAM.model}.get(name) or getattr(TINY_STREAM, name)
    for naming in PARTS[name].namings.values():
        with contextlib.suppress(ValueError):  # a format that cannot express the tiny one
            yield naming, json.loads(json.dumps(naming.table.write(config)))


def check_table(name, place, junk):
    for naming, values in _written_tables(name):
        with one_line():
            naming.table.read(changed(values, place, junk))


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """One file of each of a few kinds."""
    folder = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    frames, noise = rng.integers(0, 256, (25, 32, 48, 3), np.uint8), rng.normal(0, 0.1, (25_000, 2)).astype(np.float32)
    write_mp4(folder / "a.mp4", frames, noise, frame_rate=24, sample_rate=24_000)
    with av.open(as_url(folder / "a.mp4")) as file, av.open(str(folder / "a.mkv"), "w") as out:
        streams = {stream: out.add_stream_from_template(stream) for stream in file.streams}
        for packet in file.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream]
                out.mux(packet)
    with av.open(str(folder / "a.wav"), "w") as out:
        stream = out.add_stream("pcm_f32le", rate=16_000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(noise.reshape(1, -1), format="flt", layout="stereo")
        frame.sample_rate = 16_000
        out.mux(stream.encode(frame))
    for kind in ("png", "mjpeg"):
        with av.open(str(folder / f"a.{kind}"), "w", format="image2") as out:
            stream = out.add_stream(kind, rate=1, height=32, width=48, pix_fmt="rgb24" if kind == "png" else "yuvj420p")
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frames[0], format="rgb24")))
            out.mux(stream.encode(None))
    return folder


def check_media(media, name, place, length, data):
    whole = bytearray((media / name).read_bytes())
    at = int(place * len(whole))
    if length == 0:
        del whole[at:]
    else:
        whole[at : at + length] = (data or b"\0") * (length // max(1, len(data)) or 1)
    path = media / f"changed-{name}"
    path.write_bytes(whole)
    with one_line():
        assert read_picture_info(path).frames >= 1
    with one_line():
        assert next(read_frames(path, iter([1]), (32, 48), "pad")).shape == (1, 32, 48, 3)
    with one_line():
        assert np.isfinite(read_sound(path, 16_000, 2, at_most_s=10)).all()
    with one_line():
        json.dumps(judge_media(read_media(path), Blocks()), allow_nan=False)


KINDS = st.sampled_from(["a.mp4", "a.mkv", "a.wav", "a.png", "a.mjpeg"])
LENGTHS = st.sampled_from([0, 1, 4, 64, 2000])
EVERY_FOLDER = ("", "transformer", "video_vae", "audio_vae", "vocoder", "text")
FOLDERS = st.sampled_from(EVERY_FOLDER)


@few
@given(PLACES, JUNK)
def test_a_changed_request(place, junk):
    check_request(place, junk)


@few
@given(PLACES, JUNK)
def test_a_changed_state(saved, tmp_path, place, junk):
    check_state(saved, tmp_path / "state", place, junk)


@few
@given(FOLDERS, PLACES, JUNK)
def test_a_changed_config_of_a_weights_folder(tmp_path, name, place, junk):
    check_folder(tmp_path / "weights", name, place, junk)


@few
@given(st.sampled_from(sorted(PARTS)), PLACES, JUNK)
def test_a_changed_config_of_another_format(name, place, junk):
    check_table(name, place, junk)


@few
@given(KINDS, PLACES, LENGTHS, st.binary(max_size=8))
def test_a_changed_media_file(media, name, place, length, data):
    check_media(media, name, place, length, data)


@pytest.mark.long
@many
@given(PLACES, JUNK, FOLDERS, st.sampled_from(sorted(PARTS)))
def test_many_changed_requests_states_and_configs(saved, tmp_path, place, junk, folder, part):
    check_request(place, junk)
    check_state(saved, tmp_path / "state", place, junk)
    check_folder(tmp_path / "weights", folder, place, junk)
    check_table(part, place, junk)


def sweep(check, values, *first):
    """Put junk at every place, one after the other: half of all kinds at one place, the others at the next."""
    spots = sum(len(_keys(inside)) for inside in _objects(values))
    for place in range(spots):
        for junk in EVERY_JUNK[place % 2 :: 2]:
            check(*first, (place + 0.5) / spots, junk)


@pytest.mark.long
def test_every_place_of_a_request():
    sweep(check_request, StreamRequest(prompt=PROMPT, seconds=3).to_dict())


@pytest.mark.long
def test_every_place_of_a_state(saved, tmp_path):
    sweep(check_state, json.loads((saved / STATE).read_text()), saved, tmp_path / "state")


@pytest.mark.long
@pytest.mark.parametrize("name", EVERY_FOLDER)
def test_every_place_of_a_config_of_a_weights_folder(tmp_path, name):
    values = json.loads((folders() / "student" / name / "config.json").read_text())
    sweep(check_folder, values, tmp_path / "weights", name)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(PARTS))
def test_every_place_of_a_config_of_another_format(name):
    for _, values in _written_tables(name):
        sweep(check_table, values, name)


@pytest.mark.parametrize("junk", [None, [], "x", 1])
@pytest.mark.parametrize("key", ["sampler", "resolution", "components", "name"])
def test_a_key_of_the_top_config(tmp_path, key, junk):
    shutil.copytree(folders() / "student", tmp_path / "weights")
    path = tmp_path / "weights" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: junk}))
    with one_line():
        read_pipeline_config(tmp_path / "weights")


@pytest.mark.long
@many
@given(KINDS, PLACES, LENGTHS, st.binary(max_size=8))
def test_many_changed_media_files(media, name, place, length, data):
    check_media(media, name, place, length, data)
