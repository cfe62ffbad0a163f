"""Uploads that nobody meant well: valid files that were damaged, of any size, under any name and content type."""

import io
from pathlib import Path

import pytest
from forked_decoder import Forked
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_server import make_context
from PIL import Image
from starlette.testclient import TestClient
from test_hostile import check
from test_uploads import clip, image, sound

from omniforcing_jax.serve import decode_upload, uploads
from omniforcing_jax.serve.app import make_app

EXAMPLES, LARGEST = 150, 60_000  # bytes of an upload
ROOT = Path(__file__).parents[2]


def picture(kind, **values):
    file = io.BytesIO()
    frames = [Image.effect_noise((60, 40), 90).convert("RGB") for _ in range(3)]
    frames[0].save(file, kind, **values)
    return file.getvalue()


FILES = [image(), picture("jpeg"), picture("webp"), picture("bmp"), picture("gif"), clip(), sound()]
WORDS = [b"\xff" * 4, b"\x00" * 4, b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00"]


@st.composite
def damaged(draw):
    """A valid file, of which some bytes are changed, lost, said twice or from another file."""
    data = draw(st.sampled_from(FILES))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, min(2000, len(data) - at)))
        other = draw(st.sampled_from(FILES))
        middle = draw(
            st.sampled_from([b"", data[at : at + length] * 2, data[at : at + length][::-1], *WORDS])
            | st.binary(max_size=16)
            | st.integers(0, len(other)).map(lambda begin, other=other: other[begin : begin + 2000])
        )
        data = data[:at] + middle + data[at + length :]
    return data + bytes(draw(st.sampled_from([0, 0, 0, 10_000, LARGEST])))


@pytest.fixture
def client(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(uploads.asyncio, "create_subprocess_exec", Forked.create)
    context = make_context(requests_per_s=1e6, upload_bytes=LARGEST)
    with TestClient(make_app(context), base_url="http://localhost") as found:
        found.uploads = context.uploads
        yield found
    context.engine.stop()
    Forked.stop()


@pytest.mark.long
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=damaged(),
    kind=st.sampled_from(["image/png", "video/mp4", "text/html", "multipart/form-data; boundary=x", ""])
    | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30),
    name=st.sampled_from(["a.png", "../../etc/passwd", "/dev/stdin", "concat:a|b", "-i", "a\\..\\b"]),
)
def test_damaged_uploads_are_taken_or_refused_in_one_line(client, data, kind, name):
    headers = {"content-type": kind, "content-disposition": f'attachment; filename="{name}"'}
    answer = client.post("/v1/uploads", content=data, headers=headers)
    check(answer)
    assert answer.status_code in ((413,) if len(data) > LARGEST else (201, 422)), answer.text
    assert "/tmp" not in answer.text
    assert name not in answer.text
    if answer.status_code == 201:
        media = client.uploads.find(answer.json()["id"], "testclient")
        assert media.kind in uploads.KINDS
        assert media.nbytes < 20e6
        assert 0 <= media.seconds <= decode_upload.LONGEST_S
    assert len(client.uploads._kept) <= uploads.KEPT
