"""The front door: what `import omniforcing_jax as of` has, how long it takes, and that it streams without any flags."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from tiny_stream import PROMPT, folders, student, teacher

import omniforcing_jax as of
from omniforcing_jax.pipeline.shipped import CHIME_WEIGHTS, find_weights
from omniforcing_jax.stream.mp4 import write_mp4

ROOT = Path(__file__).parent.parent


def run(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def test_every_name_is_there_and_listed():
    for name in of.__all__:
        assert getattr(of, name) is not None
        assert name in dir(of)
    assert {"open_stream", "sample_clip", "load_pipeline", "judge_file", "resume", "save"} <= set(of.__all__)


def test_a_type_checker_and_the_program_find_the_same_names():
    tree = ast.parse(Path(of.__file__).read_text())
    (typed,) = (node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    found = {a.name: n.module for n in typed.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert found == {name: f"omniforcing_jax.{module}" for name, module in of._MODULES.items()}
    assert set(of.__all__) == {*found, "__version__"}


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'open_steam'"):
        _ = of.open_steam


def test_the_import_brings_no_jax_and_takes_milliseconds():
    code = "import time; t = time.perf_counter(); import omniforcing_jax; s = time.perf_counter() - t\n"
    code += "import sys; print(s, 'jax' in sys.modules, 'numpy' in sys.modules)"
    seconds, *heavy = run(code).split()
    assert heavy == ["False", "False"]
    assert float(seconds) < 0.2


def test_the_version_is_that_of_the_project():
    assert of.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_types_are_shipped():
    assert (Path(of.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize(
    ("weights", "default", "folder"),
    [
        ("chime", "chime-teacher", CHIME_WEIGHTS / "student"),
        ("chime-teacher", "chime", CHIME_WEIGHTS / "teacher"),
        (None, "chime", CHIME_WEIGHTS / "student"),
        (None, "chime-teacher", CHIME_WEIGHTS / "teacher"),
        ("./chime", "chime", Path("chime")),
        (Path("chime"), "chime", Path("chime")),
    ],
)
def test_weights_are_a_folder_a_shipped_name_or_nothing(weights, default, folder):
    assert find_weights(weights, default) == folder


def test_the_shipped_student_streams_by_its_name_and_without_one(tmp_path):
    named = of.open_stream("chime", "a red ball", seconds=1, seed=3)
    default = of.open_stream(prompt="a red ball", seconds=1, seed=3)
    chunks = [list(stream) for stream in (named, default)]
    assert sum(len(chunk.video) for chunk in chunks[0]) == 25
    for a, b in zip(*chunks, strict=True):
        np.testing.assert_array_equal(a.video, b.video)
        np.testing.assert_array_equal(a.audio, b.audio)
    assert repr(chunks[0][1]).startswith("Chunk(index=1, 24 frames of 64x64 from 0.04 s, ")


def test_a_stream_wants_a_prompt_and_a_clip_at_least_one():
    with pytest.raises(ValueError, match="prompt"):
        of.open_stream()
    with pytest.raises(ValueError, match="prompts"):
        of.sample_clip(teacher())


def test_one_prompt_is_one_clip():
    (clip,) = of.sample_clip(teacher(), [PROMPT], 1, steps=1, guidance=1)
    assert isinstance(clip, of.Chunk)
    assert len(clip.video) == 25


def test_a_pipeline_is_loaded_by_a_name_or_from_a_folder():
    pipeline = of.load_pipeline("chime-teacher", dtype="bfloat16")
    assert repr(pipeline).startswith("Pipeline('chime-teacher', teacher, ")
    assert repr(pipeline).endswith(" M parameters, 64x64, bfloat16)")
    assert repr(of.load_pipeline(folders() / "student")).endswith("64x96, float32)")


def test_streams_say_in_a_line_what_they_are():
    stream = of.open_stream(student(), PROMPT, 2)
    assert repr(stream) == f"ChunkStream('tiny', '{PROMPT}', 64x96, block 0 of 3, float32)"
    next(stream)
    assert "block 1 of 3" in repr(stream)
    batch = of.open_stream(student(), [PROMPT, "a green ball"])
    assert repr(batch) == f"BatchStream(2 rows: 'tiny', '{PROMPT}', 'a green ball', 64x96, block 0 of no end, float32)"


def test_a_file_is_judged_in_one_call(tmp_path):
    rng = np.random.default_rng(0)
    video, audio = rng.integers(0, 255, (72, 32, 48, 3), np.uint8), rng.normal(0, 0.1, (72_000, 2)).astype(np.float32)
    write_mp4(tmp_path / "a.mp4", video, audio, frame_rate=24, sample_rate=24_000)
    figures = of.judge_file(tmp_path / "a.mp4", block_seconds=0.5)
    assert figures["media"]["frames"] == 72
    assert figures["seams"]["block_seconds"] == 0.5
    from omniforcing_jax.judge.media import read_media

    assert repr(read_media(tmp_path / "a.mp4")).startswith("Media('a.mp4', 3.0")
    with pytest.raises(ValueError, match=r"cannot read nowhere\.mp4"):
        of.judge_file("nowhere.mp4")
