"""The language of chime: every phrasing is understood, contradictions are refused by name."""

import itertools
import re

import numpy as np
import pytest

from omniforcing_jax.chime import prompts
from omniforcing_jax.pipeline.presets import CHIME_WORDS
from omniforcing_jax.text.words import WordsConfig, tokenise

ALL = [colours for n in (1, 2, 3) for colours in itertools.permutations(prompts.COLOURS, n)]


def test_every_phrasing_of_every_request_is_read_back():
    for colours in ALL:
        for text in prompts.phrasings(colours):
            assert prompts.parse(text) == prompts.Request(count=len(colours), colours=colours), text


def test_every_phrasing_is_made_of_the_vocabulary_and_fits_the_encoder():
    config = WordsConfig(vocabulary=CHIME_WORDS)
    used = set()
    for colours in ALL:
        for text in prompts.phrasings(colours):
            tokenise(config, text)
            used |= set(re.findall("[a-z]+", text))
    assert used == set(CHIME_WORDS)


@pytest.mark.parametrize(
    ("text", "colours"),
    [
        ("A red ball, and a BLUE ball bounce!", ("red", "blue")),
        ("three balls: red, green and purple", ("red", "green", "purple")),
        ("a red and a blue ball", ("red", "blue")),
        ("two balls bounce: cyan, yellow", ("cyan", "yellow")),
        ("two bouncing red and blue balls in a box", ("red", "blue")),
    ],
)
def test_free_wording_within_the_grammar_is_understood(text, colours):
    assert prompts.parse(text).colours == colours


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("two balls: red", "says two but names 1"),
        ("two red balls", "says two but names 1"),
        ("one ball: red and blue", "says one but names 2"),
        ("a red ball and a red ball", "twice"),
        ("red, yellow, green and blue balls", "at most 3"),
        ("balls", "cannot read"),
        ("", "cannot read"),
        ("red a ball", "cannot read"),
    ],
)
def test_a_contradictory_or_unreadable_prompt_is_refused_in_one_line(text, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        prompts.parse(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sampled_prompts_are_the_same_for_the_same_seed_and_cover_counts_and_colours():
    drawn = prompts.sample_prompts(200, seed=3)
    assert drawn == prompts.sample_prompts(200, seed=3)
    assert drawn[:50] != prompts.sample_prompts(50, seed=4)
    requests = [prompts.parse(text) for text in drawn]
    assert {r.count for r in requests} == {1, 2, 3}
    assert {c for r in requests for c in r.colours} == set(prompts.COLOURS)
    assert len(set(drawn)) > 100


def test_the_order_of_colours_is_drawn_too():
    rng = np.random.default_rng(0)
    orders = {prompts.parse(prompts.phrase(["red", "blue"], rng)).colours for _ in range(40)}
    assert orders == {("red", "blue"), ("blue", "red")}
