"""Golden e_tables: block tables of every clip length, the four masks and the log-ratio scales of both layouts."""

import dataclasses
import re

import numpy as np
import pytest
from golden_case import Case, needs_golden
from golden_network import LAYOUTS, own_rotaries
from partial_blocks import blocks_with_rest

from omniforcing_jax.layout import audio_latents, block_of_frames, latent_frames
from omniforcing_jax.model.view import token_spans
from omniforcing_jax.nn.mask import log_ratio_scale, visible_tokens
from omniforcing_jax.pipeline.presets import TINY

pytestmark = needs_golden
CASES = ("e_tables_v1", "e_tables_v2")
BOTH = pytest.mark.parametrize("name", CASES)


def find_clip(case: Case):
    """Find the one clip that the masks of a case are of, from their sizes."""
    mask = next(name for name in case.names("mask.*video_self"))
    frames = len(case[mask]) // case.config["tokens_per_frame"]
    return LAYOUTS[case.config["layout"]].blocks(frames)


def make_sites(case: Case, sinks: int) -> dict:
    """Queries and keys of the four attentions, by the builder that the network's views use."""
    blocks = find_clip(case)
    config = dataclasses.replace(TINY, sinks=sinks)
    grid = (1, case.config["tokens_per_frame"])
    tables = own_rotaries(config, blocks[-1].video_end, blocks[-1].audio_end, grid)
    video, audio = token_spans(config, tables, blocks, pinned=0)
    return {"video_self": (video, video), "audio_self": (audio, audio), "a2v": (video, audio), "v2a": (audio, video)}


@BOTH
def test_block_tables_of_every_recorded_length(name):
    case = Case(name)
    layout = LAYOUTS[case.config["layout"]]
    for table in case.names("blocks.*"):
        frames = int(re.fullmatch(r"blocks\.F(\d+)", table).group(1))
        case.compare(table, np.array(blocks_with_rest(layout, frames), np.int64))
    case.assert_all_compared("blocks.*")


@BOTH
def test_masks_and_log_ratio_scales_with_and_without_sinks(name):
    case = Case(name)
    window = len(find_clip(case))
    for recorded in case.names("mask.*", "log.*"):
        kind, sinks, site = re.fullmatch(r"(mask|log)\.(?:sinks(\d+)\.)?(\w+?)(?:_scale)?", recorded).groups()
        queries, keys = make_sites(case, int(sinks or 0))[site]
        make = visible_tokens if kind == "mask" else log_ratio_scale
        value = np.asarray(make(queries, keys, window))
        case.compare(recorded, value.astype(np.uint8) if kind == "mask" else value)
    case.assert_all_compared("mask.*", "log.*")


@BOTH
def test_lengths_that_the_reference_rejects_are_rejected(name):
    case = Case(name)
    for key, lengths in case.meta["checks"].items():
        if not key.startswith("rejected lengths in "):
            continue
        first, last = (int(number) for number in key.removeprefix("rejected lengths in ").split(".."))
        layout = LAYOUTS[case.config["layout"]]
        rejected = []
        for frames in range(first, last + 1):
            try:
                layout.blocks(frames)
            except ValueError:
                rejected.append(frames)
        assert rejected == lengths


@BOTH
def test_clip_lengths_on_the_three_clocks(name):
    case = Case(name)
    for table in case.names("clip_lengths"):
        counted = [(n, latent_frames(n), audio_latents(latent_frames(n))) for n in case[table][:, 0].tolist()]
        case.compare(table, np.array(counted, np.int64))


@BOTH
def test_audio_noise_levels_follow_the_block_table_and_not_the_proportion(name):
    """The recorded proportional map is the reference's defect; it is rebuilt here only to show where we differ."""
    case = Case(name)
    if not case.names("stage2.*"):
        return
    blocks = find_clip(case)
    video_block, audio_block = block_of_frames(blocks)
    case.compare("stage2.audio_block_from_table", audio_block.astype(np.int64))
    frames, latents = len(video_block), len(audio_block)
    starts = np.rint(np.arange(frames) * latents / frames)
    proportional = np.searchsorted(starts, np.arange(latents), side="right") - 1
    case.compare("stage2.audio_to_video_frame_proportional", proportional)
    case.compare("stage2.audio_block_from_proportional", video_block[proportional].astype(np.int64))
    differing = next(v for k, v in case.meta["checks"].items() if k.startswith("audio frames whose sigma"))
    assert np.count_nonzero(video_block[proportional] != audio_block) == differing
    case.assert_all_compared("stage2.*")
