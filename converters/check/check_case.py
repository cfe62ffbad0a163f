"""A converted transformer on a recorded case: a forward, a cached rollout or a guided trajectory.

Only variants that fit the model's own config are run: rotary pairs, frequency grid and gate multiplier are the model's.
Log-ratio scaling, which no weight tells, is the variant's. No case says whose sigma drives the crossings, so a wrong
`--timesteps` shows as an error.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from omniforcing_jax.config import ModelConfig
from omniforcing_jax.io import weights
from omniforcing_jax.model.transformer import Transformer, transformer_spec
from omniforcing_jax.parallel.spec import abstract
from omniforcing_jax.strict_json import require

from .forward import run_forward
from .guided import run_guided
from .recorded_case import Finding, RecordedCase, compare_output, open_case
from .rollout import run_rollout
from .window import has_window, run_window

RunCase = Callable[[RecordedCase, str, ModelConfig, Transformer], dict[str, np.ndarray]]


def check_case(folder: Path, path: Path) -> tuple[list[Finding], list[str]]:
    """Run a converted transformer on a case.

    Args:
        folder: Weights folder.
        path: The case: folder and name, without an ending.

    Returns:
        A finding per recorded output, and the variants that were left out with the reason.

    Raises:
        ValueError: Folder or case is missing or damaged, their sizes differ, or no variant fits this model.
    """
    case = open_case(path)
    config = ModelConfig.from_dict(weights.read_config(folder, "transformer"))
    _check_sizes(case, config)
    params = weights.load_component(folder, "transformer", abstract(transformer_spec(config), jnp.float32))
    findings, left_out = [], []
    run, variants = _find_run(case)
    for variant, settings in variants.items():
        if (reason := _find_mismatch(case, settings, config)) is not None:
            left_out.append(f"{variant}: left out, {reason}")
            continue
        scaled = dataclasses.replace(config, log_ratio="log" in variant)
        for name, value in run(case, variant, scaled, params).items():
            if name in case.tensors:
                findings.append(compare_output(case, name, value))
    if not findings:
        raise ValueError(f"{path}: no variant fits this model: {'; '.join(left_out)}")
    return findings, left_out


def _find_run(case: RecordedCase) -> tuple[RunCase, dict[str, Any]]:
    """Return the function that runs a case, and the settings of its variants by name."""
    if "runs" in case.settings:
        return run_window if has_window(case) else run_rollout, case.settings["runs"]
    if "guidance" in case.settings:
        return run_guided, {"guided": None}
    return run_forward, case.setting("variants")


def _check_sizes(case: RecordedCase, config: ModelConfig) -> None:
    video, audio = case.latents("video"), case.latents("audio")
    found = (video.shape[2 if video.ndim == 5 else -1], audio.shape[-1])
    expected = (config.video.latent_channels, config.audio.latent_channels)
    require(found == expected, f"{case.name}: latent channels", found, f"must be {expected}, as in the model")
    contexts = next((name for name in case.tensors if name.endswith("in.video_context")), "in.video_context")
    captions = case[contexts].shape[-1]
    width = config.video.width if config.caption_channels is None else config.caption_channels
    require(captions == width, f"{case.name}: caption channels", captions, f"must be {width}, as in the model")


def _find_mismatch(case: RecordedCase, variant: Any, config: ModelConfig) -> str | None:
    """Say how a variant's settings differ from the model's; None where they do not."""
    settings = {**case.settings, **variant} if isinstance(variant, dict) else case.settings
    model = {
        "rope": config.rotary.kind.value,
        "freq_grid": config.rotary.grid.value,
        "av_ca_timestep_scale_multiplier": config.gate_multiplier,
        "sinks": config.sinks,
    }
    if settings.get("camera") and config.camera is None:
        return "it has cameras, and the model no camera attention"
    recorded = {"sinks": 0, **settings}
    for key, value in model.items():
        if recorded.get(key, value) != value:
            return f"{key} is {recorded[key]} there and {value} here"
    return None


def report(findings: Sequence[Finding], left_out: Sequence[str]) -> Iterator[str]:
    """Yield lines for people: the findings, the variants that were left out, and the totals."""
    yield from map(str, findings)
    yield from left_out
    beyond = sum(not finding.within for finding in findings)
    yield f"{len(findings)} outputs, {beyond} beyond their limits"
