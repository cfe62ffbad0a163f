"""Attention kernels beside the plain form: error and speed at every shape of a stream.

A row is one form of one attention: a site in the first or in a later block, with the whole window or a short one, or a
text attention with or without a mask. `error` is |out - truth| / |truth| against the plain form in float32 at highest
precision; `largest` is the largest difference. Times are medians of alternating rounds. A round is a chain of calls in
one program, each of whose outputs is the next one's queries, so that no launch from Python counts.

The form "cudnn" joins the segments, as a stream on a mesh does. The form "merged" asks the kernel once for each segment
and merges by log-sum-exp in float32. So does a stream on one GPU, for the ring that it reads in place and for what is
pinned (nn/cudnn.py).

    python -m experiments.gpu.kernels --json out/kernels.json
"""

import dataclasses
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from experiments.cli_errors import refusing
from experiments.gpu.sheet import Sheet, attempt, markdown
from experiments.gpu.subject import student_preset
from experiments.script import read_flags, start_logging
from omniforcing_jax.cli.bench_stream import TEXT_TOKENS
from omniforcing_jax.io import machine
from omniforcing_jax.model.cache import Slots
from omniforcing_jax.nn import cudnn
from omniforcing_jax.nn.attention import Sites
from omniforcing_jax.nn.kv_segments import KVSegment, merge, plain_attention
from omniforcing_jax.nn.mask import mask_bias
from omniforcing_jax.pipeline.checks import adjust_sampler, student_sampler
from omniforcing_jax.pipeline.pipeline import PipelineConfig
from omniforcing_jax.rollout import StaticConfig, make_cache
from omniforcing_jax.streams import Streams

ROUNDS = 9
MOST_CALLS = 200  # in a chain
SHOWN = ("site", "block", "window", "masked", "queries", "keys", "form", "error", "ms", "tflops")

Form = Callable[[Array, Sequence[KVSegment]], Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure attention kernels."""

    json: Path
    """JSON file for the figures."""
    preset: str = "ltx2-19b"
    """Preset whose shapes are taken."""
    windows: tuple[int, ...] = (0, 2)
    """Blocks that a block may see, itself included, one or several counts; 0 fills the horizon."""
    chain_ms: float = 20.0
    """Length of a chain of calls, in milliseconds."""
    minutes: float | None = None
    """Begin no row that would end after so many minutes (default: no bound)."""


class Case(NamedTuple):
    """One attention.

    Attributes:
        site: which of the network's attentions.
        block: "first" or "later".
        window: blocks that a block may see; None where it does not matter.
        heads, head: number and size of the heads.
        queries: tokens that ask.
        fresh: keys of the block itself, or of a text.
        past: cached keys, all of which may be read; 0 in the first block.
        masked: whether a mask hides some of the fresh keys.
    """

    site: str
    block: str
    window: int | None
    heads: int
    head: int
    queries: int
    fresh: int
    past: int = 0
    masked: bool = False

    @property
    def row(self) -> dict[str, Any]:
        """The first figures of its rows."""
        return {**self._asdict(), "masked": self.masked or None, "keys": self.fresh + self.past}

    @property
    def tflop(self) -> float:
        """Work of both products, in 1e12 floating-point operations."""
        return 4 * self.queries * (self.fresh + self.past) * self.heads * self.head / 1e12

    def draw(self, dtype: Any) -> tuple[Array, list[tuple[Array, Array]]]:
        """Draw queries, and keys and values of each segment."""
        keys = iter(jax.random.split(jax.random.key(0), 5))

        def normal(tokens: int) -> Array:
            return jax.random.normal(next(keys), (1, tokens, self.heads, self.head), dtype)

        return normal(self.queries), [(normal(n), normal(n)) for n in (self.fresh, self.past) if n]

    def segments(self, arrays: Sequence[tuple[Array, Array]]) -> list[KVSegment]:
        """Put keys and values under the masks that a stream has."""
        hidden = self.fresh // 4 if self.masked else 0
        bias = mask_bias(jnp.arange(self.fresh) >= hidden)[None, None, None] if hidden else None
        fresh, *past = arrays
        whole = jnp.zeros((1, 1, 1, self.past))
        return [KVSegment(*fresh, bias), *(KVSegment(*each, whole, prefix=True) for each in past)]


def cases(preset: PipelineConfig, windows: Sequence[int]) -> list[Case]:
    """List all attentions of a stream, those that take most of its time first."""
    words = TEXT_TOKENS if preset.words is None else preset.words.tokens
    later, first = ([case for w in windows for case in _causal(preset, w, block)] for block in ("later", "first"))
    texts = [
        Case(f"{name}_text", block, None, stream.heads, stream.head_size, queries, words, masked=masked)
        for masked in (False, True)
        for block in ("later", "first")
        for name, stream, queries in zip(
            Streams._fields, (preset.model.video, preset.model.audio), _queries(preset, block), strict=True
        )
    ]
    return list(dict.fromkeys([*later, *texts, *(case._replace(window=None) for case in first)]))


def _causal(preset: PipelineConfig, window: int, block: str) -> Iterator[Case]:
    """List the four causal attentions of the first block, or of a later one once the ring is full."""
    model, sampler = preset.model, adjust_sampler(student_sampler(preset), window, None)
    static = StaticConfig(model, sampler, preset.grid(*preset.resolution))
    slots: Sites = jax.eval_shape(partial(make_cache, static, 1)).slots
    tokens, heads = Streams(*_queries(preset, block)), Streams(model.video, model.audio)
    asking = Sites(video_self=tokens.video, audio_self=tokens.audio, a2v=tokens.video, v2a=tokens.audio)
    keys = Sites.of_keys(*tokens)
    of_site = Sites(video_self=heads.video, audio_self=heads.audio, a2v=heads.audio, v2a=heads.audio)
    for site in ("video_self", "v2a", "a2v", "audio_self"):
        kept: Slots = getattr(slots, site)
        stream, past = getattr(of_site, site), kept.total if block == "later" else 0
        yield Case(
            site, block, window, stream.heads, stream.head_size, getattr(asking, site), getattr(keys, site), past
        )


def _queries(preset: PipelineConfig, block: str) -> tuple[int, int]:
    """Return the tokens of a block of both streams."""
    layout, (rows, columns) = student_sampler(preset).layout, preset.grid(*preset.resolution)
    if block == "first":
        return layout.first_v * rows * columns, layout.first_a + preset.model.sinks
    return layout.step_v * rows * columns, layout.step_a


def merged(q: Float[Array, "B T N H"], segments: Sequence[KVSegment]) -> Float[Array, "B T N H"]:
    """Attend to each segment by itself, and merge."""
    attend = _cudnn_with_sums if jax.default_backend() == "gpu" else _plain_with_sums
    return merge([attend(q, segment) for segment in segments], q.dtype)


def _cudnn_with_sums(q: Array, segment: KVSegment) -> tuple[Array, Array]:
    return cudnn.attend_with_sums(q, [segment])


def _plain_with_sums(q: Array, segment: KVSegment) -> tuple[Array, Array]:
    scores = jnp.einsum("btnh,bsnh->bnts", q, segment.k, preferred_element_type=jnp.float32) / math.sqrt(q.shape[-1])
    scores = scores if segment.bias is None else scores + segment.bias
    return plain_attention(q, [segment]), jnp.swapaxes(jax.nn.logsumexp(scores, axis=-1), 1, 2)


def forms(case: Case) -> dict[str, Form]:
    """Return what can be measured on this machine, by name; keys of one segment need no merging."""
    kernel: dict[str, Form] = {"cudnn": cudnn.cudnn_attention} if jax.default_backend() == "gpu" else {}
    return {"plain": plain_attention, **kernel, **({"merged": merged} if case.past else {})}


class Prepared(NamedTuple):
    """A case that is compiled.

    Attributes:
        rows: by form its error, or why it has none.
        chains: programs by form, which take a number of calls.
    """

    rows: dict[str, dict[str, Any]]
    chains: dict[str, Callable[..., Array]]


def prepare_all(chosen: Sequence[Case]) -> dict[Case, Prepared | dict[str, Any]]:
    """Compile all cases, a thread each, because most of a case's time goes there; one that fails has its `error`."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(chosen, pool.map(lambda case: attempt(partial(prepare, case)), chosen), strict=True))


def prepare(case: Case) -> Prepared:
    """Draw a case, compile its forms and compare each with the truth."""
    arrays = case.draw(jnp.bfloat16)
    truth, rows, chains = _truth(case, arrays), {}, {}
    for name, form in forms(case).items():
        chain = partial(_chain(form, case), *arrays)
        rows[name] = _refused(form, case, arrays) or attempt(partial(_error, chain, truth))
        if "largest" in rows[name]:
            chains[name] = chain
    return Prepared(rows, chains)


def measure_case(case: Case, prepared: Prepared | dict[str, Any], chain_ms: float) -> list[dict[str, Any]]:
    """Return a row for each form: its error and time, or why there is none."""
    if not isinstance(prepared, Prepared):
        return [{**case.row, **prepared}]
    rows, chains = {name: dict(row) for name, row in prepared.rows.items()}, prepared.chains
    for name, ms in _alternate(chains, chain_ms).items():
        rows[name] |= {"ms": round(ms, 4), "tflops": case.tflop / (ms / 1000)}
    return [{**case.row, "form": name, **row} for name, row in rows.items()]


def _truth(case: Case, arrays: Any) -> Array:
    """Compute the plain form in float32, at highest precision."""
    q, held = jax.tree.map(lambda x: x.astype(jnp.float32), arrays)
    with jax.default_matmul_precision("highest"):
        return jax.jit(lambda q, held: plain_attention(q, case.segments(held)))(q, held)


def _refused(form: Form, case: Case, arrays: Any) -> dict[str, Any]:
    """Say why cuDNN cannot compute this case, if so."""
    q, held = arrays
    reason = cudnn.refusal(q, case.segments(held)) if form is cudnn.cudnn_attention else None
    return {} if reason is None else {"refused": reason}


def _error(chain: Callable[..., Array], truth: Array) -> dict[str, Any]:
    """Compare one call with the truth."""
    gap = chain(jnp.int32(1)).astype(jnp.float32) - truth
    share = jnp.linalg.norm(gap.ravel()) / jnp.linalg.norm(truth.ravel())
    return {"error": float(share), "largest": float(jnp.max(jnp.abs(gap)))}


def _chain(form: Form, case: Case) -> Callable[..., Array]:
    """Make a program of so many calls. The barrier keeps copies of keys in the loop, where a stream has them."""

    def call(_: Array, carried: tuple[Array, Any]) -> tuple[Array, Any]:
        q, held = jax.lax.optimization_barrier(carried)
        return form(q, case.segments(held)), held

    return jax.jit(lambda q, held, calls: jax.lax.fori_loop(0, calls, call, (q, held))[0])


def _alternate(chains: dict[str, Callable[..., Array]], chain_ms: float) -> dict[str, float]:
    """Run chains in turns; returns the median milliseconds of a call of each."""
    calls = {name: _calls(chain, chain_ms) for name, chain in chains.items()}
    times: dict[str, list[float]] = {name: [] for name in chains}
    for _, (name, chain) in itertools.product(range(ROUNDS), chains.items()):
        times[name].append(_seconds(chain, calls[name]) / calls[name])
    return {name: 1000 * statistics.median(taken) for name, taken in times.items()}


def _calls(chain: Callable[..., Array], chain_ms: float) -> int:
    """Count the calls that fill a chain, which is compiled already."""
    return max(1, min(MOST_CALLS, int(chain_ms / 1000 / _seconds(chain, 1))))


def _seconds(chain: Callable[..., Array], calls: int) -> float:
    begun = time.perf_counter()
    chain(jnp.int32(calls)).block_until_ready()
    return time.perf_counter() - begun


def run(arguments: Arguments) -> dict[str, Any]:
    """Measure every case; returns what the JSON file holds."""
    preset = student_preset(arguments.preset)
    sheet = Sheet(arguments.json, arguments.minutes, device=jax.devices()[0].device_kind, preset=preset.name)
    for case, prepared in prepare_all(cases(preset, arguments.windows)).items():
        sheet.measure("rows", case.row, partial(measure_case, case, prepared, arguments.chain_ms))
    return sheet.finish()


def table(figures: dict[str, Any]) -> str:
    """Write the rows as a Markdown table."""
    return markdown(SHOWN, figures.get("rows", []))


def main(arguments: Arguments) -> None:
    """Print the table and write the figures; bad input is one line on stderr and exit code 2."""
    start_logging()
    machine.use_compilation_cache()
    with refusing(arguments.json):
        print(table(run(arguments)))


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
