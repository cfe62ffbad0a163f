"""Rule tables: bijections on keys, bit-exact both ways, strict about every kind of fault."""

import jax
import numpy as np
import pytest
from conversion import to_native, to_source
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.component import LTX2, Component, Naming
from converters.config_table import ConfigTable
from converters.native_component import rename_tensors, wrap_tree
from converters.rules import Rule, check_rules, expand_rules
from converters.section import nest

RULES = (Rule("layers/a/w", "blocks.{i}.a.weight"), Rule("layers/b", "blocks.{i}.b"), Rule("head/w", "head.weight"))
TRANSPOSED = (Rule("layers/kernel", "blocks.{i}.weight", (2, 3, 1, 0)), Rule("kernel", "weight", (2, 0, 1)))


def make_component(rules=RULES):
    """A component whose config is the shapes of its tensors, by path."""
    table = ConfigTable(config=None, where="", entries=())
    return Component(
        name="toy",
        config=None,
        abstract=lambda shapes: nested({name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes}),
        namings={LTX2: Naming(rules=lambda shapes: rules, table=table)},
    )


def nested(named):
    return nest({name.replace("/", "."): value for name, value in named.items()})


def make_named(layers=3, dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = {"layers/a/w": (layers, 2, 3), "layers/b": (layers,), "head/w": (4, 2)}
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def shapes_of(named):
    return tuple((name, value.shape) for name, value in named.items())


def export(named, rules=RULES):
    return to_source(make_component(rules), LTX2, shapes_of(named), nested(named))


def convert(tensors, named, rules=RULES):
    return to_native(make_component(rules), LTX2, shapes_of(named), tensors, where="file")


def test_layers_are_spelled_out_and_their_shapes_lose_the_layer_axis():
    assert {name: value.shape for name, value in export(make_named(layers=2)).items()} == {
        "blocks.0.a.weight": (2, 3),
        "blocks.1.a.weight": (2, 3),
        "blocks.0.b": (),
        "blocks.1.b": (),
        "head.weight": (4, 2),
    }


def test_a_source_tensor_is_one_run_of_bytes_of_a_native_one():
    named = make_named()
    tensors = export(named)
    stacked = convert(tensors, named)["layers"]["a"]["w"]
    size = 2 * 3 * 4
    for i in range(3):
        assert stacked.tobytes()[i * size : (i + 1) * size] == tensors[f"blocks.{i}.a.weight"].tobytes()


@settings(deadline=None, max_examples=30)
@given(
    layers=st.integers(1, 12),
    parts=st.sets(st.sampled_from([rule.native for rule in RULES]), min_size=1),
    order=st.randoms(use_true_random=False),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
)
def test_there_and_back_is_bit_exact_for_any_part_and_order(layers, parts, order, dtype):
    named = {name: value for name, value in make_named(layers, dtype).items() if name in parts}
    tensors = list(export(named).items())
    order.shuffle(tensors)
    back = convert(dict(tensors), named)
    assert {leaf.dtype for leaf in jax.tree.leaves(back)} == {np.dtype(dtype)}
    jax.tree.map(np.testing.assert_array_equal, back, nested(named))


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_any_missing_renamed_or_mis_shaped_key_is_named(data):
    named = make_named()
    tensors = export(named)
    key = data.draw(st.sampled_from(sorted(tensors)))
    fault = data.draw(st.sampled_from(["missing", "unknown", "mis-shaped"]))
    value = tensors.pop(key) if fault != "unknown" else tensors[key]
    if fault == "unknown":
        tensors[f"{key}_scale"] = value
    if fault == "mis-shaped":
        tensors[key] = np.append(value, 0)
    with pytest.raises(ValueError, match=rf"^file: {fault} {key}"):
        convert(tensors, named)


def test_layers_of_different_dtypes_are_refused():
    named = make_named()
    tensors = export(named) | {"blocks.1.b": np.zeros((), np.float16)}
    with pytest.raises(ValueError, match=r"file: blocks\.1\.b is float16, its other layers are float32"):
        convert(tensors, named)


def test_a_native_tensor_without_a_rule_is_named():
    with pytest.raises(ValueError, match="no rule for 'tail/w'"):
        expand_rules(RULES, {"tail/w": (2,)})


def test_a_component_without_a_table_for_a_naming_is_named():
    named = make_named()
    native = wrap_tree(make_component(), shapes_of(named), nested(named))
    with pytest.raises(ValueError, match="toy has no table for diffusers"):
        rename_tensors(native, "diffusers")


@pytest.mark.parametrize("rule", [Rule("head/w", "other"), Rule("other", "head.weight")])
def test_a_table_with_two_rules_for_a_name_is_refused(rule):
    with pytest.raises(ValueError, match=r"two rules for 'head[/.]w"):
        check_rules([*RULES, rule])


def test_numbers_of_layers_go_to_rows_in_order_and_none_is_left_or_given_twice():
    def expand(*numbers):
        rules = [Rule(f"stack{i}", "blocks.{i}.w", numbers=each) for i, each in enumerate(numbers)]
        return expand_rules(rules, {rule.native: (2, 5) for rule in rules})

    assert [(one.native, one.layer, one.source) for one in expand((3, 0), (2, 1))] == [
        ("stack0", 0, "blocks.3.w"),
        ("stack0", 1, "blocks.0.w"),
        ("stack1", 0, "blocks.2.w"),
        ("stack1", 1, "blocks.1.w"),
    ]
    with pytest.raises(ValueError, match=r"two rules for 'blocks\.1\.w'"):
        expand((0, 1), (1, 2))
    for numbers in ((1,), (1, 2, 3)):
        with pytest.raises(ValueError, match=rf"'stack0' has 2 layers, its rule {len(numbers)} numbers"):
            expand(numbers)


def test_a_transposed_tensor_is_as_its_axes_say_and_comes_back_bit_exact():
    rng = np.random.default_rng(0)
    named = {"layers/kernel": rng.normal(size=(2, 3, 5, 7, 11)), "kernel": rng.normal(size=(3, 5, 7))}
    tensors = export(named, TRANSPOSED)
    assert tensors["blocks.1.weight"].shape == (11, 7, 3, 5)
    assert tensors["weight"].shape == (5, 7, 3)
    assert tensors["blocks.1.weight"][10, 6, 2, 4] == named["layers/kernel"][1, 2, 4, 6, 10]
    jax.tree.map(np.testing.assert_array_equal, convert(tensors, named, TRANSPOSED), nested(named))


def test_axes_that_are_not_the_tensor_s_are_refused():
    with pytest.raises(ValueError, match=r"axes=\(2, 0, 1\): must order the 2 axes of 'kernel'"):
        expand_rules(TRANSPOSED, {"kernel": (3, 4)})
