"""Programs that are compiled ahead are those that a stream runs, each compiled once."""

import collections
import dataclasses

import jax
import numpy as np
import pytest
from lora_files import write_lora
from test_upscale import upsampling
from tiny_stream import PROMPT, folders, student

from omniforcing_jax.parallel.mesh import MeshConfig
from omniforcing_jax.parallel.mesh import use as use_mesh
from omniforcing_jax.stream import ahead
from omniforcing_jax.stream.chunk import join_chunks
from omniforcing_jax.stream.plan import plan_stream
from omniforcing_jax.stream.request import StreamRequest
from omniforcing_jax.stream.start import open_stream, start_stream

ALONE = {"window": 1, "steps": 1}  # no other test has such a stream, so its network's programs are new
OF_NETWORK = {"denoise_block": 2, "commit_block": 2, "make_prompt_kv": 1, "make_table": 1}
OF_DECODERS = {"_render": 2, "decode_audio": 2, "flush_audio": 1}


@pytest.fixture
def ready():
    """Programs that became ready, by name."""
    names = collections.Counter()

    def note(event, seconds, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            names[kwargs["fun_name"].removeprefix("jit(").removesuffix(")")] += 1

    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    jax.monitoring.unregister_event_duration_listener(note)


def test_a_stream_runs_what_was_compiled_while_its_weights_were_loaded(ready):
    chunks = list(open_stream(folders() / "student", PROMPT, 4, **ALONE))
    assert {name: ready[name] for name in OF_NETWORK} == OF_NETWORK
    assert all(ready[name] <= most for name, most in OF_DECODERS.items())
    alone = list(open_stream(student(), PROMPT, 4, **ALONE))
    for made, other in zip(join_chunks(chunks), join_chunks(alone), strict=True):
        np.testing.assert_array_equal(made, other)


@pytest.mark.long
def test_a_network_with_loras_is_compiled_ahead_too(ready, tmp_path):
    loras = [(write_lora(tmp_path / "lora.safetensors", student().config.model, seed=1), 1.0)]
    list(open_stream(folders() / "student", PROMPT, 4, loras=loras, **ALONE))
    assert {name: ready[name] for name in OF_NETWORK} == OF_NETWORK


def seeing_both_sides():
    """The student with a decoder that is not causal."""
    config = student().config
    vae = dataclasses.replace(config.video_vae, causal_decoder=False)
    codecs = dataclasses.replace(student().codecs, video_config=vae)
    return dataclasses.replace(student(), codecs=codecs, config=dataclasses.replace(config, video_vae=vae))


@pytest.mark.long
@pytest.mark.parametrize(("pipeline", "upscale"), [(seeing_both_sides, False), (upsampling, True)])
def test_every_program_is_lowered_where_the_picture_is_late(ready, pipeline, upscale):
    """The carry has another shape in each of the first blocks."""
    pipeline = pipeline()
    asked = {"seed": 3, "seconds": 6, "lookahead": 1, "steps": 1, "upscale": upscale}
    asked["window"] = 2 if upscale else None  # its network's programs are new, too
    plan = plan_stream(pipeline, StreamRequest(prompt=(PROMPT, PROMPT), **asked))
    programs = ahead.compile_ahead(plan)
    stream = start_stream(pipeline, plan, ahead=programs)
    for _ in range(4):
        stream.next_rows()
    assert {name: ready[name] for name in OF_NETWORK} == OF_NETWORK
    assert {name: ready[name] for name in ("_render", "decode_audio")} == {"_render": 3, "decode_audio": 2}


def test_programs_that_cannot_be_lowered_are_compiled_when_they_are_met(monkeypatch):
    monkeypatch.setattr(ahead, "lower_video", lambda *args, **kwargs: 1 / 0)
    assert len(list(open_stream(folders() / "student", PROMPT, 1, **ALONE))) == 3


def test_a_mesh_and_given_pictures_have_other_programs():
    plan = plan_stream(student(), StreamRequest(prompt=PROMPT, seconds=2))
    given = plan._replace(conditioning=plan.conditioning._replace(picture_blocks=1))
    assert ahead.compile_ahead(given) is None
    with use_mesh(MeshConfig(fsdp=4, tensor=2)):
        assert ahead.compile_ahead(plan) is None
