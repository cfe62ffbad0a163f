"""The text encoder on disk: what it gives, what is checked before a tensor is read, and that it goes away again."""

import gc
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_text import ENCODER, build_tokenizer, folders, params
from work_began import forbid

from omniforcing_jax.io.atomic_write import write_json
from omniforcing_jax.io.weights import read_config
from omniforcing_jax.parallel.spec import count
from omniforcing_jax.pipeline.weights_folder import find_text_encoder
from omniforcing_jax.text.connector import ConnectorConfig, ConnectorsConfig, connectors_spec, make_contexts
from omniforcing_jax.text.encoder import EncoderConfig
from omniforcing_jax.text.features import FeatureNorm
from omniforcing_jax.text.gemma import gemma_spec, hidden_states
from omniforcing_jax.text.gemma_config import GEMMA_3_12B
from omniforcing_jax.text.tokenizer import GemmaTokenizer

PROMPTS = ["a red ball", "", "a blue ball and a red ball and a Zeppelin"]


def encoder(folder=None):
    return find_text_encoder(folder or folders() / "text")


def test_contexts_are_those_of_the_parts_whatever_the_neighbours():
    gemma, connectors = params()
    ids, mask = (jnp.asarray(x) for x in GemmaTokenizer(folders() / "text" / "text", 16)(PROMPTS))

    @jax.jit
    def together(ids, mask):
        return make_contexts(ENCODER.connectors, connectors, hidden_states(ENCODER.gemma, gemma, ids, mask), mask)

    wanted = together(ids, mask)
    for name in ("video", "audio"):
        ours = np.concatenate([np.asarray(getattr(each, name)) for each in encoder().encode(PROMPTS)])
        assert ours.std(axis=(1, 2)).min() > 0.5
        assert np.abs(ours[0] - ours[2]).max() > 0.1
        np.testing.assert_allclose(ours, getattr(wanted, name), atol=1e-4, rtol=1e-4)


def test_contexts_come_in_the_type_that_is_asked_for():
    (wide,), (narrow,) = (list(encoder().encode(PROMPTS[:1], dtype)) for dtype in (jnp.float32, jnp.bfloat16))
    assert narrow.video.dtype == narrow.audio.dtype == jnp.bfloat16
    error = np.asarray(narrow.video.astype(jnp.float32) - wide.video)
    assert 0 < np.sqrt(np.mean(error**2)) < 0.05


def test_a_prompt_that_is_cut_is_logged(caplog):
    list(encoder().encode(["a ball " * 20]))
    assert "is longer than 16 tokens, 25 are cut" in caplog.text


def test_nothing_of_it_is_in_memory_when_all_is_read():
    size = (ENCODER.gemma.vocabulary, ENCODER.gemma.width)

    def tables():
        gc.collect()
        return sum(x.shape == size for x in jax.live_arrays())

    before, reading = tables(), encoder().encode(PROMPTS[:2])
    next(reading)
    assert tables() == before + 1
    assert len(list(reading)) == 1
    assert tables() == before


@pytest.fixture
def no_weights(monkeypatch):
    forbid(monkeypatch, "omniforcing_jax.io.weights.load_component")


def broken(tmp_path, change):
    folder = tmp_path / "text"
    shutil.copytree(folders() / "text", folder)
    change(folder)
    return folder


def change_config(component, **values):
    return lambda folder: write_json(folder / component / "config.json", read_config(folder, component) | values)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda folder: (folder / "connectors" / "config.json").unlink(), "connectors/config.json: No such file"),
        (change_config("text", width=16), "connectors.text_width=24: the text model has 16"),
        (change_config("connectors", text_states=4), "connectors.text_states=4: the text model has 3"),
        (change_config("connectors", tokens=12), "tokens=12: must be a multiple of video.registers=8"),
        (change_config("connectors", norm="per_day"), "norm='per_day'"),
        (change_config("text", depth=3), "unknown keys ['depth']"),
    ],
)
def test_configs_that_do_not_fit_are_refused(tmp_path, change, named):
    folder = broken(tmp_path, change)
    with pytest.raises(ValueError) as caught:
        encoder(folder)
    assert str(folder) in str(caught.value)
    assert named in str(caught.value)


def test_gemma_without_connectors_is_no_text_encoder(tmp_path):
    assert encoder(broken(tmp_path, lambda folder: shutil.rmtree(folder / "connectors"))) is None


def test_at_full_size_there_are_as_many_parameters_as_published():
    assert count(gemma_spec(GEMMA_3_12B)) == 11_766_034_176
    sizes = {"older": ((2, 30, 128),) * 2, "newer": ((8, 32, 128), (8, 32, 64))}
    norms = {"older": FeatureNorm.PER_PROMPT, "newer": FeatureNorm.PER_TOKEN}
    wanted = {"older": 722_534_400 + 2 * 354_470_400, "newer": 1_156_061_184 + 1_612_546_304 + 403_620_096}
    for name, streams in sizes.items():
        video, audio = (ConnectorConfig(layers=a, heads=b, head_size=c, registers=128) for a, b, c in streams)
        gated = name == "newer"
        config = ConnectorsConfig(
            text_width=3840, text_states=49, norm=norms[name], video=video, audio=audio, gated_attention=gated
        )
        assert count(connectors_spec(config)) == wanted[name]
        EncoderConfig(gemma=GEMMA_3_12B, connectors=config)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda folder: (folder / "text" / "tokenizer.json").unlink(), "tokenizer.json: no such file"),
        (lambda folder: (folder / "text" / "model.safetensors").unlink(), "model.safetensors: No such file"),
        (change_config("text", vocabulary=330), "mis-shaped embedding: (320, 24) instead of (330, 24)"),
        (change_config("connectors", gated_attention=True), "missing video/layers/attn/gate/"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_any_is_read(tmp_path, no_weights, change, named):
    reading = encoder(broken(tmp_path, change)).encode(PROMPTS)
    with pytest.raises(ValueError) as caught:
        next(reading)
    assert named in str(caught.value)


def test_a_token_that_the_text_model_lacks_is_refused_before_it_is_loaded(tmp_path, no_weights):
    larger = build_tokenizer()
    larger.add_tokens([f"<unused{i}>" for i in range(100)])
    folder = broken(tmp_path, lambda folder: larger.save(str(folder / "text" / "tokenizer.json")))
    reading = encoder(folder).encode(["a red ball", "a <unused99>"])
    with pytest.raises(ValueError, match=r"^prompt='a <unused99>': has a token that is not among the text model's 320"):
        next(reading)
