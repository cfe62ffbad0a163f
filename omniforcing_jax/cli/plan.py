"""The command `plan`: what a stream would need on a card, and how fast it may be, without weights or card."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from omniforcing_jax.cli.options import PlanOptions
from omniforcing_jax.io.atomic_write import check_writable, write_json
from omniforcing_jax.layout import FRAME_RATE
from omniforcing_jax.pipeline import checks
from omniforcing_jax.pipeline.cards import CARDS, Card
from omniforcing_jax.pipeline.pipeline import PipelineConfig
from omniforcing_jax.pipeline.presets import PRESETS
from omniforcing_jax.pipeline.shipped import STUDENT
from omniforcing_jax.stream.on_card import (
    PERFECT,
    Assumptions,
    Parts,
    Programs,
    memory_by_part,
    stream_parts,
    time_by_part,
    trace_programs,
)
from omniforcing_jax.stream.plan import StreamPlan, resolve_request
from omniforcing_jax.stream.request import StreamRequest
from omniforcing_jax.strict_json import require

GB = 1e9
SHORT = 2  # blocks of a short window
CACHE = "int8"  # closer than float8 (docs/chime.md), and no card multiplies it
NOTES = (
    "Memory is counted from shapes; programs and the reserve are upper guesses.",
    "Speed is expected from the card's peaks, and from the shares of them that one H200 reached.",
)
NO_FLOAT8 = "This card multiplies float8 in bfloat16: it saves memory and no time. int8 saves both."


def prepare_plan(command: PlanOptions) -> Callable[[], int]:
    """Check the request against configs alone. What comes back prints the plan; its exit code is 1 if nothing fits.

    Raises:
        ValueError: In one line, whatever is wrong with the request.
    """
    if command.json is not None:
        check_writable(command.json)
    rule = "must be at least 1 and at most 65536"
    require(1 <= command.text_tokens <= 65536, "text-tokens", command.text_tokens, rule)
    config, request = _config_of(command), _request(command)
    plan = resolve_request(config, request)
    tokens = command.text_tokens if config.words is None else config.words.tokens
    if command.device == "all":
        is_free = command.weights_dtype is command.cache_dtype is command.window is None
        rule = "not with --weights-dtype, --cache-dtype or --window, which the table varies"
        require(is_free, "device", "all", rule)

    def work() -> int:
        if command.device == "all":
            figures = compare_cards(config, request, tokens)
            lines = tabulate_cards(figures)
        else:
            figures = plan_on_card(Subject.of(plan, tokens), CARDS[command.device])
            lines = tabulate(figures)
        if command.json is not None:
            write_json(command.json, figures)
        print("\n".join(lines))
        return 0 if figures.get("fits", True) else 1

    return work


def _config_of(command: PlanOptions) -> PipelineConfig:
    if command.preset is None:
        return checks.pipeline_config(command.weights or STUDENT)
    require(command.weights is None, "weights", command.weights, "not with --preset, which has sizes of its own")
    known = ", ".join(name for name, config in PRESETS.items() if config.sampler is not None)
    require(command.preset in PRESETS, "preset", command.preset, f"must be one of {known}")
    return PRESETS[command.preset]


def _request(command: PlanOptions) -> StreamRequest:
    return StreamRequest(
        prompt="",
        height=command.height,
        width=command.width,
        window=command.window,
        steps=command.steps,
        dtype=jnp.dtype(command.dtype),
        weights_dtype=command.weights_dtype,
        cache_dtype=command.cache_dtype,
    )


class Subject(NamedTuple):
    """What is planned: a stream, what it holds, and its programs."""

    plan: StreamPlan
    parts: Parts
    programs: Programs

    @classmethod
    def of(cls, plan: StreamPlan, text_tokens: int) -> "Subject":
        """Trace a planned stream with prompts of so many tokens."""
        parts = stream_parts(plan, text_tokens)
        return cls(plan, parts, trace_programs(plan, parts))


def plan_on_card(subject: Subject, card: Card) -> dict[str, Any]:
    """Return all figures of a stream on a card, as JSON values: bytes, milliseconds, frames per second."""
    plan, parts, programs = subject
    memory, assumed = memory_by_part(plan, parts, programs), Assumptions()
    floor, expected = (time_by_part(plan, programs, card, each) for each in (PERFECT, assumed))
    frames = FRAME_RATE * plan.static.sampler.layout.step_seconds
    eight_bits, (rows, columns) = plan.config.model.eight_bits, plan.static.grid
    pixels = plan.config.video_vae.spatial_compression
    return {
        "weights": plan.config.name,
        "size": [columns * pixels, rows * pixels],
        "dtype": jnp.dtype(plan.static.dtype).name,
        "weights_dtype": None if eight_bits is None else eight_bits.kind.value,
        "cache_dtype": plan.request.cache_dtype,
        "device": card.name,
        "memory": memory,
        "together": sum(memory.values()),
        "card": card.memory,
        "fits": sum(memory.values()) <= card.memory,
        "floor_ms": floor,
        "expected_ms": expected,
        "fps": 1000 * frames / sum(expected.values()),
        "assumed": dataclasses.asdict(assumed),
        "slow_float8": card.float8 is None and eight_bits is not None and eight_bits.kind.value == "float8",
    }


def compare_cards(config: PipelineConfig, request: StreamRequest, text_tokens: int) -> dict[str, Any]:
    """Return the figures of a stream on every card: wide, with weights in eight bits, the cache too, the window short.

    Weights of cards that multiply float8 in bfloat16 are int8. The cache is int8 everywhere.
    """
    subjects: dict[Any, Subject] = {}

    def on(card: Card, *names: str) -> dict[str, Any]:
        kind = "float8" if card.float8 else "int8"
        known = {"weights_dtype": kind, "cache_dtype": CACHE, "window": SHORT}
        asked = {name: known[name] for name in names}
        what = tuple(asked.values())
        if what not in subjects:
            plan = resolve_request(config, dataclasses.replace(request, **asked))
            subjects[what] = Subject.of(plan, text_tokens)
        return plan_on_card(subjects[what], card)

    columns = {
        "wide": (),
        "weights in eight bits": ("weights_dtype",),
        "and the cache": ("weights_dtype", "cache_dtype"),
        f"and --window {SHORT}": ("weights_dtype", "cache_dtype", "window"),
    }
    rows = {name: {column: on(card, *how) for column, how in columns.items()} for name, card in CARDS.items()}
    return {"cards": rows}


def tabulate_cards(figures: dict[str, Any]) -> list[str]:
    """Format memory and speed of all cards as a Markdown table."""
    rows = figures["cards"]
    first = next(iter(next(iter(rows.values())).values()))
    (width, height), heads = first["size"], list(next(iter(rows.values())))
    lines = [f"{first['weights']}, {width}x{height}, {first['dtype']}: GB in all, and frames/s to expect if that fits"]
    lines += ["", f"| card | GB | {' | '.join(heads)} |", f"|---|---|{'---|' * len(heads)}"]
    for name, row in rows.items():
        cells = [f"{each['together'] / GB:.1f}, {_speed(each)}" for each in row.values()]
        lines.append(f"| {name} | {CARDS[name].memory / GB:.0f} | {' | '.join(cells)} |")
    return [*lines, "", *NOTES]


def _speed(figures: dict[str, Any]) -> str:
    return f"{figures['fps']:.0f} frames/s" if figures["fits"] else "does not fit"


def tabulate(figures: dict[str, Any]) -> list[str]:
    """Format the figures as two tables."""
    (width, height), kind = figures["size"], figures["weights_dtype"]
    types = figures["dtype"] if kind is None else f"{figures['dtype']}, large matrices in {kind}"
    types += "" if figures["cache_dtype"] is None else f", cached video in {figures['cache_dtype']}"
    lines = [f"{figures['weights']}, {width}x{height}, {types}, on {figures['device']}", "", f"{'memory':<42}      GB"]
    lines += [f"{name:<42}{size / GB:8.2f}" for name, size in figures["memory"].items()]
    left = (figures["card"] - figures["together"]) / GB
    lines.append(f"{'together':<42}{figures['together'] / GB:8.2f}")
    lines.append(f"{figures['card'] / GB:.0f} GB: " + (f"fits, {left:.1f} left" if left >= 0 else f"lacks {-left:.1f}"))
    lines += ["", f"{'a later block, ms':<34}at peak  expected"]
    lines += [f"{name:<34}{ms:7.1f}{figures['expected_ms'][name]:10.1f}" for name, ms in figures["floor_ms"].items()]
    floor, expected = (sum(figures[name].values()) for name in ("floor_ms", "expected_ms"))
    lines.append(f"{'together':<34}{floor:7.1f}{expected:10.1f}")
    lines.append(f"expected {figures['fps']:.1f} frames/s, {figures['fps'] / FRAME_RATE:.2f}x real time")
    lines += ["", *NOTES, f"Assumed: {json.dumps(figures['assumed'])}"]
    return [*lines, NO_FLOAT8] if figures["slow_float8"] else lines
