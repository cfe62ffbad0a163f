"""Uploads: decoded in a process of their own, bounded, and refused in words."""

import asyncio
import io
import struct
import wave
import zlib

import numpy as np
import pytest
from PIL import Image

from omniforcing_jax.serve.fragments import Fragmenter
from omniforcing_jax.serve.limits import RefusedError
from omniforcing_jax.serve.mock import MockSource
from omniforcing_jax.serve.uploads import Uploads, decode


def image():
    file = io.BytesIO()
    Image.new("RGB", (120, 90), (200, 30, 40)).save(file, "png")
    return file.getvalue()


def clip():
    fragmenter, source = Fragmenter(height=64, width=64, sample_rate=24_000), MockSource(0, "a red ball")
    fragments = [fragmenter.push(source.make()) for _ in range(3)]
    return fragmenter.init + b"".join(each.data for each in fragments if each is not None)


def sound():
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(np.zeros(20_000, np.int16).tobytes())
    return file.getvalue()


def bomb():
    """A PNG of a few kilobytes that says it has 3.6 billion pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")


def test_an_image_is_cut_to_the_streams_size_and_kept_for_its_client():
    async def run():
        uploads = Uploads()
        name, media = await uploads.add(image(), (32, 48), "me")
        assert uploads.find(name, "me") is media
        with pytest.raises(RefusedError, match="no such upload"):
            uploads.find(name, "you")
        return media

    media = asyncio.run(run())
    assert (media.kind, media.seconds, media.picture.shape) == ("image", 0.0, (1, 32, 48, 3))
    np.testing.assert_array_equal(media.picture[0, 0, 0], (200, 30, 40))


@pytest.mark.long
def test_a_clip_and_a_sound_become_whole_seconds():
    media = asyncio.run(decode(clip(), (64, 64)))
    assert (media.kind, media.seconds) == ("clip", 2.0)
    assert (media.picture.shape, media.sound.shape) == ((49, 64, 64, 3), (32_000, 2))
    media = asyncio.run(decode(sound(), (64, 64)))
    assert (media.kind, media.seconds, media.picture, media.sound.shape) == ("sound", 2.0, None, (32_000, 2))


@pytest.mark.long
@pytest.mark.parametrize("data", [b"", b"hello", clip()[:500], bomb(), b"#EXTM3U\nfile:///etc/passwd\n"])
def test_what_is_no_media_is_refused_in_one_line(data):
    with pytest.raises(ValueError) as caught:
        asyncio.run(decode(data, (64, 64)))
    assert "the file" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "/tmp" not in str(caught.value)


def test_decoding_is_bounded_in_time():
    with pytest.raises(ValueError, match=r"longer than 0\.05 s"):
        asyncio.run(decode(image(), (64, 64), 0.05))
