"""The store of contexts: looked up by prompt, written row by row and whole or not at all."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from omniforcing_jax.text.contexts import TextContexts
from omniforcing_jax.text.store import open_store, store_of, write_store

PROMPTS = ("a red ball", "", "über 2 balls")
RNG = np.random.default_rng(0)


def rows(tokens=(3, 3, 3), dtype=jnp.float32, masked=True):
    for i, count in enumerate(tokens):
        video, audio = (jnp.asarray(RNG.normal(size=(1, count, width)), dtype) for width in (4, 2))
        yield TextContexts(video, audio, jnp.asarray([[0] * i + [1] * (count - i)], jnp.int32) if masked else None)


def write(path, contexts=None, prompts=PROMPTS):
    write_store(path, prompts, iter(contexts or list(rows())), {"weights": "tiny"})
    return open_store(path)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_contexts_come_back_by_prompt_in_the_order_asked_for(tmp_path, dtype):
    made = list(rows(dtype=dtype))
    store = write(tmp_path / "c.safetensors", made)
    assert store.prompts == PROMPTS
    assert store.widths == (4, 2)
    assert store.about == {"weights": "tiny"}
    for source in (store, store_of(PROMPTS, made, "the request")):
        found = source.read([f" {PROMPTS[2]}\n", PROMPTS[0]])
        for name in TextContexts._fields:
            wanted = [np.asarray(getattr(made[i], name).astype(jnp.float32)) for i in (2, 0)]
            np.testing.assert_array_equal(getattr(found, name), np.concatenate(wanted))
        assert found.video.dtype == found.audio.dtype == jnp.float32
        assert found.mask.dtype == jnp.int32


def test_contexts_without_a_mask_have_none_when_they_come_back(tmp_path):
    assert write(tmp_path / "c.safetensors", list(rows(masked=False))).read(PROMPTS).mask is None


def test_an_unknown_prompt_is_named_with_the_nearest(tmp_path):
    store = write(tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match=r"c\.safetensors: has no contexts of the prompt 'a rad ball'; did you mean"):
        store.check(["", "a rad ball"])
    with pytest.raises(ValueError, match=r"'x{57}\.\.\.', only 3 others"):
        store.check(["x" * 100])


def test_a_row_of_another_shape_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="the video of prompt 2 must have the shape"):
        write(tmp_path / "c.safetensors", list(rows((3, 3, 4))))
    assert not list(tmp_path.iterdir())


def test_an_interrupted_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "c.safetensors"
    before = (write(path), path.read_bytes())[1]

    def interrupted():
        yield from list(rows())[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(path, PROMPTS, interrupted(), {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("prompts", [(), ("a", "a")])
def test_prompts_must_be_distinct_and_there(tmp_path, prompts):
    with pytest.raises(ValueError, match="distinct, and at least one"):
        write(tmp_path / "c.safetensors", prompts=prompts)


@pytest.mark.parametrize(
    ("metadata", "change", "named"),
    [
        (None, {}, "not a store"),
        ("{", {}, "not JSON"),
        ("[1]", {}, "must be a JSON object"),
        ({"format": 2, "prompts": ["a"]}, {}, "format=2"),
        ({"format": 1, "prompts": ["a", "a"]}, {}, "distinct"),
        ({"format": 1, "prompts": []}, {}, "distinct"),
        ({"format": 1, "prompts": ["a", "b"]}, {}, "row 1 has video () and audio ()"),
        ({"format": 1, "prompts": ["a"]}, {"1/video": (3, 4)}, "unknown tensors ['1/video']"),
        ({"format": 1, "prompts": ["a"]}, {"0/mask": (4,)}, "row 0"),
        ({"format": 1, "prompts": ["a"]}, {"0/audio": (5, 2)}, "row 0"),
    ],
)
def test_a_file_that_is_no_store_is_refused_by_name(tmp_path, metadata, change, named):
    path = tmp_path / "c.safetensors"
    shapes = {"0/video": (3, 4), "0/audio": (3, 2)} | change
    text = metadata if metadata is None or isinstance(metadata, str) else json.dumps(metadata)
    save_file({k: np.zeros(s, np.float32) for k, s in shapes.items()}, path, text and {"contexts": text})
    with pytest.raises(ValueError) as caught:
        open_store(path)
    assert str(path) in str(caught.value)
    assert named in str(caught.value)
