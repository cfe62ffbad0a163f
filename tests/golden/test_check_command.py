"""`python -m converters check`: recorded outputs are within their limits, and a changed weight is found."""

import pytest
from golden_case import FOLDER, needs_golden, read_json

from converters.cli import main
from omniforcing_jax.tensor_file import open_tensors, write_tensors

pytestmark = needs_golden
CASE = "a_teacher_bundled"
LENDER = "a_teacher_core100"


def convert(source, out):
    """Convert golden weights as the OmniForcing they are, with the heads of their JSON."""
    heads = read_json("weights_main")["config"]["num_attention_heads"]
    assert main(["convert", "--from", str(source), "--heads", str(heads), "--out", str(out)]) == 0


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    convert(FOLDER / "weights_main.safetensors", folder / "right")
    file = open_tensors(FOLDER / "weights_main.safetensors")
    tensors = {name: file.read(name) for name in file.entries}
    tensors["proj_out.bias"] = tensors["proj_out.bias"] + 1
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


@pytest.mark.parametrize(
    ("case", "complaint"), [("e_rope", "not a recorded forward"), ("nothing", "nothing.json: No such file")]
)
def test_what_is_no_recorded_forward_is_refused(weights, capsys, case, complaint):
    assert main(["check", "--weights", str(weights / "right"), "--case", str(FOLDER / case)]) == 2
    assert complaint in capsys.readouterr().err
