"""Mutations of JSON values: what a damaged, foreign or hostile config can have in the place of a value."""

import copy

from hypothesis import strategies as st

ODD = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 10**3, 10**6, 10**9, 2**31, 2**63, 10**30, -(10**9)),
    *(0.0, 0.5, -1.5, 1e-300, 1e300, float("nan"), float("inf"), -float("inf")),
    *("", "split", "x" * 300, "\x1b[2J", "\ud800", "1", [], {}, [None], [[]], [{}], ["a"], [1], [1, 2, 3], [0.5] * 3),
    *([True], [-1, 0], [10**9] * 3, [1e300], [[1, 3, 5]] * 3, [["res_x", 10**9]], [["res_x", {"num_layers": -1}]]),
    *({"a": 1}, {"": {}}, {"a.b": {"c": 1}}, list(range(5000)), [["compress_all", None]], [float("nan")]),
)


def find_paths(value, before=()):
    """List the places of a nested value: every key of every object, every item of every list."""
    places = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        places += [(*before, key), *find_paths(each, (*before, key))]
    return places


def nest(depth):
    """Nest lists."""
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def mutate(values, path, kind, odd):
    """Change one place of nested values; the values themselves stay."""
    values = copy.deepcopy(values)
    *objects, last = path
    place = values
    for key in objects:
        place = place[key]
    if kind == "gone":
        del place[last]
    elif kind == "more" and isinstance(place, dict):
        place[f"{last}_new"] = odd
    elif kind == "deep":
        place[last] = nest(100)
    elif kind == "twice" and isinstance(place[last], int):
        place[last] = place[last] * 2
    elif kind == "listed":
        place[last] = [place[last]]
    else:
        place[last] = copy.deepcopy(odd)
    return values


@st.composite
def mutations(draw):
    """Draw a change that fits any nested values: call it with them."""
    share, odd = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(0, len(ODD) - 1))
    kind = draw(st.sampled_from(["put", "put", "put", "gone", "more", "deep", "twice", "listed"]))

    def change(values):
        paths = find_paths(values)
        return mutate(values, paths[int(share * len(paths))], kind, ODD[odd]) if paths else values

    return change
