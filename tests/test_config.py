import dataclasses

import pytest

from omniforcing_jax.config import CrossTimestep, ModelConfig, SamplerConfig
from omniforcing_jax.layout import FUSED
from omniforcing_jax.pipeline.presets import CHIME, CHIME_TEACHER, LTX2_19B, TINY, TINY_STREAM

SIGMAS = (1.0, 0.75, 0.0)


@pytest.mark.parametrize("config", [LTX2_19B, CHIME, CHIME_TEACHER, TINY])
def test_model_configs_survive_json(config):
    assert ModelConfig.from_json(config.to_json()) == config


def test_a_sampler_config_survives_json():
    sampler = SamplerConfig(sigmas=SIGMAS, horizon_seconds=5, layout=FUSED, context_noise=0.03, window=2, pinned=0)
    sampler = dataclasses.replace(sampler, scalar_sigma=1.0)
    assert SamplerConfig.from_json(sampler.to_json()) == sampler


def test_unknown_and_missing_keys_are_named():
    values = TINY.to_dict()
    values["sinkz"] = values.pop("layers")
    with pytest.raises(ValueError, match=r"ModelConfig: unknown keys \['sinkz'\], missing keys \['layers'\]"):
        ModelConfig.from_dict(values)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("layers", "2", "ModelConfig.layers='2': must be of type int"),
        ("layers", True, "ModelConfig.layers=True: must be of type int"),
        ("cross_timestep", "both", "ModelConfig.cross_timestep='both': must be one of"),
        ("video", 3, "ModelConfig.video=3: must be an object"),
    ],
)
def test_values_of_the_wrong_kind_are_named(key, value, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(TINY.to_dict() | {key: value})


def test_nested_enums_and_numbers_are_read():
    values = TINY.to_dict() | {"cross_timestep": "hybrid", "gate_multiplier": 1}
    config = ModelConfig.from_dict(values)
    assert (config.cross_timestep, config.gate_multiplier) == (CrossTimestep.HYBRID, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "layers=0"),
        ({"sinks": -1}, "sinks=-1"),
        ({"audio": dataclasses.replace(TINY.audio, heads=2)}, "audio.heads=2.*video.heads=4"),
        ({"caption_channels": 0}, "caption_channels=0"),
    ],
)
def test_impossible_networks_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigmas": (0.9, 0.5, 0.0)}, "sigmas=.*must start at 1"),
        ({"sigmas": (1.0, 0.5, 0.1)}, "sigmas=.*must end at 0"),
        ({"sigmas": (1.0, 0.5, 0.6, 0.0)}, "sigmas=.*must fall"),
        ({"sigmas": (1.0,)}, "sigmas=.*at least 2"),
        ({"context_noise": 1.0}, "context_noise=1.0"),
        ({"scalar_sigma": 1.5}, "scalar_sigma=1.5: must be a noise level"),
        ({"window": 7}, "window=7.*between 0 and the horizon's 6 blocks"),
        ({"window": -1}, "window=-1"),
        ({"layout": FUSED, "horizon_seconds": 0}, "horizon_seconds=0"),
    ],
)
def test_impossible_samplers_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SamplerConfig(sigmas=SIGMAS, horizon_seconds=5), **change)


def test_a_scalar_sigma_that_drives_nothing_is_refused():
    sampler = dataclasses.replace(TINY_STREAM.sampler, scalar_sigma=1.0)
    with pytest.raises(ValueError, match=r"sampler.scalar_sigma=1.0: drives nothing"):
        dataclasses.replace(TINY_STREAM, sampler=sampler)
    crossed = dataclasses.replace(TINY_STREAM.model, cross_timestep=CrossTimestep.CROSS)
    assert dataclasses.replace(TINY_STREAM, sampler=sampler, model=crossed).sampler == sampler


def test_an_open_window_fills_the_horizon_once():
    pinned = SamplerConfig(sigmas=SIGMAS, horizon_seconds=5)
    assert (pinned.horizon_blocks, pinned.past_blocks) == (6, 4)
    assert dataclasses.replace(pinned, pinned=0).past_blocks == 5
    assert dataclasses.replace(pinned, window=6).past_blocks == 5
    assert dataclasses.replace(pinned, window=1).past_blocks == 0
    assert dataclasses.replace(pinned, horizon_seconds=0).past_blocks == 0


def test_pinned_keys_move_along_once_the_horizon_is_passed():
    sampler = SamplerConfig(sigmas=SIGMAS, horizon_seconds=5)
    assert [sampler.shift_seconds(k) for k in (0, 1, 5, 6, 7, 3605)] == [0, 0, 0, 1, 2, 3600]
