"""The table of what eight bits cost chime: every variant is streamed with its own type, and judged the same way."""

import json

import numpy as np
import pytest

from experiments.chime import eight_bits
from experiments.chime.judge.sources import ClipOptions, truth_clips
from omniforcing_jax.chime.film import Film

PROMPTS = ["a red ball", "two balls: red and blue"]


@pytest.fixture(scope="module")
def films():
    return list(truth_clips(PROMPTS, ClipOptions(seconds=2)))


def test_rendered_truth_is_judged_right_by_every_measure(films):
    figures = eight_bits.judge_films(films, PROMPTS)
    assert list(figures) == [
        *(*eight_bits.CHIME, *eight_bits.AGREEMENT, *eight_bits.STATE),
        *(*eight_bits.JUDGED, eight_bits.SEAM),
    ]
    assert figures["count_accuracy"] == figures["colour_accuracy"] == 1
    assert figures["sync_ms_p50"] < 20
    assert figures["sharpness"] > 0


def test_every_variant_is_streamed_in_its_own_type_and_compared_with_the_first(films, monkeypatch, tmp_path, capsys):
    asked, streamed = [], []

    def load(folder, **how):
        asked.append(how)
        return how

    def stream(pipeline, name, prompts, how, arguments):
        streamed.append(how)
        noise = 20 * len(asked) - 20
        return [Film(np.clip(film.video.astype(int) + noise, 0, 255).astype(np.uint8), *film[1:]) for film in films]

    monkeypatch.setattr(eight_bits, "load_pipeline", load)
    monkeypatch.setattr(eight_bits, "_films", stream)
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS))
    out = tmp_path / "out.json"
    eight_bits.main(eight_bits.Arguments(prompts=str(file), seconds=2, json=out))
    kinds = [{"weights_dtype": "int8"}, {"weights_dtype": "float8"}]
    assert asked == [{}, {"dtype": "bfloat16"}, *kinds, {}, {}, kinds[0]]  # weights know nothing of a cache
    assert streamed == list(eight_bits.VARIANTS.values())
    figures = json.loads(out.read_text())
    assert figures["float32"]["psnr_db"] is None
    assert figures["bfloat16"]["psnr_db"] > figures["int8"]["psnr_db"] > figures["float8"]["psnr_db"] > 5
    assert "| | float32 | bfloat16 | int8 | float8 | int8 cache | float8 cache | both int8 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "named"),
    [({"seconds": 0}, "seconds=0: must be at least 1"), ({"variants": ("int4",)}, "variants='int4': must be some of")],
)
def test_what_cannot_be_is_refused(capsys, asked, named):
    with pytest.raises(SystemExit) as end:
        eight_bits.main(eight_bits.Arguments(**asked))
    assert end.value.code == 2
    assert named in capsys.readouterr().err
