"""Chime's whole path: its commands are ones that their modules take, in an order in which each finds what it reads."""

import functools
import importlib
import json

import pytest
import tyro

from experiments.chime import distil


@pytest.fixture
def steps(tmp_path):
    return distil.plan(distil.Arguments(folder=tmp_path, codecs="train"))


def test_every_step_is_a_command_that_its_module_takes(steps):
    for step in steps:
        module = importlib.import_module(f"experiments.chime.{step.module}")
        command = getattr(module, "Arguments", module.main)
        taken = []

        @functools.wraps(command, updated=())
        def stand_in(*args, taken=taken, **options):
            taken.append(options)

        tyro.cli(stand_in, args=list(step.arguments))
        assert len(taken) == 1


def test_what_a_step_reads_an_earlier_step_has_written(steps, tmp_path):
    written = {str(tmp_path / "weights" / "codecs")}
    for step in steps:
        options = dict(zip(step.arguments[::2], step.arguments[1::2], strict=False))
        for flag in ("--data-file", "--teacher", "--student", "--begin", "--run", "--weights", "--encoders"):
            if flag in options:
                assert options[flag] in written, f"{step.name}: {flag} {options[flag]}"
        if step.module == "export":
            written.add(f"{options['--out']}/{options['--part']}")
        written |= {options[flag] for flag in ("--folder", "--out") if flag in options}


def test_the_shipped_codecs_are_taken_unless_asked_otherwise(steps, tmp_path):
    shorter = distil.plan(distil.Arguments(folder=tmp_path))
    assert {step.name for step in steps} - {step.name for step in shorter} == {
        "video VAE",
        "audio VAE",
        "VAEs",
        "vocoder",
        "its weights",
    }


def test_a_finished_step_is_not_run_again_and_a_failed_one_is(steps, tmp_path):
    ran = []

    def run(command):
        ran.append(command)
        if len(ran) == 3:
            raise KeyboardInterrupt

    record = tmp_path / "done.json"
    with pytest.raises(KeyboardInterrupt):
        distil.run_all(steps, record, run)
    assert list(json.loads(record.read_text())) == [step.name for step in steps[:2]]
    distil.run_all(steps, record, run)
    assert [command[1:] for command in ran[3:]] == [step.command[1:] for step in steps[2:]]
    assert list(json.loads(record.read_text())) == [step.name for step in steps]
