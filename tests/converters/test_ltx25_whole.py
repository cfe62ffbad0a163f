"""All of LTX-2.5, tiny, in its four files: converted, prompts read, a clip made, and every file back byte for byte."""

import pytest
from ltx25_files import NETWORK, PARTS, save_split
from run import run
from split_text import save_network, save_text

from omniforcing_jax.cli.main import main

pytestmark = pytest.mark.long
RECIPE = ("--sigmas", "distilled", "--guidance", 1, "--ancestral", 1, "--seconds", 1)


def in_this_process(*words):
    assert main([str(word) for word in words]) in (None, 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The files by name, and the weights folder that they are converted to."""
    root = tmp_path_factory.mktemp("whole")
    files = save_split(root / "published")
    save_network(files["transformer"], config=NETWORK)
    files["text"] = save_text(root / "published/text.safetensors")
    sources = [word for path in files.values() for word in ("--from", path)]
    run("convert", *sources, "--height", 64, "--width", 64, "--out", root / "ours")
    return files, root / "ours"


def test_a_clip_is_made_of_a_prompt_that_gemma_4_read(made, tmp_path):
    _, ours = made
    (tmp_path / "prompts.txt").write_text("a red ball and a blue ball")
    contexts = tmp_path / "contexts.safetensors"
    in_this_process("contexts", "--prompts", tmp_path / "prompts.txt", "--weights", ours, "--out", contexts)
    clips = {"read": (), "looked_up": ("--contexts", contexts)}
    for name, more in clips.items():
        words = ("--prompt", "a red ball and a blue ball", "--weights", ours, "--out", tmp_path / f"{name}.mp4")
        in_this_process("sample", *RECIPE, *words, *more)
    read, looked_up = ((tmp_path / f"{name}.mp4").read_bytes() for name in clips)
    assert read == looked_up


def test_every_file_comes_back_and_diff_finds_nothing(made, tmp_path, capsys):
    files, ours = made
    targets = {
        "transformer": ("ltx2", "transformer", "connectors"),
        "vae": ("ltx2", "video_vae"),
        "audio": ("ltx2", "audio_vae", "vocoder"),
        "text": ("ltx2-text", "text", "connectors"),
    }
    for name, (to, *components) in targets.items():
        back = tmp_path / f"{name}.safetensors"
        run("export", "--from", ours, "--to", to, "--components", *components, "--out", back)
        capsys.readouterr()
        run("diff", files[name], back)
        assert capsys.readouterr().out == "the same\n"
        assert back.read_bytes() == files[name].read_bytes() or name == "vae"  # whose keys have a prefix now


def test_through_diffusers_layout_the_folder_is_the_same(made, tmp_path, capsys):
    _, ours = made
    run("export", "--from", ours, "--to", "diffusers", "--out", tmp_path / "pipeline")
    run("convert", "--from", tmp_path / "pipeline", "--height", 64, "--width", 64, "--out", tmp_path / "again")
    for name in (*PARTS, "text", "connectors"):
        for file in ("model.safetensors", "config.json"):
            assert (tmp_path / "again" / name / file).read_bytes() == (ours / name / file).read_bytes(), name
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again/text" / file).read_bytes() == (ours / "text" / file).read_bytes()
    capsys.readouterr()
