"""One golden case: its JSON, its tensors, its limits, and a record of what has been compared.

Sizes, layouts, sigmas and variants come from the JSON. Nothing here knows a number of its own,
so another set of cases in the same format is checked by the same tests.
"""

import fnmatch
import json
import os
from pathlib import Path

import numpy as np
import pytest

from omniforcing_jax.io.tensor_file import open_tensors

PROJECT = Path(__file__).resolve().parents[2]


def find_folder(variable: str = "OMNIFORCING_GOLDEN", name: str = "golden") -> Path | None:
    """Find golden data: $OMNIFORCING_GOLDEN, else ../shared/golden beside the project; or another set's."""
    folder = Path(os.environ.get(variable) or PROJECT.parent / "shared" / name)
    return folder if (folder / "index.json").is_file() else None


FOLDER = find_folder()
needs_golden = pytest.mark.skipif(
    FOLDER is None, reason="no golden data at $OMNIFORCING_GOLDEN nor at ../shared/golden beside the project"
)


def read_json(name: str, folder: Path | None = FOLDER) -> dict:
    """Read one JSON of a set; empty where there is no set, so that tests can be collected."""
    return json.loads((folder / f"{name}.json").read_text()) if folder else {}


def list_variants(name: str, key: str = "variants", folder: Path | None = FOLDER) -> list[str]:
    """List the variants (or runs) of a case, to parametrise a test with."""
    return list(read_json(name, folder).get("config", {}).get(key, {}))


class Case:
    """A case and what has been compared with it so far."""

    def __init__(self, name: str, folder: Path | None = FOLDER):
        self.name, self.meta = name, read_json(name, folder)
        self.config = self.meta["config"]
        file = open_tensors(folder / self.meta["file"])
        self.tensors = {key: file.read(key) for key in file.entries}
        self.compared: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def names(self, *patterns: str) -> list[str]:
        """List the tensors that match any of the globs."""
        return [name for name in self.tensors if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]

    def find_limit(self, name: str) -> dict:
        """Find the first rule that matches a tensor's name."""
        for rule in self.meta["limits"]:
            if fnmatch.fnmatch(name, rule["match"]):
                return rule
        raise AssertionError(f"{name}: no limit in {self.meta['file']}")

    def compare(self, name: str, value, own_tables: bool = False) -> None:
        """Compare a value with a recorded tensor, within the case's own limit."""
        value, recorded, rule = np.asarray(value), self.tensors[name], self.find_limit(name)
        assert value.shape == recorded.shape, f"{name}: {value.shape} instead of {recorded.shape}"
        self.compared.add(name)
        if rule.get("exact"):
            np.testing.assert_array_equal(value, recorded, err_msg=name)
            return
        absolute = rule.get("atol", 0.0)
        if own_tables:
            absolute = rule.get("atol_own_tables", absolute)
        allowed = absolute + rule.get("rtol", 0.0) * np.abs(recorded)
        allowed = allowed + rule.get("rel_to_largest", 0.0) * np.abs(recorded).max(initial=0.0)
        assert np.any(allowed > 0), f"{name}: limit {rule} allows nothing and does not say exact"
        excess = np.abs(value.astype(np.float64) - recorded) - allowed
        assert np.all(excess <= 0), f"{name}: off by {np.abs(value - recorded).max():.2e}, limit {rule}"

    def results(self, *patterns: str) -> set[str]:
        """List what was recorded as a result (of these globs): not inputs, noises or draws."""
        names = self.names(*(patterns or ("*",)))
        inputs = (".in.", "noise", "draw")
        return {name for name in names if not any(word in f".{name}" for word in inputs)}

    def assert_all_compared(self, *patterns: str) -> None:
        """Check that no recorded result (of these globs) was left out."""
        left_out = self.results(*patterns) - self.compared
        assert not left_out, f"never compared: {sorted(left_out)}"


def check_claims(case: Case, claimed: dict[str, tuple[str, list[str]]], keys: tuple[str, ...]) -> None:
    """Check that a test file claims a case, with every result in it.

    Args:
        case: The case.
        claimed: By case the test file, and globs of results; `{variant}` stands for each of its variants.
        keys: Keys of its config that list variants.
    """
    assert case.name in claimed, f"{case.name} is not checked by any test"
    file, globs = claimed[case.name]
    assert (Path(__file__).parent / f"{file}.py").is_file()
    variants = [name for key in keys for name in case.config.get(key, {})]
    globs = [glob.format(variant=variant) for glob in globs for variant in variants or [""]]
    unclaimed = {name for name in case.results() if not any(fnmatch.fnmatch(name, glob) for glob in globs)}
    assert not unclaimed, f"{case.name}: not checked by any test: {sorted(unclaimed)}"
