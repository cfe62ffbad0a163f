"""`python -m converters check`: recorded outputs are within their limits, and a changed weight is found."""

import pytest
from golden_case import FOLDER, Case, needs_golden, read_json

from converters.cli import main
from omniforcing_jax.io.tensor_file import open_tensors, write_tensors

pytestmark = needs_golden
CASE = "a_teacher_bundled"
LENDER = "a_teacher_core100"
CHANGED = "proj_out.bias"  # here video/head/b
# A case, what of its results is one of a network's, and whose sigma drives the crossings where the case was recorded.
CASES = {
    "a_teacher_core100": ("out.s_*", "cross"),
    "b_causal_v2_masked": ("out.*", "own"),
    "c_causal_v1_masked": ("out.*", "own"),
    "d2_rolling_window_derived": ("out.*", "own"),
    "d_rollout_v2": ("*", "own"),
    "f_guided_core100": ("out.*", "cross"),
    "f_guided_bundled": ("out.*", "own"),
}
LONG = {"a_teacher_core100", "d_rollout_v2", "f_guided_bundled"}  # their compilation


def convert(source, out, *flags):
    """Convert golden weights as the OmniForcing they are, with the heads of their JSON."""
    heads = read_json("weights_main")["config"]["num_attention_heads"]
    command = ["convert", "--from", source, "--heads", heads, "--release", "omniforcing", "--out", out, *flags]
    assert main([str(word) for word in command]) == 0


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    convert(FOLDER / "weights_main.safetensors", folder / "right")
    file = open_tensors(FOLDER / "weights_main.safetensors")
    tensors = {name: file.read(name) for name in file.entries}
    tensors[CHANGED] = tensors[CHANGED] + 1
    layout = {name: (value.dtype, value.shape) for name, value in tensors.items()}
    write_tensors(folder / "wrong.safetensors", layout, lambda name: tensors[name])
    convert(folder / "wrong.safetensors", folder / "wrong")
    return folder


def test_recorded_outputs_are_within_their_limits_and_a_changed_weight_is_found(weights, capsys):
    variants = read_json(LENDER)["config"]["variants"]
    supposed = {"rope": "interleaved", "freq_grid": "float32", "av_ca_timestep_scale_multiplier": 1}
    matching = [name for name in read_json(CASE)["config"]["variants"] if supposed.items() <= variants[name].items()]
    assert matching
    assert main(["check", "--weights", str(weights / "right"), "--case", str(FOLDER / CASE)]) == 0
    told = capsys.readouterr().out
    assert all(f"out.{name}.{stream}_velocity: largest" in told for name in matching for stream in ("video", "audio"))
    assert f"{2 * len(matching)} outputs, 0 beyond their limits" in told
    assert main(["check", "--weights", str(weights / "wrong"), "--case", str(FOLDER / CASE)]) == 1
    assert f"{2 * len(matching)} outputs, {len(matching)} beyond their limits" in capsys.readouterr().out


def test_the_changed_weight_is_named(weights, capsys):
    capsys.readouterr()
    assert main(["diff", str(weights / "right"), str(weights / "wrong")]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("config folder.name")]
    assert line.startswith("transformer/video/head/b: ")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.long if n in LONG else ()) for n in CASES])
def test_every_result_of_a_case_is_compared_and_within_its_limit(name, tmp_path, capsys):
    case, (globs, timesteps) = Case(name), CASES[name]
    other = case.config.get("inputs", "").rpartition(" of ")[2].partition(" ")[0]
    uses = (read_json(other)["config"] if other else {}) | case.config
    split = uses.get("rope") == "split" or globs == "out.s_*"
    flags = ["--rotary", "split", "--grid", "float64", "--gate-multiplier", 1000] if split else []
    source = FOLDER / f"{case.config['weights']}.safetensors"
    convert(source, tmp_path / "ours", "--timesteps", timesteps, *flags)
    capsys.readouterr()
    assert main(["check", "--weights", str(tmp_path / "ours"), "--case", str(FOLDER / name)]) == 0
    told = capsys.readouterr().out
    compared = {line.partition(": largest")[0] for line in told.splitlines() if ": largest error" in line}
    wanted = set(case.results(globs))
    assert compared == wanted
    assert f"{len(wanted)} outputs, 0 beyond their limits" in told


@pytest.mark.parametrize(
    ("case", "complaint"), [("e_rope", "not a recorded forward"), ("nothing", "nothing.json: No such file")]
)
def test_what_is_no_recorded_forward_is_refused(weights, capsys, case, complaint):
    assert main(["check", "--weights", str(weights / "right"), "--case", str(FOLDER / case)]) == 2
    assert complaint in capsys.readouterr().err
