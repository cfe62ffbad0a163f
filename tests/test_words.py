"""Words: what is known, what is refused and how, and what the context of a prompt looks like."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omniforcing_jax.text import words

CONFIG = words.WordsConfig(vocabulary=("red", "green", "a", "ball"), tokens=6, channels=8)
PARAMS = words.init_words(CONFIG, jax.random.key(1))


def test_case_and_punctuation_do_not_matter():
    np.testing.assert_array_equal(
        words.tokenise(CONFIG, "A red, GREEN ball!"), words.tokenise(CONFIG, "a red green ball")
    )


def test_the_empty_prompt_is_the_start_token_alone():
    ids, mask = words.tokenise(CONFIG, " ")
    assert ids.tolist() == [words.START, 0, 0, 0, 0, 0]
    assert mask.tolist() == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("prompt", ["a gren bal", "a gren; a bal, a gren"])
def test_every_unknown_word_is_named_once_with_the_nearest_known(prompt):
    with pytest.raises(ValueError) as caught:
        words.tokenise(CONFIG, prompt)
    message = str(caught.value)
    assert "'gren' (did you mean green" in message
    assert "'bal' (did you mean ball" in message
    assert message.count("'gren' (") == 1
    assert "\n" not in message


def test_digits_are_unknown_words_and_not_punctuation():
    with pytest.raises(ValueError, match="'2'"):
        words.tokenise(CONFIG, "2 red ball")


def test_a_prompt_that_does_not_fit_is_refused():
    assert words.tokenise(CONFIG, "a red ball a ball")[1].sum() == 6
    with pytest.raises(ValueError, match="6 words, at most 5"):
        words.tokenise(CONFIG, "a red ball a green ball")


def test_padding_is_masked_and_zero(strict):
    context, same, mask = words.encode(CONFIG, PARAMS, ["a red ball", ""])
    assert same is context
    assert context.shape == (2, 6, 8)
    assert mask.tolist() == [[1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(context == 0, jnp.broadcast_to(mask[..., None] == 0, context.shape))


def test_a_token_is_its_word_plus_its_place():
    context = words.encode(CONFIG, PARAMS, ["a red ball"]).video
    red = words.FIRST_WORD + CONFIG.vocabulary.index("red")
    np.testing.assert_allclose(context[0, 2], PARAMS.words[red] + PARAMS.places[2], rtol=1e-6)


def test_blank_prompts_are_the_empty_prompt():
    ids = jnp.stack([words.tokenise(CONFIG, prompt)[0] for prompt in ("a red ball", "ball")])
    np.testing.assert_array_equal(words.blank(ids), [words.tokenise(CONFIG, "")[0]] * 2)


def test_the_same_key_gives_the_same_words():
    again = words.init_words(CONFIG, jax.random.key(1))
    other = words.init_words(CONFIG, jax.random.key(2))
    np.testing.assert_array_equal(PARAMS.words, again.words)
    assert jnp.abs(PARAMS.words - other.words).max() > 0.1


def test_config_goes_through_json_and_back():
    assert words.WordsConfig.from_json(CONFIG.to_json()) == CONFIG
    assert hash(words.WordsConfig.from_json(CONFIG.to_json())) == hash(CONFIG)


@pytest.mark.parametrize("change", [{"extra": 1}, {"tokens": None}])
def test_a_config_with_unknown_or_missing_keys_is_refused(change):
    values = CONFIG.to_json() | change
    values = {key: value for key, value in values.items() if value is not None}
    with pytest.raises(ValueError, match=next(iter(change))):
        words.WordsConfig.from_json(values)


@pytest.mark.parametrize("vocabulary", [("red", "red"), ("Red",), ("two words",)])
def test_a_vocabulary_that_cannot_be_matched_is_refused(vocabulary):
    with pytest.raises(ValueError, match="vocabulary"):
        words.WordsConfig(vocabulary=vocabulary)
