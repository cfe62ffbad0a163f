"""The package works under any name: the wheel installs it inside another one."""

import os
import subprocess
import sys
from pathlib import Path

from published import save_diffusers

ROOT = Path(__file__).parents[2]
REPORT = "import sys; assert 'converters' not in sys.modules; assert 'elsewhere.converters.cli' in sys.modules"


def test_commands_run_where_the_package_is_part_of_another_one(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "__init__.py").write_text("")
    (tmp_path / "elsewhere" / "converters").symlink_to(ROOT / "converters")
    (tmp_path / "omniforcing_jax").symlink_to(ROOT / "omniforcing_jax")
    save_diffusers(tmp_path / "pipeline")
    words = ["inspect", str(tmp_path / "pipeline")]
    program = f"from elsewhere.converters import cli; assert cli.main({words}) == 0; {REPORT}"
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "transformer: diffusers" in done.stdout
