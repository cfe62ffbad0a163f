"""The file of contexts that streams look up becomes the store that trainings read, value by value."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import tyro

from experiments import import_contexts as command
from omniforcing_jax.io.tensor_file import write_tensors
from omniforcing_jax.text.contexts import TextContexts as TextContexts
from omniforcing_jax.text.store import METADATA, open_store, write_store
from omniforcing_jax.train import import_contexts as importer
from omniforcing_jax.train.contexts import Contexts
from omniforcing_jax.train.import_contexts import import_contexts

PROMPTS = ("a red ball", "a blue ball and Zoë", "")
ABOUT = {"weights": "ltx2", "encoder": {"width": 6}}


def draw(seed, *, tokens=4, dtype=jnp.bfloat16, mask=True):
    rng = np.random.default_rng(seed)
    video, audio = (jnp.asarray(rng.normal(size=(1, tokens, width)), dtype) for width in (6, 3))
    return TextContexts(video, audio, jnp.asarray(rng.integers(0, 2, (1, tokens))) if mask else None)


def save(path, prompts=PROMPTS, **changes):
    write_store(path, prompts, (draw(seed, **changes) for seed, _ in enumerate(prompts)), ABOUT)
    return path


def call(*arguments):
    command.main(tyro.cli(command.Arguments, args=[str(argument) for argument in arguments]))


@pytest.mark.parametrize("changes", [{}, {"dtype": jnp.float32, "mask": False}])
def test_a_training_reads_what_a_stream_looks_up(tmp_path, changes):
    path = save(tmp_path / "prompts.safetensors", **changes)
    call("--from", path, "--folder", tmp_path / "contexts", "--shards", 2)
    found, wanted = Contexts(tmp_path / "contexts", channels=(6, 3)), open_store(path)
    assert found.prompts == list(PROMPTS)
    for prompt in PROMPTS:
        row, expected = found[found.row_of(prompt)], wanted.read([prompt])
        assert row["context_video"].dtype == changes.get("dtype", jnp.bfloat16)
        np.testing.assert_array_equal(row["context_video"], expected.video[0])
        np.testing.assert_array_equal(row["context_audio"], expected.audio[0])
        shown = np.ones(4, bool) if expected.mask is None else np.asarray(expected.mask[0], bool)
        np.testing.assert_array_equal(row["context_mask"], shown)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["contexts", "prompts.safetensors"]


def test_an_interrupted_import_goes_on_and_a_whole_one_does_nothing(tmp_path, monkeypatch):
    path, folder = save(tmp_path / "prompts.safetensors"), tmp_path / "contexts"

    def damaged(where):
        found = open_store(where)

        def read_row(row):
            if row == 2:
                raise ValueError("the disk is gone")
            return found.read_row(row)

        return dataclasses.replace(found, read_row=read_row)

    with monkeypatch.context() as patch:
        patch.setattr(importer, "open_store", damaged)
        with pytest.raises(ValueError, match="the disk is gone"):
            import_contexts(path, folder)
    assert import_contexts(path, folder) == 1
    assert import_contexts(path, folder) == 0
    np.testing.assert_array_equal(Contexts(folder, channels=(6, 3))[2]["context_video"], draw(2).video[0])


def test_two_processes_copy_their_own_shards(tmp_path):
    path, folder = save(tmp_path / "prompts.safetensors"), tmp_path / "contexts"
    assert [import_contexts(path, folder, process=p, processes=2) for p in (1, 0)] == [1, 2]
    assert len(Contexts(folder, channels=(6, 3))) == 3


def test_other_prompts_do_not_mix_into_a_store(tmp_path):
    folder = tmp_path / "contexts"
    import_contexts(save(tmp_path / "one.safetensors"), folder)
    other = save(tmp_path / "other.safetensors", prompts=("a", "b", "c"))
    with pytest.raises(ValueError, match=r"contexts: holds another store: .*prompts"):
        import_contexts(other, folder)


def write_rows(path, rows):
    """Write a file by hand, whose rows `write_store` would refuse."""
    tensors = {f"{i}/{n}": np.asarray(v)[0] for i, row in enumerate(rows) for n, v in row._asdict().items()}
    tensors |= {name: value.astype(np.int32) for name, value in tensors.items() if name.endswith("mask")}
    layout = {name: (value.dtype, value.shape) for name, value in tensors.items()}
    text = json.dumps({"format": 1, "prompts": [f"prompt {i}" for i in range(len(rows))]})
    write_tensors(path, layout, tensors.__getitem__, {METADATA: text})
    return path


@pytest.mark.parametrize(
    ("second", "named"),
    [({"tokens": 5}, "row 1 has 5 tokens, row 0 has 4;"), ({"dtype": jnp.float32}, "1/video is float32, 0/video is")],
)
def test_rows_that_a_training_could_not_batch_are_refused_before_any_is_copied(tmp_path, capsys, second, named):
    path = write_rows(tmp_path / "prompts.safetensors", [draw(0), draw(1, **second)])
    with pytest.raises(SystemExit) as caught:
        call("--from", path, "--folder", tmp_path / "contexts")
    assert caught.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {path}: {named}")
    assert line.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_of_contexts_or_makes_no_shards_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.safetensors: No such file"):
        import_contexts(tmp_path / "nothing.safetensors", tmp_path / "contexts")
    with pytest.raises(ValueError, match="shards=4: must lie between 1 and count=3"):
        import_contexts(save(tmp_path / "prompts.safetensors"), tmp_path / "contexts", shards=4)
    assert not (tmp_path / "contexts").exists()
