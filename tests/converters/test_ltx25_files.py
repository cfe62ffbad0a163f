"""LTX-2.5 from its split files, and from diffusers' folder, to a weights folder, a clip, and back to the same bytes."""

import av
import ml_dtypes
import numpy as np
import pytest
from ltx25_files import NETWORK, PARTS, save_split
from run import run
from safetensors.numpy import load_file, save_file

from converters.wide_tables import TABLES
from omniforcing_jax.cli import main
from omniforcing_jax.config import ModelConfig
from omniforcing_jax.io import weights
from omniforcing_jax.pipeline.weights_folder import load_pipeline, read_pipeline_config, save_pipeline

pytestmark = pytest.mark.usefixtures("quiet")


def convert(paths, out, *flags):
    run(
        "convert",
        *[word for path in paths for word in ("--from", path)],
        "--height",
        64,
        "--width",
        64,
        *flags,
        "--out",
        out,
    )
    return out


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """The files, and the weights folder that they were converted into."""
    root = tmp_path_factory.mktemp("ltx25")
    paths = save_split(root / "published")
    return paths, convert(paths.values(), root / "ours")


@pytest.fixture
def contexts(tmp_path):
    """A file of text contexts for one prompt."""
    rng, path = np.random.default_rng(0), tmp_path / "contexts.safetensors"
    widths = {"video": NETWORK.video.width, "audio": NETWORK.audio.width}
    save_file({name: rng.normal(size=(1, 5, each)).astype(np.float32) for name, each in widths.items()}, path)
    return str(path)


def is_table(name):
    return name.rpartition("/")[2] in TABLES


def test_split_files_are_one_model_whose_tables_stay_float32(split):
    _, ours = split
    config = read_pipeline_config(ours)
    assert (config.model, config.video_vae, config.vocoder) == tuple(
        PARTS[n] for n in ("transformer", "video_vae", "vocoder")
    )
    tensors = load_file(ours / "transformer/model.safetensors")
    assert {is_table(name) for name, each in tensors.items() if each.dtype == np.float32} == {True}
    assert not any(is_table(name) for name, each in tensors.items() if each.dtype == ml_dtypes.bfloat16)
    loaded = weights.name_leaves(load_pipeline(ours, dtype="bfloat16").transformer)
    for name, value in tensors.items():
        assert loaded[name].dtype == value.dtype, name
        np.testing.assert_array_equal(np.asarray(loaded[name]), value)


def test_weights_that_are_saved_in_half_precision_keep_their_tables(split, tmp_path):
    _, ours = split
    save_pipeline(tmp_path, load_pipeline(ours), dtype="bfloat16")
    name = "transformer/model.safetensors"
    assert (tmp_path / name).read_bytes() == (ours / name).read_bytes()


def test_each_split_file_comes_back_with_its_own_bytes(split, tmp_path, capsys):
    paths, ours = split
    parts = {"transformer": ["transformer"], "vae": ["video_vae"], "audio": ["audio_vae", "vocoder"]}
    for name, components in parts.items():
        back = tmp_path / f"{name}.safetensors"
        run("export", "--from", ours, "--to", "ltx2", "--components", *components, "--out", back)
        capsys.readouterr()
        run("diff", paths[name], back)
        assert back.read_bytes() == paths[name].read_bytes() or name == "vae"  # whose keys have a prefix now


def test_through_diffusers_nothing_is_lost(split, tmp_path):
    _, ours = split
    run("export", "--from", ours, "--to", "diffusers", "--out", tmp_path / "pipeline")
    again = convert([tmp_path / "pipeline"], tmp_path / "again")
    assert ModelConfig.from_dict(weights.read_config(again, "transformer")) == NETWORK
    for name in PARTS:
        file = f"{name}/model.safetensors"
        assert (again / file).read_bytes() == (ours / file).read_bytes()


@pytest.mark.long
def test_a_clip_of_the_distilled_recipe_from_given_contexts(split, contexts, tmp_path):
    _, ours = split
    recipe = ["--sigmas", "distilled", "--guidance", "1", "--ancestral", "1", "--seconds", "1", "--dtype", "bfloat16"]
    for name in ("one.mp4", "two.mp4"):
        out = ["--prompt", "", "--contexts", contexts, "--weights", str(ours), "--out", str(tmp_path / name)]
        assert main.main(["sample", *recipe, *out]) in (None, 0)
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()


@pytest.mark.long
def test_a_student_of_ltx_2_5_streams(split, contexts, tmp_path):
    paths, _ = split
    student = convert(paths.values(), tmp_path / "student", "--layout", "fused", "--sigmas", 1, 0, "--horizon", 1)
    out = ["--prompt", "", "--contexts", contexts, "--weights", str(student), "--out", str(tmp_path / "stream.mp4")]
    assert main.main(["stream", "--seconds", "1", "--lookahead", "1", *out]) in (None, 0)
    with av.open(str(tmp_path / "stream.mp4")) as file:
        assert sum(1 for _ in file.decode(video=0)) == 25
