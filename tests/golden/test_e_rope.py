"""Golden e_rope: seconds of latents, frequency grids, and rotary tables of blocks anywhere in a stream."""

import re

from golden_case import Case, needs_golden
from golden_network import compare_rotary

from omniforcing_jax.config import GridPrecision, ModelConfig, RotaryConfig, RotaryKind, StreamConfig
from omniforcing_jax.layout import FRAME_RATE, Block, audio_seconds, video_seconds
from omniforcing_jax.model.positions import make_positions, rotaries
from omniforcing_jax.nn.rope import frequencies

GRIDS = {"f32": GridPrecision.FLOAT32, "f64": GridPrecision.FLOAT64}


def make_config(case: Case, precision: str = "f32") -> ModelConfig:
    """A network of the case's widths; how heads share a width does not change the recorded form."""
    dims, (seconds, rows, columns) = case.config["dims"], case.config["max_pos"]
    assert dims["cross"] == dims["audio"]
    assert rows == columns
    assert case.config["video_fps"] == FRAME_RATE
    return ModelConfig(
        layers=1,
        video=StreamConfig(latent_channels=1, heads=1, head_size=dims["video"]),
        audio=StreamConfig(latent_channels=1, heads=1, head_size=dims["audio"]),
        caption_channels=None,
        rotary=RotaryConfig(
            kind=RotaryKind.INTERLEAVED,
            theta=case.config["theta"],
            max_seconds=float(seconds),
            max_pixels=float(rows),
            grid=GRIDS[precision],
        ),
    )


def compare_tables(case: Case) -> None:
    config, grid = make_config(case), tuple(case.config["grid"])
    for label in sorted({name.split(".")[0] for name in case.names("start_*")}):
        video, audio = (int(number) for number in re.fullmatch(r"start_v(\d+)_a(\d+)", label).groups())
        frames, latents = len(case[f"{label}.video_cross.cos"]), len(case[f"{label}.audio_self.cos"])
        block = Block(video, video + frames, audio, audio + latents)
        tables = rotaries(config, make_positions(config, block, grid))
        per_frame = rotaries(config, make_positions(config, block, (1, 1)))
        compare_rotary(case, f"{label}.video_self", tables.video)
        compare_rotary(case, f"{label}.audio_self", tables.audio)
        compare_rotary(case, f"{label}.video_cross", per_frame.cross_video)
        compare_rotary(case, f"{label}.audio_cross", tables.cross_audio)


@needs_golden
def test_every_recorded_table_grid_and_second_is_ours():
    case = Case("e_rope")
    compare_tables(case)
    case.compare("seconds.video", video_seconds(0, len(case["seconds.video"])))
    case.compare("seconds.audio", audio_seconds(0, len(case["seconds.audio"])))
    for precision in GRIDS:
        config = make_config(case, precision)
        case.compare(f"grid.video3d.{precision}", frequencies(config.rotary, 3, config.video.width))
        case.compare(f"grid.audio1d.{precision}", frequencies(config.rotary, 1, config.audio.width))
    case.assert_all_compared()
