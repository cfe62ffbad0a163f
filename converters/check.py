"""A converted transformer on recorded activations: forwards, cached rollouts and guided trajectories.

Only variants that a model's own config can give are run: the rotation, its grid and the gate multiplier are the
model's. Log-ratio scaling, which no weight knows of, is the variant's. Whose sigma drives the crossings is in no case,
so a wrong choice there shows as an error.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from converters.case import Case, Finding, compare, open_case
from converters.check_forward import run_forward
from converters.check_guided import run_guided
from converters.check_rollout import run_rollout
from omniforcing_jax.config import ModelConfig
from omniforcing_jax.io import weights
from omniforcing_jax.model.transformer import Transformer, transformer_spec
from omniforcing_jax.parallel.spec import abstract
from omniforcing_jax.strict_json import require

Run = Callable[[Case, str, ModelConfig, Transformer], dict[str, np.ndarray]]


def check(folder: Path, path: Path) -> tuple[list[Finding], list[str]]:
    """Run a converted transformer on a case.

    Args:
        folder: Weights folder.
        path: The case: folder and name, without an ending.

    Returns:
        A finding per recorded output, and the variants that were left out with the reason.

    Raises:
        ValueError: Folder or case is missing or damaged, their sizes differ, or no variant is this model's.
    """
    case = open_case(path)
    config = ModelConfig.from_dict(weights.read_config(folder, "transformer"))
    _check_sizes(case, config)
    params = weights.load_component(folder, "transformer", abstract(transformer_spec(config), jnp.float32))
    findings, left = [], []
    run, variants = _find_run(case)
    for variant, words in variants.items():
        if (reason := _refuse(case, variant, words, config)) is not None:
            left.append(f"{variant}: left out, {reason}")
            continue
        scaled = dataclasses.replace(config, log_ratio="log" in variant)
        for name, value in run(case, variant, scaled, params).items():
            if name in case.tensors:
                findings.append(compare(case, name, value))
    if not findings:
        raise ValueError(f"{path}: no variant is this model's: {'; '.join(left)}")
    return findings, left


def _find_run(case: Case) -> tuple[Run, dict[str, Any]]:
    """Say how a case is run, and on which variants of it."""
    if "runs" in case.settings:
        return run_rollout, case.settings["runs"]
    if "guidance" in case.settings:
        return run_guided, {"guided": None}
    return run_forward, case.static("variants")


def _check_sizes(case: Case, config: ModelConfig) -> None:
    video, audio = case.latents("video"), case.latents("audio")
    found = (video.shape[2 if video.ndim == 5 else -1], audio.shape[-1])
    wanted = (config.video.latent_channels, config.audio.latent_channels)
    require(found == wanted, f"{case.name}: latent channels", found, f"the model has {wanted}")
    captions = case["in.video_context"].shape[-1]
    rule = f"the model has {config.caption_channels}"
    require(captions == config.caption_channels, f"{case.name}: caption channels", captions, rule)


def _refuse(case: Case, variant: str, words: Any, config: ModelConfig) -> str | None:
    """Say why a variant is not this model's; None where it is."""
    uses = {**case.settings, **words} if isinstance(words, dict) else case.settings
    own = {
        "rope": config.rotary.kind.value,
        "freq_grid": config.rotary.grid.value,
        "av_ca_timestep_scale_multiplier": config.gate_multiplier,
    }
    for key, value in own.items():
        if uses.get(key, value) != value:
            return f"{key} is {uses[key]} there and {value} here"
    sinks = case.settings.get("sinks", 0)
    if sinks != config.sinks:
        return f"{sinks} sinks there and {config.sinks} here"
    return None


def lines(findings: Sequence[Finding], left: Sequence[str]) -> Iterator[str]:
    """List findings and what was left out, for people."""
    yield from map(str, findings)
    yield from left
    beyond = sum(not finding.within for finding in findings)
    yield f"{len(findings)} outputs, {beyond} beyond their limits"
