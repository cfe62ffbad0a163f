"""Chunks into fragments of MP4: encoded once per session, each one ready to be sent to any number of viewers.

A fragment begins with a key frame and holds picture and sound. A chunk that has only one of the two waits for the next
one, so both start on one clock. `init` and any run of fragments are a file that plays.
"""

import dataclasses
import hashlib
import io
import json
from functools import cached_property
from typing import Any

import numpy as np

from omniforcing_jax.layout import FRAME_RATE
from omniforcing_jax.stream.chunk import Chunk
from omniforcing_jax.stream.mp4 import ChunkEncoder

# empty_moov: the header knows no samples, so that it is the same for all fragments of a stream
_FLAGS = "frag_custom+empty_moov+default_base_moof+frag_discont+skip_trailer"
_HEADER_BOXES = 2  # ftyp and moov
_AAC_LC = "mp4a.40.2"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockMark:
    """A block in a fragment.

    Attributes:
        index: The block.
        start_s: Stream second of its first frame.
        digest: SHA-256 of its frames and samples before they are encoded: equal digests are equal bits.
    """

    index: int
    start_s: float
    digest: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fragment:
    """A piece of a stream.

    Attributes:
        number: Its place among the fragments of its session.
        start_s: Stream second of its first frame.
        end_s: Stream second after its last frame.
        blocks: The blocks that it holds.
        data: The MP4 boxes moof and mdat.
    """

    number: int
    start_s: float
    end_s: float
    blocks: tuple[BlockMark, ...]
    data: bytes

    @cached_property
    def envelope(self) -> str:
        """The message that goes before the data, as JSON; written once for all viewers."""
        values = {
            "type": "fragment",
            "number": self.number,
            "start_s": self.start_s,
            "end_s": self.end_s,
            "blocks": [dataclasses.asdict(mark) for mark in self.blocks],
            "bytes": len(self.data),
        }
        return json.dumps(values)


class Fragmenter:
    """Encodes the chunks of one session.

    Args:
        height: Height of the picture in pixels, even.
        width: Width of the picture in pixels, even.
        sample_rate: Samples per second of the stereo sound.
        first: Number of the first fragment.

    Attributes:
        init: The header that all fragments need, boxes ftyp and moov.
        mime: The media type with its codecs, as browsers ask for it.
    """

    def __init__(self, *, height: int, width: int, sample_rate: int, first: int = 0) -> None:
        import av

        self._template = av.open(io.BytesIO(), "w", format="mp4", container_options={"movflags": _FLAGS})
        size = {"height": height, "width": width, "frame_rate": FRAME_RATE, "sample_rate": sample_rate}
        self._encoder = ChunkEncoder(self._template, **size)
        self._template.start_encoding()  # opens the encoders, which makes what the header needs
        self._number, self._packets, self._marks = first, [], []
        self._start_s = self._end_s = self._first_sound_s = None
        self.init = b"".join(_boxes(self._mux([]))[:_HEADER_BOXES])
        self.mime = f'video/mp4; codecs="{_h264_codec(self.init)}, {_AAC_LC}"'

    def push(self, chunk: Chunk) -> Fragment | None:
        """Encode a chunk; returns the fragment that is complete with it, if any."""
        if self._first_sound_s is None and len(chunk.audio):
            self._first_sound_s = chunk.audio_start_s
        self._packets += self._encoder.encode(chunk)
        if len(chunk.video):
            self._marks.append(BlockMark(index=chunk.index, start_s=chunk.video_start_s, digest=digest(chunk)))
            self._start_s = chunk.video_start_s if self._start_s is None else self._start_s
            self._end_s = chunk.video_start_s + len(chunk.video) / FRAME_RATE
        kinds = {packet.stream.type for packet in self._packets if self._is_kept(packet)}
        return self._finish() if kinds == {"video", "audio"} else None

    def close(self) -> Fragment | None:
        """Return what the encoders still hold as a last fragment, if it is anything."""
        self._packets += self._encoder.flush()
        return self._finish() if any(map(self._is_kept, self._packets)) else None

    def _is_kept(self, packet: Any) -> bool:
        """Return whether a packet lies in the stream. AAC begins with one before the first sample."""
        first_s = self._first_sound_s or 0.0
        return packet.stream.type == "video" or float(packet.pts * packet.time_base) > first_s - 1e-6

    def _finish(self) -> Fragment:
        packets = [packet for packet in self._packets if self._is_kept(packet)]
        boxes = _boxes(self._mux(packets))
        end_s = self._end_s or 0.0
        fragment = Fragment(
            number=self._number,
            start_s=end_s if self._start_s is None else self._start_s,
            end_s=end_s,
            blocks=tuple(self._marks),
            data=b"".join(boxes[_HEADER_BOXES:]),
        )
        self._packets, self._marks, self._start_s = [], [], None
        self._number += 1
        return fragment

    def _mux(self, packets: list[Any]) -> bytes:
        """Return header and fragment of these packets. The muxer cannot be told to end a fragment, so each has one."""
        import av

        options = {"movflags": _FLAGS, "fragment_index": str(self._number + 1), "use_editlist": "0"}
        file = io.BytesIO()
        with av.open(file, "w", format="mp4", container_options={**options, "avoid_negative_ts": "disabled"}) as out:
            streams = [out.add_stream_from_template(each) for each in (self._encoder.video, self._encoder.audio)]
            out.start_encoding()
            for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
        return file.getvalue()


def digest(chunk: Chunk) -> str:
    """Return the SHA-256 of a chunk's frames and samples."""
    found = hashlib.sha256(np.ascontiguousarray(chunk.video).data)
    found.update(np.ascontiguousarray(chunk.audio).data)
    return found.hexdigest()


def _boxes(data: bytes) -> list[bytes]:
    """Split MP4 into its boxes, each with its length in front."""
    found, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        found.append(data[at : at + length])
        at += length
    return found


def _h264_codec(init: bytes) -> str:
    """Return the name of the picture's codec: profile, constraints and level are in the box avcC."""
    at = init.index(b"avcC") + 5  # after the name, a byte with the version
    return f"avc1.{init[at : at + 3].hex()}"
