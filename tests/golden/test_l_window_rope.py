"""Golden l: slots, seconds, shifts, anchors and tables of EchoWM's window, and the lengths of its clips.

The reference moves recent latents back and leaves pinned ones; ours moves pinned ones on. Only differences count.
"""

import golden_network as net
import numpy as np
import pytest
from echowm import echo_case, echo_variants, needs_echowm

from omniforcing_jax.config import (
    GridPrecision,
    ModelConfig,
    RotaryConfig,
    RotaryKind,
    SamplerConfig,
    StreamConfig,
)
from omniforcing_jax.layout import PREFIX2, audio_seconds, latent_frames, pixel_frames, video_seconds
from omniforcing_jax.model.cache import Slots
from omniforcing_jax.model.cameras import anchor_block, blocks_in_ring
from omniforcing_jax.model.positions import clip_block, make_positions, rotaries
from omniforcing_jax.schedule import sigma_lookup

pytestmark = needs_echowm
NAME = "l_window_rope"
WINDOW = pytest.mark.parametrize("window", echo_variants(NAME, "windows"))
SECONDS = {"video": video_seconds, "audio": audio_seconds}


def make_sampler(case, window) -> SamplerConfig:
    """Read a window in latents as blocks: the horizon is the window, and pinned blocks take some of its places."""
    uses, blocks = case.config["windows"][window], [tuple(block) for block in case.config["windows"][window]["blocks"]]
    count = next(k for k, block in enumerate(blocks) if block[1] == uses["window"]) + 1
    pinned = next(k for k, block in enumerate(blocks) if block[1] == uses["sink"]) + 1
    assert [tuple(block) for block in PREFIX2.blocks(blocks[-1][1])] == blocks
    assert (blocks[count - 1][3], blocks[pinned - 1][3]) == (uses["audio_window"], uses["audio_sink"])
    seconds = PREFIX2.start_seconds(count)
    return SamplerConfig(layout=PREFIX2, sigmas=(1.0, 0.0), horizon_seconds=seconds, pinned=pinned, scalar_sigma=1.0)


def window_of(sampler: SamplerConfig, k: int) -> tuple[list[int], list[int]]:
    """Pinned and recent blocks that block k sees, itself last."""
    slots = Slots(first=1, sinks=0, step=3, pinned_blocks=sampler.pinned, past=sampler.past_blocks, in_place=False)
    pinned = list(range(min(k, sampler.pinned)))
    return pinned, [*sorted(b for b in blocks_in_ring(slots, k) if b >= 0), k] if k else [0]


def latents(blocks: list[int], stream: str) -> np.ndarray:
    spans = [PREFIX2.block(k) for k in blocks]
    return np.array([i for b in spans for i in range(*(b[:2] if stream == "video" else b[2:]))], np.int64)


@WINDOW
def test_slots_shifts_and_anchors_are_the_reference_s(window):
    case = echo_case(NAME)
    sampler = make_sampler(case, window)
    for k in range(len(case.config["windows"][window]["blocks"])):
        (pinned, recent), before = window_of(sampler, k), f"{window}.block{k}"
        moved = sampler.shift_seconds(k)
        for stream in ("video", "audio"):
            own = [latents(blocks, stream) for blocks in (pinned, recent)]
            slots = np.concatenate(own)
            case.compare(f"{before}.{stream}_slots", slots)
            stood = np.concatenate([SECONDS[stream](int(i), 1) for i in slots])
            shift = np.concatenate([np.zeros(len(own[0])), np.full(len(own[1]), -moved)])
            case.compare(f"{before}.{stream}_shift", shift)
            case.compare(f"{before}.{stream}_seconds", stood + shift)
        anchor = PREFIX2.block(anchor_block(sampler, k)).video_start
        case.compare(f"{before}.anchor", np.int64(anchor))
    case.assert_all_compared(f"{window}.*")


def test_the_window_s_tables_are_those_of_a_clip_s_first_latents():
    case = echo_case(NAME)
    heads, dims = case.config["heads"], case.config["dims"]
    seconds, pixels, _ = case.config["max_pos"]
    config = ModelConfig(
        layers=1,
        video=StreamConfig(latent_channels=1, heads=heads, head_size=dims["video"] // heads),
        audio=StreamConfig(latent_channels=1, heads=heads, head_size=dims["audio"] // heads),
        caption_channels=None,
        rotary=RotaryConfig(
            kind=RotaryKind(case.config["rope"]),
            theta=case.config["theta"],
            max_seconds=float(seconds),
            max_pixels=float(pixels),
            grid=GridPrecision(case.config["freq_grid"]),
        ),
    )
    frames, audio = (case[f"window.{name}.cos"].shape[2] for name in ("video_cross", "audio_self"))
    tables = rotaries(config, make_positions(config, clip_block(frames, audio), (1, 1)))
    net.compare_rotary(case, "window.video_cross", tables.cross_video)
    net.compare_rotary(case, "window.audio_self", tables.audio)


def test_query_slots_are_the_last_of_each_stream_s_own_window():
    case = echo_case(NAME)
    for name in case.names("query_slots.*"):
        window = name.removeprefix("query_slots.")
        sampler, rows = make_sampler(case, window), []
        for k in range(len(case[name])):
            pinned, recent = window_of(sampler, k)
            counts = [len(latents([*pinned, *recent], stream)) for stream in ("video", "audio")]
            own = [len(latents([k], stream)) for stream in ("video", "audio")]
            rows.append([counts[0] - own[0], counts[0], counts[1] - own[1], counts[1]])
        case.compare(name, np.array(rows))


def test_sigmas_and_lengths_of_clips_are_the_reference_s():
    case = echo_case(NAME)
    lookup = sigma_lookup()
    case.compare("sigmas", np.array([lookup[t] for t in (1000, 750, 500, 250)[: len(case["sigmas"])]]))
    rows = []
    for frames, *_ in case["clip_lengths"].tolist():
        video = latent_frames(frames)
        audio = PREFIX2.blocks(video)[-1].audio_end
        mel = 1 + 4 * (audio - 1)
        rows.append([pixel_frames(video), video, audio, mel, 160 * mel, 480 * mel])
    case.compare("clip_lengths", np.array(rows))
