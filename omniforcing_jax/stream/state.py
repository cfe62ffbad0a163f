"""The state of a stream: one tree, which is donated from block to block and can be saved, resumed or forked."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct

from omniforcing_jax.model.cache import Cache
from omniforcing_jax.model.layer_list import is_list
from omniforcing_jax.parallel.spec import ArrayLeaf
from omniforcing_jax.pipeline import text_source
from omniforcing_jax.rollout import PromptKV, StaticConfig, make_cache
from omniforcing_jax.stream.camera.path import CameraPath, begin_path
from omniforcing_jax.stream.decode import PictureCarry, SoundCarry
from omniforcing_jax.stream.prompt_change.history import History, make_history
from omniforcing_jax.stream.prompt_change.transition import PromptTransition, no_transition
from omniforcing_jax.strict_json import require


@struct.dataclass
class StreamState:
    """All of a stream except its weights: what is saved, resumed or forked.

    Attributes:
        cache: Keys and values of past blocks.
        prompt: Text keys and values.
        keys: PRNG key of each row, [B].
        picture: Carry of the video decoder; None before block 0.
        sound: Carry of audio decoder and vocoder; None before block 0.
        block: Blocks made so far, an int on the host. The cache has the same count of commits on the device.
        transition: Text contexts, and a change of prompt that is under way.
        history: Latents of past blocks, which a change of prompt recomputes.
        prompt_words: The prompt of each row, for messages and for saved states. It has no influence on the stream.
        camera: The path of the camera, on the host; None for a network without cameras.
    """

    cache: Cache
    prompt: PromptKV
    keys: ArrayLeaf
    picture: PictureCarry | None
    sound: SoundCarry | None
    block: int
    transition: PromptTransition
    history: History
    prompt_words: tuple[str, ...] = struct.field(pytree_node=False, default=())
    camera: CameraPath | None = struct.field(pytree_node=False, default=None)


def start_state(
    static: StaticConfig,
    prompt: PromptKV,
    seed: int | Sequence[int],
    contexts: text_source.TextContexts,
    history: int | None = None,
    prompt_words: tuple[str, ...] = (),
    camera: str | None = None,
) -> StreamState:
    """Make the state of a stream that has no block yet.

    Args:
        static: Static config.
        prompt: Text keys and values, which `make_prompt_kv` made of the contexts.
        seed: Random seed. A sequence of seeds makes as many rows.
        contexts: Text contexts.
        history: Later blocks whose latents are kept. At least, and with None, those of the ring.
        prompt_words: The prompt of each row.
        camera: Keys that move the camera; a network without cameras has none.
    """
    keys = [jax.random.split(jax.random.key(each), 1) for each in ([seed] if isinstance(seed, int) else seed)]
    ring = static.sampler.past_blocks
    return StreamState(
        transition=no_transition(contexts),
        history=make_history(static, len(keys), max(ring, history or 0)),
        cache=make_cache(static, len(keys), is_list(prompt.clean.kv)),
        prompt=prompt,
        keys=jnp.concatenate(keys) if len(keys) > 1 else keys[0],
        picture=None,
        sound=None,
        block=0,
        prompt_words=prompt_words,
        camera=None if static.model.camera is None else begin_path(camera),
    )


def check_block_count(state: StreamState) -> None:
    """Check that host and device count the same blocks. Waits for the last commit.

    Raises:
        ValueError: If the cache has another number of commits than blocks were made.
    """
    committed = int(state.cache.blocks_done)
    require(committed == state.block, "block", state.block, f"the cache has {committed} committed blocks")
