"""What stage 3's programs need in memory, by the command that says it."""

import dataclasses

import pytest
import tiny

from experiments.bench import memory

STUDENT, TEACHER = (dataclasses.replace(model, layers=1) for model in (tiny.SINKS, tiny.TINY))


def sizes(name: str, *lengths: int) -> list[int]:
    every = (memory.programs(blocks, 4, tiny.BATCH, STUDENT, TEACHER, (1, 2)) for blocks in lengths)
    return [memory.temporary_bytes(programs[name]) for programs in every]


@pytest.mark.long
def test_the_second_pass_needs_the_memory_of_one_block_however_long_the_clip():
    found = sizes("second_pass", 5, 10, 20)
    assert max(found) <= 1.02 * min(found), found


@pytest.mark.parametrize("name", ["scoring", "replay"])
def test_what_sees_the_whole_clip_needs_the_memory_of_it(name):
    short, long = sizes(name, 5, 10)
    assert long > 1.5 * short


@pytest.mark.parametrize("wrong", [{"blocks": (1,)}, {"blocks": ()}, {"ring": 0}, {"batch": 0}])
def test_lengths_that_make_no_clip_are_refused(wrong, capsys):
    with pytest.raises(SystemExit) as caught:
        memory.main(memory.Arguments(**wrong))
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: --blocks")


def test_the_table_says_what_was_compiled():
    figures = {5: {"scoring": 1_000_000, "second_pass": 250_000}, 10: {"scoring": 3_000_000, "second_pass": 250_000}}
    assert memory.table(figures).splitlines()[2:] == ["| 5 | 1.00 | 0.25 |", "| 10 | 3.00 | 0.25 |"]
    assert (memory.grown(figures, "scoring"), memory.grown(figures, "second_pass")) == (2, 0)
