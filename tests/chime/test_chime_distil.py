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


def _options(step, *more) -> dict:
    """What a step's module would be called with."""
    module = importlib.import_module(f"experiments.chime.{step.module}")
    taken = []

    @functools.wraps(module.Arguments, updated=())
    def stand_in(*args, **options):
        taken.append(options)

    tyro.cli(stand_in, args=[*step.arguments, *more])
    (options,) = taken
    return options


def test_every_step_is_a_command_that_its_module_takes(steps):
    for step in steps:
        options = {name.replace("_", "-"): value for name, value in _options(step).items()}
        given = [flag for flag in step.arguments if flag.startswith("--")]
        assert given
        for flag, text in zip(step.arguments[::2], step.arguments[1::2], strict=False):
            if flag in given:
                value = options[flag.removeprefix("--")]
                assert text in map(str, value if isinstance(value, tuple) else (value,)), f"{step.name}: {flag}"


def test_a_flag_that_a_module_does_not_take_is_refused(steps, capsys):
    for step in steps:
        for more in (["--data-fil", "x"], ["--no-such-flag"]):
            with pytest.raises(SystemExit):
                _options(step, *more)
    assert "no-such-flag" in capsys.readouterr().err


def test_what_a_step_reads_an_earlier_step_has_written(steps, tmp_path):
    written = {str(tmp_path / "weights" / "codecs")}
    for step in steps:
        options = dict(zip(step.arguments[::2], step.arguments[1::2], strict=False))
        reads = "--data-file --teacher --student --begin --run --halfway --weights --encoders"
        for flag in reads.split():
            if flag in options:
                assert options[flag] in written, f"{step.name}: {flag} {options[flag]}"
        if step.module == "export_networks":
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
