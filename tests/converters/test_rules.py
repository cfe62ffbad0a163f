"""Rule tables: bijections on keys, bit-exact both ways, strict about every kind of fault."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.rules import Rule, check_rules, gather, place, scatter

RULES = check_rules(
    [Rule("layers/a/w", "blocks.{i}.a.weight"), Rule("layers/b", "blocks.{i}.b"), Rule("head/w", "head.weight")]
)


def make_ours(layers=3, dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = {"layers/a/w": (layers, 2, 3), "layers/b": (layers,), "head/w": (4, 2)}
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def place_all(ours):
    return place(RULES, {name: value.shape for name, value in ours.items()})


def make_theirs(ours):
    return scatter(ours, place_all(ours), "ours")


def test_layers_are_spelled_out_and_their_shapes_lose_the_layer_axis():
    theirs = make_theirs(make_ours(layers=2))
    assert {name: value.shape for name, value in theirs.items()} == {
        "blocks.0.a.weight": (2, 3),
        "blocks.1.a.weight": (2, 3),
        "blocks.0.b": (),
        "blocks.1.b": (),
        "head.weight": (4, 2),
    }


def test_a_tensor_of_theirs_is_one_run_of_bytes_of_ours():
    ours = make_ours()
    gathered = gather(make_theirs(ours), place_all(ours), "file")
    size = 2 * 3 * 4
    for i in range(3):
        stored = gathered["layers/a/w"].tobytes()[i * size : (i + 1) * size]
        assert stored == make_theirs(ours)[f"blocks.{i}.a.weight"].tobytes()


@settings(deadline=None, max_examples=30)
@given(
    layers=st.integers(1, 12),
    parts=st.sets(st.sampled_from([rule.ours for rule in RULES]), min_size=1),
    order=st.randoms(use_true_random=False),
    dtype=st.sampled_from([np.float16, np.float32, np.int8]),
)
def test_there_and_back_is_bit_exact_for_any_part_and_order(layers, parts, order, dtype):
    ours = {name: value for name, value in make_ours(layers, dtype).items() if name in parts}
    theirs = list(make_theirs(ours).items())
    order.shuffle(theirs)
    back = gather(dict(theirs), place_all(ours), "file")
    assert back.keys() == ours.keys()
    for name, value in ours.items():
        assert back[name].dtype == dtype
        np.testing.assert_array_equal(back[name], value)


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_any_missing_renamed_or_mis_shaped_key_is_named(data):
    ours = make_ours()
    theirs = make_theirs(ours)
    key = data.draw(st.sampled_from(sorted(theirs)))
    fault = data.draw(st.sampled_from(["missing", "unknown", "mis-shaped"]))
    value = theirs.pop(key) if fault != "unknown" else theirs[key]
    if fault == "unknown":
        theirs[f"{key}_scale"] = value
    if fault == "mis-shaped":
        theirs[key] = np.append(value, 0)
    with pytest.raises(ValueError, match=rf"^file: {fault} {key}"):
        gather(theirs, place_all(ours), "file")


def test_layers_of_different_dtypes_are_refused():
    ours = make_ours()
    theirs = make_theirs(ours) | {"blocks.1.b": np.zeros((), np.float16)}
    with pytest.raises(ValueError, match=r"file: blocks\.1\.b is float16, its other layers are float32"):
        gather(theirs, place_all(ours), "file")


def test_a_tensor_of_ours_without_a_rule_is_named():
    with pytest.raises(ValueError, match="no rule for 'tail/w'"):
        place(RULES, {"tail/w": (2,)})


def test_ours_is_checked_as_strictly_as_theirs():
    ours = make_ours()
    placements = place_all(ours)
    with pytest.raises(ValueError, match="tree: missing head/w; unknown tail/w"):
        scatter(
            {name: value for name, value in ours.items() if name != "head/w"} | {"tail/w": np.zeros(1)},
            placements,
            "tree",
        )


@pytest.mark.parametrize("rule", [Rule("head/w", "other"), Rule("other", "head.weight")])
def test_a_table_with_two_rules_for_a_name_is_refused(rule):
    with pytest.raises(ValueError, match=r"two rules for 'head[/.]w"):
        check_rules([*RULES, rule])


TURNED = check_rules([Rule("layers/kernel", "blocks.{i}.weight", (2, 3, 1, 0)), Rule("kernel", "weight", (2, 0, 1))])


@pytest.mark.parametrize("name", ["layers/kernel", "kernel"])
def test_a_turned_tensor_lies_as_its_axes_say_and_comes_back_bit_exact(name):
    rng = np.random.default_rng(0)
    ours = {"layers/kernel": rng.normal(size=(2, 3, 5, 7, 11)), "kernel": rng.normal(size=(3, 5, 7))}
    placements = place(TURNED, {key: value.shape for key, value in ours.items()})
    theirs = scatter(ours, placements, "ours")
    assert theirs["blocks.1.weight"].shape == (11, 7, 3, 5)
    assert theirs["weight"].shape == (5, 7, 3)
    assert theirs["blocks.1.weight"][10, 6, 2, 4] == ours["layers/kernel"][1, 2, 4, 6, 10]
    np.testing.assert_array_equal(gather(theirs, placements, "file")[name], ours[name])


def test_axes_that_are_not_the_tensor_s_are_refused():
    with pytest.raises(ValueError, match=r"axes=\(2, 0, 1\): must order the 2 axes of 'kernel'"):
        place(TURNED, {"kernel": (3, 4)})
