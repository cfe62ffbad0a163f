"""A converted transformer on recorded activations: inputs and outputs of one forward, in the golden format.

A case is `NAME.json` beside `NAME.safetensors`: its variants, its inputs (`in.*`), its outputs (`out.VARIANT.*`) and
their limits. Only variants that a model's own config can give are run: the rotation, its grid and the gate multiplier
are the model's. Whose sigma drives the crossings is in no case, so a wrong choice there shows as an error.
"""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from converters.files import read_json_object
from omniforcing_jax import weights
from omniforcing_jax.config import ModelConfig, require
from omniforcing_jax.layout import Block
from omniforcing_jax.model.place import clip_block, place, rotaries
from omniforcing_jax.model.transformer import Transformer, predict, text_kv, transformer_spec
from omniforcing_jax.model.view import Sigmas, View, bidirectional, masked, one_sigma
from omniforcing_jax.nn.spec import abstract
from omniforcing_jax.schedule import to_x0
from omniforcing_jax.tensor_file import open_tensors

NOT_A_CLIP = ("partial",)  # variants with inputs of their own


@dataclass(frozen=True, kw_only=True)
class Finding:
    """How far one output is from the recorded one.

    Attributes:
        name: The recorded tensor.
        absolute: Largest difference.
        relative: The same over the largest recorded value.
        within: Whether every value is within the case's limit.
        limit: The rule, in words.
    """

    name: str
    absolute: float
    relative: float
    within: bool
    limit: str

    def __str__(self) -> str:
        """Say it in a line."""
        verdict = "within" if self.within else "BEYOND"
        figures = f"largest error {self.absolute:.2e} absolute, {self.relative:.2e} relative"
        return f"{self.name}: {figures}, {verdict} {self.limit}"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A recorded case: its JSON, its tensors, and those of the case whose inputs it shares."""

    name: str
    settings: Mapping[str, Any]
    limits: Sequence[Mapping[str, Any]]
    tensors: Mapping[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        """Return a tensor, or say that it is missing."""
        if name not in self.tensors:
            raise ValueError(f"{self.name}: missing {name}")
        return self.tensors[name]


def open_case(path: Path) -> Case:
    """Open a case.

    Args:
        path: Folder and name, without an ending.

    Raises:
        ValueError: A file is missing or damaged, or is no case of a forward; names it.
    """
    meta = read_json_object(path.with_name(f"{path.name}.json"))
    settings, limits = meta.get("config"), meta.get("limits")
    if not isinstance(settings, dict) or not isinstance(settings.get("variants"), dict) or not isinstance(limits, list):
        raise ValueError(f"{path}.json: not a recorded forward, it lacks variants or limits")
    tensors: dict[str, np.ndarray] = {}
    if (other := _shared(settings, path)) is not None:
        lender = open_case(other)
        tensors |= {name: value for name, value in lender.tensors.items() if name.startswith("in.")}
        variants = {name: lender.settings["variants"].get(name) for name in settings["variants"]}
        settings = {**lender.settings, **settings, "variants": variants}
    file = open_tensors(path.with_name(f"{path.name}.safetensors"))
    tensors |= {name: file.read(name) for name in file.entries}
    return Case(name=path.name, settings=settings, limits=limits, tensors=tensors)


def _shared(settings: Mapping[str, Any], path: Path) -> Path | None:
    """Find the case that lends its inputs, given as `in.* of NAME`."""
    words = str(settings.get("inputs", "")).rpartition(" of ")
    return path.with_name(words[2]) if words[1] else None


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
    for variant, words in case.settings["variants"].items():
        if (reason := _refuse(case, variant, words, config)) is not None:
            left.append(f"{variant}: left out, {reason}")
            continue
        for name, value in _run(case, variant, words, config, params).items():
            if name in case.tensors:
                findings.append(_compare(case, name, value))
    if not findings:
        raise ValueError(f"{path}: no variant is this model's: {'; '.join(left)}")
    return findings, left


def _check_sizes(case: Case, config: ModelConfig) -> None:
    grid_last = case["in.video_latent"].ndim == 5
    found = (case["in.video_latent"].shape[2 if grid_last else -1], case["in.audio_latent"].shape[-1])
    wanted = (config.video.latent_channels, config.audio.latent_channels)
    require(found == wanted, f"{case.name}: latent channels", found, f"the model has {wanted}")
    captions = case["in.video_context"].shape[-1]
    rule = f"the model has {config.caption_channels}"
    require(captions == config.caption_channels, f"{case.name}: caption channels", captions, rule)


def _refuse(case: Case, variant: str, words: Any, config: ModelConfig) -> str | None:
    """Say why a variant is not this model's; None where it is."""
    uses = words if isinstance(words, dict) else case.settings
    own = {
        "rope": config.rotary.kind.value,
        "freq_grid": config.rotary.grid.value,
        "av_ca_timestep_scale_multiplier": config.gate_multiplier,
    }
    for key, value in own.items():
        if uses.get(key, value) != value:
            return f"{key} is {uses[key]} there and {value} here"
    if ("log" in variant) != config.log_ratio:
        return f"log-ratio scaling is {'log' in variant} there and {config.log_ratio} here"
    sinks = case.settings.get("sinks", 0)
    if sinks != config.sinks:
        return f"{sinks} sinks there and {config.sinks} here"
    return "its clip has inputs of its own" if variant in NOT_A_CLIP else None


def _run(case: Case, variant: str, words: Any, config: ModelConfig, params: Transformer) -> dict[str, np.ndarray]:
    """Run one variant; returns velocities and clean estimates as they are recorded."""
    frames, audio_frames, grid = (case.settings[key] for key in ("frames", "audio_frames", "grid"))
    tables = rotaries(config, place(config, clip_block(frames, audio_frames), tuple(grid)))
    shown = words.get("text_mask", True) if isinstance(words, dict) else case.settings.get("text_mask", False)
    mask = jnp.asarray(case["in.text_mask"], jnp.int32) if shown else None
    if isinstance(words, dict):
        sigmas = _teacher_sigmas(case, str(words.get("timesteps", "")))
        view = bidirectional(config, tables, sigmas)
    else:
        sigmas = _student_sigmas(case, variant)
        blocks = tuple(Block(*block) for block in case.settings["blocks"])
        is_free = variant == "no_mask"
        view = bidirectional(config, tables, sigmas) if is_free else masked(config, tables, sigmas, blocks)
    video, audio = case["in.video_latent"], case["in.audio_latent"]
    tokens = _as_tokens(video)
    velocities = _forward(params, config, tokens, audio, view, case["in.video_context"], case["in.audio_context"], mask)
    result = {}
    for stream, x, levels, velocity in (
        ("video", tokens, sigmas.video, velocities[0]),
        ("audio", audio, sigmas.audio, velocities[1]),
    ):
        each = jnp.repeat(levels, x.shape[1] // levels.shape[1], axis=1)
        like = video if stream == "video" else audio
        x0 = to_x0(jnp.asarray(x), velocity, jnp.broadcast_to(each, x.shape[:2]))
        result[f"out.{variant}.{stream}_velocity"] = _as_latents(np.asarray(velocity), like)
        result[f"out.{variant}.{stream}_x0"] = _as_latents(np.asarray(x0), like)
    return result


def _forward(
    params: Transformer,
    config: ModelConfig,
    video: np.ndarray,
    audio: np.ndarray,
    view: View,
    context_v: np.ndarray,
    context_a: np.ndarray,
    mask: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Run text attention's keys and values and one forward, compiled without much optimisation: it runs once."""
    quick = {"xla_backend_optimization_level": 0}
    read = jax.jit(text_kv, compiler_options=quick)
    text = read(params, jnp.asarray(context_v), jnp.asarray(context_a), mask)
    run = jax.jit(predict, static_argnames=("config",), compiler_options=quick)
    prediction = run(params, config, jnp.asarray(video), jnp.asarray(audio), view, text)
    return prediction.video, prediction.audio


def _teacher_sigmas(case: Case, words: str) -> Sigmas:
    """Read a variant's noise levels from its words: per token, one per stream, or one for both."""
    scalar_v, scalar_a = case["in.sigma_video"], case["in.sigma_audio"]
    if "both" in words:
        scalar_a = scalar_v
    levels = [scalar_v[:, None], scalar_a[:, None]]
    if "token" in words:
        levels = [case[f"in.token_sigma_{stream}"][..., 0] for stream in ("video", "audio")]
    return Sigmas(*(jnp.asarray(x) for x in (*levels, scalar_v, scalar_a)))


def _student_sigmas(case: Case, variant: str) -> Sigmas:
    if variant == "scalar":
        return one_sigma(jnp.asarray(case["in.scalar_sigma"]))
    return Sigmas(jnp.asarray(case["in.video_sigma"]), jnp.asarray(case["in.audio_sigma"]))


def _as_tokens(video: np.ndarray) -> np.ndarray:
    """Flatten recorded latents [B, F, C, H, W] into tokens; tokens stay as they are."""
    if video.ndim == 3:
        return video
    last = np.moveaxis(video, 2, -1)
    return last.reshape(last.shape[0], -1, last.shape[-1])


def _as_latents(tokens: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The inverse, where the recorded latents have a grid."""
    if like.ndim == 3:
        return tokens
    batch, frames, channels, rows, columns = like.shape
    return np.moveaxis(tokens.reshape(batch, frames, rows, columns, channels), -1, 2)


def _compare(case: Case, name: str, value: np.ndarray) -> Finding:
    """Compare an output within the case's limit for rotary tables that are our own."""
    recorded = case[name].astype(np.float64)
    require(value.shape == recorded.shape, f"{case.name}: {name}", recorded.shape, f"the model gives {value.shape}")
    rule = next((rule for rule in case.limits if fnmatch.fnmatch(name, str(rule["match"]))), None)
    if rule is None:
        raise ValueError(f"{case.name}: no limit for {name}")
    largest = np.abs(recorded).max(initial=0.0)
    atol, rtol = rule.get("atol_own_tables", rule.get("atol", 0.0)), rule.get("rtol", 0.0)
    allowed = atol + rtol * np.abs(recorded) + rule.get("rel_to_largest", 0.0) * largest
    off = np.abs(value.astype(np.float64) - recorded)
    absolute = float(np.nan_to_num(off, nan=np.inf).max(initial=0.0))
    return Finding(
        name=name,
        absolute=absolute,
        relative=absolute / max(float(largest), np.finfo(np.float64).tiny),
        within=bool(np.all(off <= allowed)),
        limit=f"atol {atol:g}" + (f", rtol {rtol:g}" if rtol else ""),
    )


def lines(findings: Sequence[Finding], left: Sequence[str]) -> Iterator[str]:
    """List findings and what was left out, for people."""
    yield from map(str, findings)
    yield from left
    beyond = sum(not finding.within for finding in findings)
    yield f"{len(findings)} outputs, {beyond} beyond their limits"
