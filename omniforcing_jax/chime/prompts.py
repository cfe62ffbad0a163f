"""The language of chime: short prompts that name balls by colour.

Here are the colour names, the phrasings that training and evaluation draw from, and the parser that says what a prompt
asks for. Which words a network knows is data of its weights (`omniforcing_jax.text.words`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

COLOURS = ("red", "yellow", "green", "cyan", "blue", "purple")
NUMBERS = ("one", "two", "three")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a prompt asks for: how many balls, and their colours in the order of the prompt."""

    count: int
    colours: tuple[str, ...]


def _enumerate(parts: Sequence[str]) -> str:
    """Join as English does: "x", "x and y", "x, y and z"."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _plural(word: str, count: int) -> str:
    """`ball` and the verb `bounces` in agreement with the count."""
    return {"ball": "ball" if count == 1 else "balls", "bounce": "bounces" if count == 1 else "bounce"}[word]


def phrasings(colours: Sequence[str]) -> list[str]:
    """Return every phrasing of these colours, the canonical one first."""
    count = len(colours)
    ball, bounce = _plural("ball", count), _plural("bounce", count)
    canonical = _enumerate([f"a {colour} ball" for colour in colours])
    listed = _enumerate(colours)
    return [
        canonical,
        f"{canonical} {bounce}",
        f"{canonical} {bounce} in a box",
        _enumerate([f"a bouncing {colour} ball" for colour in colours]),
        _enumerate([f"one {colour} ball" for colour in colours]),
        f"{NUMBERS[count - 1]} {ball}: {listed}",
        f"{NUMBERS[count - 1]} bouncing {ball}: {listed}",
        f"{listed} {ball}",
        f"{listed} {ball} bouncing in a box",
    ]


def phrase(colours: Sequence[str], rng: np.random.Generator) -> str:
    """Word a request: one time in three canonically, else in any phrasing; the colours come in random order."""
    options = phrasings([colours[int(i)] for i in rng.permutation(len(colours))])
    return options[0] if rng.random() < 1 / 3 else options[rng.integers(len(options))]


def sample_prompts(count: int, seed: int) -> list[str]:
    """Draw `count` prompts of one to three distinct colours each."""
    rng = np.random.default_rng([seed, 0x7072])
    wanted = [rng.permutation(len(COLOURS))[: rng.integers(1, 4)] for _ in range(count)]
    return [phrase([COLOURS[c] for c in colours], rng) for colours in wanted]


_COLOUR = f"(?:{'|'.join(COLOURS)})"
_LIST = rf"{_COLOUR}(?: (?:and )?{_COLOUR})*"
_ITEM = rf"(?:a|one)(?: bouncing)? {_COLOUR}"
_TAIL = r"(?: bounces?| bouncing)?(?: in a box)?"
_FORMS = (
    rf"{_ITEM} ball(?: (?:and )?{_ITEM} ball)*{_TAIL}",  # a red ball and a blue ball bounce
    rf"{_ITEM}(?: (?:and )?{_ITEM})* balls?{_TAIL}",  # a red and a blue ball
    rf"(?P<number>one|two|three)(?: bouncing)? balls?(?: bounces?| bouncing)? {_LIST}{_TAIL}",  # two balls: red, blue
    rf"(?:(?P<number>two|three) )?(?:bouncing )?{_LIST} balls?{_TAIL}",  # red and blue balls
)


def parse(prompt: str) -> Request:
    """Read a prompt; case and punctuation do not matter.

    Raises:
        ValueError: The prompt is not one of the known forms, repeats a colour, or states a number that its colours
            contradict. The message names the prompt and what is wrong.
    """
    text = " ".join(re.findall(r"[a-z]+", prompt.lower()))
    match = next((found for form in _FORMS if (found := re.fullmatch(form, text))), None)
    if match is None:
        raise ValueError(
            f"cannot read the prompt {prompt!r}: say it like 'a red ball and a blue ball' or 'two balls: red and blue'"
        )
    colours = tuple(re.findall(rf"\b{_COLOUR}\b", text))
    number = match.groupdict().get("number")
    stated = len(colours) if number is None else NUMBERS.index(number) + 1
    if stated != len(colours):
        raise ValueError(
            f"the prompt {prompt!r} contradicts itself: it says {number} but names {len(colours)} colour(s)"
        )
    if len(set(colours)) != len(colours):
        raise ValueError(f"the prompt {prompt!r} names a colour twice: chime's balls have distinct colours")
    if len(colours) > len(NUMBERS):
        raise ValueError(f"the prompt {prompt!r} asks for {len(colours)} balls: chime has at most {len(NUMBERS)}")
    return Request(count=len(colours), colours=colours)
