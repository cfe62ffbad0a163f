"""Configs, headers and pickles that are changed anywhere: what they say is read right, or refused in one line.

A failure prints the seed and the example. The fast suite tries few, `make test-long` many.
"""

import dataclasses
import json
import zipfile

import numpy as np
import pytest
import torch
from brought import GEMMA, NEWER, SMALL, save_base
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutations
from published import CODECS, text_path

from converters import convert
from converters.lazy_tensor import wrap_array
from converters.open_source import list_components
from converters.overrides import Overrides
from converters.plan import plan_component
from converters.registry import COMPONENTS
from converters.source_component import SourceComponent
from omniforcing_jax.io.plain_text import one_line
from omniforcing_jax.io.tensor_file import open_tensors
from omniforcing_jax.strict_json import loads_object

LONGEST_LINE = 2000
NETWORKS = {
    "transformer": (SMALL, NEWER),
    "connectors": (text_path(SMALL), text_path(NEWER)),
    "text": (GEMMA,),
    **{name: (config,) for name, config in CODECS.items()},
}
CASES = [
    (name, naming, config)
    for name, configs in NETWORKS.items()
    for config in configs
    for naming in COMPONENTS[name].namings
]


def counts(few, enough):
    """Run a test with few examples always, and with enough of them in the long suite."""
    return pytest.mark.parametrize("count", [few, pytest.param(enough, marks=pytest.mark.long)])


def many(count):
    """Try so many examples, each for ten seconds at most."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=count, deadline=10_000, database=None, print_blob=True, suppress_health_check=checks)


def attempt(work):
    """Return what some work returns, or None where it refuses in one line; other errors go through."""
    try:
        return work()
    except ValueError as error:
        line = one_line(str(error))
        assert line.isprintable()
        assert 0 < len(line) < LONGEST_LINE
        return None


def tensors_of(name, naming, config):
    """List a network's tensors without values."""
    shapes = {each.source: each.source_shape for each in COMPONENTS[name].expand(config, naming)}
    empty = wrap_array(np.zeros(1, np.float32), "file")
    return {key: dataclasses.replace(empty, shape=shape) for key, shape in shapes.items()}


@counts(15, 300)
def test_a_changed_config_is_read_as_it_says_or_refused(count):
    @many(count)
    @given(case=st.sampled_from(CASES), change=mutations())
    def check(case, change):
        name, naming, config = case
        component, table = COMPONENTS[name], COMPONENTS[name].namings[naming].table

        def convert_it():
            found = table.read(loads_object(json.dumps(change(table.write(config))), "config.json"))
            source = SourceComponent(
                name=name,
                format="test",
                naming=naming,
                where="file",
                tensors=tensors_of(*case),
                component=component,
                config=found,
            )
            return plan_component(source)

        if (plan := attempt(convert_it)) is not None:
            assert sum(map(len, plan.placed.values())) == len(tensors_of(*case))
            assert table.read(table.write(plan.source.config)) == plan.source.config

    check()


@counts(8, 60)
def test_a_changed_header_of_a_file_is_read_as_it_says_or_refused(count, tmp_path):
    save_base(tmp_path / "base.safetensors", SMALL)
    data, file = (tmp_path / "base.safetensors").read_bytes(), open_tensors(tmp_path / "base.safetensors")
    length = int.from_bytes(data[:8], "little")
    header, config = json.loads(data[8 : 8 + length]), json.loads(file.metadata["config"])

    @many(count)
    @given(change=mutations())
    def check(change):
        changed = header | {"__metadata__": {"config": json.dumps(change(config))}}
        text = json.dumps(changed).encode()
        path = tmp_path / "changed.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
        plan = attempt(lambda: convert.prepare([path], tmp_path / "ours", Overrides()))
        assert plan is None or plan.sampler is None
        assert not (tmp_path / "ours").exists()

    check()


@counts(20, 300)
def test_a_changed_pickle_holds_tensors_or_is_refused(count, tmp_path):
    torch.save({"generator": {"a": torch.ones(2, 3), "b": torch.zeros(1)}, "step": 1}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    key = next(name for name in members if name.endswith("data.pkl"))

    @many(count)
    @given(place=st.floats(0, 1, exclude_max=True), cut=st.integers(0, 8), put=st.binary(max_size=4))
    def check(place, cut, put):
        data = members[key]
        spot = int(place * len(data))
        with zipfile.ZipFile(tmp_path / "bad.pt", "w") as archive:
            for name, content in members.items():
                archive.writestr(name, data[:spot] + put + data[spot + cut :] if name == key else content)
        attempt(lambda: list_components(tmp_path / "bad.pt", Overrides(heads=1)))

    check()
