"""The demo: what it says of a clip, and that it runs outside the repository on a stream's packages alone."""

import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from experiments.chime.judge.sources import render_film
from omniforcing_jax.chime import demo, metrics, physics
from omniforcing_jax.chime.animation import write_webp
from omniforcing_jax.chime.prompts import parse
from omniforcing_jax.cli.main import main

ROOT = Path(__file__).parents[2]
OTHERS = "matplotlib librosa optax orbax grain array_record lmdb experiments converters"
WITHOUT_OTHERS = f"""
import sys
sys.modules.update(dict.fromkeys({OTHERS!r}.split()))  # importing one raises ImportError
from pathlib import Path
from omniforcing_jax.chime.demo import Demo, main
sys.exit(main(Demo(seconds=2, out=Path("new/folder"))))
"""


@pytest.fixture(scope="module")
def truth():
    scene = physics.sample_world([994, 0], colours=["red", "blue"])
    return render_film(scene, 6)


def said(film, prompt):
    return dict(demo.describe(metrics.perceive(film), [demo.Part(parse(prompt), 0, len(film.video) // 24)]))


def test_a_true_clip_is_good_and_its_figures_have_units_and_two_digits(truth):
    lines = said(truth, "a red ball and a blue ball")
    assert lines["seen"] == "2 balls: red, blue"
    assert lines["heard"] == "tones of red, blue"
    assert re.fullmatch(r"\d+ seen, (9\d|100) % of them ring", lines["impacts"])
    assert lines["synchrony"].startswith("half of the pairs within 0.")
    assert lines["verdict"] == "good: number, colours and tones as asked; in sync"


def test_a_clip_of_other_balls_is_only_fair_and_one_with_another_sound_is_poor(truth):
    assert said(truth, "a red ball")["verdict"] == "fair: wrong number of balls and colours and tones; in sync"
    swapped = truth._replace(audio=np.roll(truth.audio, 6000, axis=0))
    assert said(swapped, "a red ball and a blue ball")["verdict"].startswith("poor: ")


def test_a_clip_with_another_prompt_in_the_middle_is_judged_by_both(truth):
    other = render_film(physics.sample_world([995, 0], colours=["green"]), 6)
    film = truth._replace(
        video=np.concatenate([truth.video, other.video]), audio=np.concatenate([truth.audio, other.audio])
    )
    middle, end = len(truth.video) // 24, len(film.video) // 24
    parts = [demo.Part(parse("a red ball and a blue ball"), 0, middle), demo.Part(parse("a green ball"), middle, end)]
    lines = dict(demo.describe(metrics.perceive(film), parts))
    assert lines["seen"] == "2 balls: red, blue, then 1 ball: green"
    assert lines["heard"] == "tones of red, blue, then tones of green"
    assert lines["verdict"] == "good: number, colours and tones as asked; in sync"
    parts[1] = parts[1]._replace(request=parse("a yellow ball"))
    assert "wrong colours and tones" in dict(demo.describe(metrics.perceive(film), parts))["verdict"]


def test_prompts_share_the_time_and_begin_at_block_borders():
    parts = demo.plan_parts(demo.Demo(prompt=("a red ball", "a blue ball"), seconds=13))
    assert [(part.start, part.stop) for part in parts] == [(0, 6), (6, 13)]
    assert [part.window for part in parts] == [(0, 6 + 1 / 24), (6 + 1 / 24, 13 + 1 / 24)]
    assert [part.start for part in demo.plan_parts(demo.Demo(seconds=1))] == [0]
    with pytest.raises(ValueError, match="must be at most 1, one a second"):
        demo.plan_parts(demo.Demo(prompt=("a red ball", "a blue ball"), seconds=1))
    with pytest.raises(ValueError, match="seconds=0"):
        demo.plan_parts(demo.Demo(seconds=0))


@pytest.mark.parametrize(
    ("value", "text"), [(8.312, "8.3"), (0.98, "0.98"), (198.2, "200"), (100.0, "100"), (0.0, "0")]
)
def test_numbers_have_two_digits(value, text):
    assert demo._two(value) == text


def test_an_animation_shows_every_second_frame_enlarged_and_repeats(truth, tmp_path):
    path = tmp_path / "clip.webp"
    write_webp(path, truth.video[:48], frame_rate=24, every=2, scale=3)
    content = path.read_bytes()
    assert (content[:4], content[8:12], content.count(b"ANMF")) == (b"RIFF", b"WEBP", 24)
    loops = content[content.index(b"ANIM") + 12 :][:2]
    assert loops == b"\0\0"  # for ever
    canvas = content[content.index(b"VP8X") + 12 :][:6]
    assert [1 + int.from_bytes(canvas[i : i + 3], "little") for i in (0, 3)] == [192, 192]


def test_a_prompt_that_is_no_prompt_is_one_line_and_exit_code_two(tmp_path, capsys):
    assert main(["demo", "--prompt", "a mauve ball", "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: cannot read the prompt 'a mauve ball'")
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_it_runs_outside_the_repository_where_only_a_streams_packages_are(tmp_path):
    made = subprocess.run(
        [sys.executable, "-c", WITHOUT_OTHERS],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["demo.mp4", "demo.webp"]
    lines = dict(line.split("  ", 1) for line in made.stdout.splitlines())
    assert "pip install 'omniforcing_jax[judge]'" in lines["new/folder/demo.png"]
    assert lines["verdict"].strip().startswith(("good: ", "fair: ", "poor: "))
    with av.open(str(tmp_path / "new" / "folder" / "demo.mp4")) as file:
        assert len(list(file.decode(video=0))) == 49
