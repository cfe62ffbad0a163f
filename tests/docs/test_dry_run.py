"""The central path, from LTX-2 as published to a student that diffusers loads, by the commands of the documents."""

import json
import os

import pytest
from runnable import run_command

from experiments.dry_run import published, walk
from experiments.dry_run.__main__ import table
from experiments.dry_run.walk import Pace, Walked, prepare, steps
from omniforcing_jax.pipeline.weights_folder import read_pipeline_config

QUICK = Pace(steps=1, seconds=2, sample=False)


def in_this_process(folder, words):
    """Run a command as the walk's own processes do, without starting one."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        return run_command(["python", "-m", *words])
    finally:
        os.chdir(before)


@pytest.mark.long
def test_every_command_from_convert_to_the_stock_loader(tmp_path, capfd):
    """In processes: checks of types at run time, which tests have, refuse what Orbax puts into a trainer's state."""
    prepare(tmp_path)
    walked = list(walk.walk(tmp_path, QUICK))
    said = capfd.readouterr()
    assert [one.code for one in walked] == [0] * len(steps(QUICK)), said.err[-2000:]
    assert "diffusers loads LTX2VideoTransformer3DModel" in said.out
    found = {
        name: read_pipeline_config(tmp_path / name) for name in ("ltx2", "runs/stage1/weights", "runs/stage3/weights")
    }
    assert [config.model.cross_timestep for config in found.values()] == ["cross", "cross", "own"]
    assert found["ltx2"].model == published.NETWORK
    losses = json.loads((tmp_path / "runs/stage2/metrics.jsonl").read_text())
    assert losses["held_out/loss"] > 0


def test_a_walk_ends_at_the_first_command_that_fails(tmp_path, capsys):
    asked = []

    def run(folder, words):
        asked.append(words[0])
        return 3 if len(asked) == 2 else 0

    walked = list(walk.walk(tmp_path, QUICK, run))
    assert [one.code for one in walked] == [0, 3]
    assert (
        "python -m converters convert --from ltx-2.safetensors --from gemma-3-12b/ --out ltx2"
        in capsys.readouterr().out
    )
    lines = table(walked, 12).splitlines()
    assert lines[1].endswith("exit code 3  encode the prompts")
    assert lines[2].endswith("2 of 12 commands")


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="is not empty"):
        prepare(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_first_commands_convert_and_encode_what_was_written(tmp_path, capsys):
    prepare(tmp_path)
    convert, contexts, store = steps(QUICK)[:3]
    assert [in_this_process(tmp_path, step.words) for step in (convert, contexts, store)] == [0, 0, 0]
    assert read_pipeline_config(tmp_path / "ltx2").resolution == (64, 64)
    assert json.loads((tmp_path / "contexts" / "header.json").read_text())["count"] == len(walk.PROMPTS) + 1
    capsys.readouterr()


def test_a_walked_command_says_its_time():
    one = Walked(step=steps(QUICK)[0], seconds=1.25, code=0)
    assert table([one], 1).splitlines()[0] == "    1.2 s  good  convert LTX-2 and Gemma"
