"""The launch files, run as they are beside stand-ins for what they call."""

import fnmatch
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACE = {"CLUSTER": "c", "PROJECT": "p", "ZONE": "z", "NAME": "n"}
RECIPE = ["stage2_ode", "--student", "/data/a folder", "--steps", "5"]


@pytest.fixture
def launch(tmp_path):
    """Run a launch file where `xpk` and `srun` print their arguments, one a line."""
    for name in ("xpk", "srun"):
        (tmp_path / name).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        (tmp_path / name).chmod(0o755)

    def run(file, *arguments, cwd=ROOT, **environment):
        paths = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        command = ["bash", str(ROOT / "launch" / file), *arguments]
        return subprocess.run(command, cwd=cwd, env=paths | environment, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize(
    ("tpu", "mesh", "batch"), [("v5p-128", "2,32,1", 64), ("v5p-64", "1,32,1", 32), ("v6e-128", "1,16,8", 16)]
)
def test_xpk_is_given_the_recipe_on_the_whole_slice(launch, tpu, mesh, batch):
    made = launch("xpk.sh", *RECIPE, TPU=tpu, **PLACE)
    assert made.returncode == 0, made.stderr
    *options, command = made.stdout.splitlines()
    assert options[: options.index("--tpu-type") + 2][-2:] == ["--tpu-type", tpu]
    shape = mesh.replace(",", "\\,")
    assert f"python -m experiments.stage2_ode --student /data/a\\ folder --steps 5 --mesh {shape}" in command
    assert command.endswith(f"--batch {batch}")
    assert "jax[tpu]==0." in command


def test_srun_is_given_the_recipe_on_all_gpus(launch, tmp_path):
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to("/bin/true")
    made = launch("slurm.sbatch", *RECIPE, cwd=tmp_path, SLURM_NTASKS="64")
    wanted = ["--kill-on-bad-exit=1", ".venv/bin/python", "-m", "experiments.stage2_ode", *RECIPE[1:]]
    assert made.stdout.splitlines() == [*wanted, "--mesh", "1,64,1", "--batch", "64"]


PAIRS = [
    "make_pairs",
    "--teacher",
    "/data/ltx2",
    "--contexts",
    "/data/contexts",
    "--negative",
    "",
    "--folder",
    "/data/p",
]


def test_pairs_are_made_by_each_host_or_gpu_alone(launch, tmp_path):
    command = launch("xpk.sh", *PAIRS, **PLACE).stdout.splitlines()[-1]
    assert command.endswith("--negative '' --folder /data/p --mesh 1\\,1\\,4 --batch 1")
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to("/bin/true")
    made = launch("slurm.sbatch", *PAIRS, cwd=tmp_path, SLURM_NTASKS="64")
    assert made.stdout.splitlines()[3:] == ["experiments.make_pairs", *PAIRS[1:]]


@pytest.mark.parametrize("file", ["xpk.sh", "slurm.sbatch"])
def test_launch_files_have_no_error_of_syntax(file):
    checked = subprocess.run(["bash", "-n", str(ROOT / "launch" / file)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_image_has_what_a_recipe_needs_and_nothing_heavy():
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]

    def is_sent(path):  # a pattern is of the root's own files and folders, unless it begins with **/
        parts = Path(path).parts
        anywhere, at_root = ([p for p in patterns if p.startswith("**/") is deep] for deep in (True, False))
        dropped = any(fnmatch.fnmatchcase(part, p[3:]) for part in parts for p in anywhere)
        return not dropped and not any(fnmatch.fnmatchcase(parts[0], p) for p in at_root)

    needed = ("requirements.txt", "constraints.txt", "pyproject.toml", "README.md", "experiments/stage2_ode.py")
    needed += ("omniforcing_jax/train/data.py", "converters/plan.py", "experiments/chime/world/pairs.py")
    needed += ("omniforcing_jax/assets/chime/codecs/vocoder/model.safetensors",)
    assert all((ROOT / path).exists() for path in needed)
    assert [path for path in needed if not is_sent(path)] == []
    heavy = (".git/objects/a", ".venv/bin/python", "runs/stage2/weights", "out/x", "ltx-2.safetensors", "pairs/part")
    assert [path for path in (*heavy, "experiments/__pycache__/a.pyc") if is_sent(path)] == []


def test_a_mesh_that_is_told_stays(launch):
    told = [*RECIPE, "--mesh", "4,16,1", "--batch", "64"]
    assert "2,32" not in launch("xpk.sh", *told, **PLACE).stdout


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (RECIPE, {}, "set CLUSTER"),
        (["stage9"], PLACE, "'stage9' is no recipe"),
        (RECIPE, {**PLACE, "TPU": "v3-8"}, "TPU=v3-8"),
    ],
)
def test_what_is_missing_is_said_in_one_line(launch, arguments, environment, said):
    made = launch("xpk.sh", *arguments, **environment)
    assert (made.returncode, made.stdout) == (2, "")
    assert said in made.stderr
    assert made.stderr.count("\n") == 1
