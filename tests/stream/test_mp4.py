"""The growing file: its content on disk after each chunk, as a reader finds it."""

import contextlib
import resource
import signal
import threading
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from plain_chunks import make_chunks

from omniforcing_jax.stream.chunk import join_chunks
from omniforcing_jax.stream.mp4 import Mp4Writer, Overlapped, write_mp4

RATES = {"frame_rate": 24, "sample_rate": 24_000}
SIZE = {"height": 32, "width": 48}


def write(path: Path, chunks) -> None:
    with Mp4Writer(path, **SIZE, **RATES) as out:
        for chunk in chunks:
            out.write(chunk)


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with av.open(str(path)) as file:
        video = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    with av.open(str(path)) as file:
        audio = np.concatenate([frame.to_ndarray() for frame in file.decode(audio=0)], axis=1)
    return video, audio.T


def test_a_closed_file_holds_every_frame_and_both_lengths_agree_to_50_ms(tmp_path, chunks):
    write(tmp_path / "a.mp4", chunks)
    video, audio = read(tmp_path / "a.mp4")
    assert len(video) == 73
    with av.open(str(tmp_path / "a.mp4")) as file:
        lengths = [float(stream.duration * stream.time_base) for stream in file.streams]
    assert abs(lengths[0] - lengths[1]) <= 0.05
    assert abs(len(audio) / 24_000 - 73 / 24) <= 0.05


def test_picture_and_sound_of_the_file_keep_their_places(tmp_path, chunks):
    write(tmp_path / "a.mp4", chunks)
    video, audio = read(tmp_path / "a.mp4")
    assert np.argmax(video.mean((1, 2, 3)) > 128) == 12
    assert abs(int(np.argmax(np.abs(audio[:, 0]) > 0.3)) - 12_000) <= 24


def test_a_stream_whose_picture_is_held_back_begins_with_chunks_of_nothing(tmp_path, chunks):
    empty = replace(chunks[0], video=chunks[0].video[:0], audio=chunks[0].audio[:0])
    write(tmp_path / "a.mp4", [empty, *chunks])
    assert len(read(tmp_path / "a.mp4")[0]) == 73


def test_an_error_before_anything_is_written_leaves_the_file_that_was_there(tmp_path, chunks, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"precious")
    out = Mp4Writer(tmp_path / "a.mp4", **SIZE, **RATES)
    monkeypatch.setattr(out, "_file", None)
    with pytest.raises(AttributeError):
        out.close()
    assert (tmp_path / "a.mp4").read_bytes() == b"precious"


def test_colours_survive_the_file(tmp_path):
    red = np.tile(np.array([220, 40, 30], np.uint8), (25, 32, 48, 1))
    write_mp4(tmp_path / "a.mp4", red, np.zeros((24_000, 2), np.float32), **RATES)
    assert np.abs(read(tmp_path / "a.mp4")[0].mean((0, 1, 2)) - red[0, 0, 0]).max() <= 4


def test_every_block_is_one_gop_without_b_frames(tmp_path, chunks):
    write(tmp_path / "a.mp4", chunks)
    with av.open(str(tmp_path / "a.mp4")) as file:
        packets = [packet for packet in file.demux(video=0) if packet.size]
        assert not file.streams.video[0].codec_context.has_b_frames
    assert [i for i, packet in enumerate(packets) if packet.is_keyframe] == [0, 1, 25, 49]
    assert all(packet.pts == packet.dts for packet in packets)


def test_a_file_that_was_never_closed_plays_to_its_last_finished_block(tmp_path, chunks):
    out = Mp4Writer(tmp_path / "a.mp4", **SIZE, **RATES)
    for chunk in chunks[:3]:
        out.write(chunk)
    (tmp_path / "killed.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    out.close()
    assert len(read(tmp_path / "killed.mp4")[0]) == 25


def test_an_error_while_streaming_leaves_a_file_with_every_block_so_far(tmp_path, chunks):
    def broken():
        yield from chunks[:2]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write(tmp_path / "a.mp4", broken())
    assert len(read(tmp_path / "a.mp4")[0]) == 25


def test_an_overlapped_consumer_gets_every_chunk_in_order(chunks):
    seen = []
    with Overlapped(lambda chunk: seen.append(chunk.index)) as consume:
        for chunk in chunks:
            consume(chunk)
    assert seen == [0, 1, 2, 3, 4]


def test_an_overlapped_consumer_works_in_another_thread(chunks):
    threads = set()
    with Overlapped(lambda chunk: threads.add(threading.get_ident())) as consume:
        consume(chunks[0])
    assert threads.isdisjoint({threading.get_ident()})


def test_an_error_of_an_overlapped_consumer_is_raised(chunks):
    with pytest.raises(ZeroDivisionError), Overlapped(lambda chunk: 1 // 0) as consume:
        consume(chunks[0])


def test_joined_chunks_are_the_clip(chunks):
    video, audio = join_chunks(chunks)
    assert video.shape == (73, 32, 48, 3)
    assert audio.shape == (301 * 240, 2)


@contextlib.contextmanager
def room_for(nbytes):
    """Let no file grow beyond so many bytes: libav answers as on a full disk, but for the number of the error."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_file_on_a_full_disk_plays_to_its_last_whole_fragment(tmp_path, share):
    rng, sizes = np.random.default_rng(0), []
    noisy = [replace(chunk, video=rng.integers(0, 99, chunk.video.shape, np.uint8)) for chunk in make_chunks(4)]
    with Mp4Writer(tmp_path / "whole.mp4", **SIZE, **RATES) as out:
        for chunk in noisy:
            out.write(chunk)
            sizes.append((tmp_path / "whole.mp4").stat().st_size)
    room = int(share * sizes[-1])
    with room_for(room), pytest.raises(OSError, match="too large"):
        write(tmp_path / "a.mp4", noisy)
    assert len(read(tmp_path / "a.mp4")[0]) == max(1 + 24 * (k - 1) for k, size in enumerate(sizes) if size <= room)
