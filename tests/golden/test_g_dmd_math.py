"""Golden g: the arithmetic of distillation on given tensors: DMD gradient and losses, critic, average, stage 2."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_case import Case, needs_golden, read_json
from golden_network import LAYOUTS, as_latents, as_tokens
from golden_scores import STREAMS, read_clip, real_of, scoring_of

from omniforcing_jax.distill import dmd, flow, ode
from omniforcing_jax.layout import block_of_frames
from omniforcing_jax.schedule import to_velocity
from omniforcing_jax.streams import Streams
from omniforcing_jax.train.state import DistillState, create
from omniforcing_jax.train.step import DistillSchedule, make_distill_step

pytestmark = [needs_golden]
NAME, TABLES = "g_dmd_math", "e_tables_v2"


@pytest.fixture(scope="module")
def case() -> Case:
    return Case(NAME)


def compare(case: Case, name: str, latents: Streams) -> None:
    case.compare(f"{name}.video", as_latents(latents.video, case["in.x0.video"]))
    case.compare(f"{name}.audio", latents.audio)


def blocks_of(case: Case):
    """The table whose clip this is: block weights are per block, and only this layout has a whole number of them."""
    layout = LAYOUTS[read_json(TABLES)["config"].get("layout", "4-3-3-3")]
    blocks = layout.blocks(case.config["frames"])
    assert blocks[-1].audio_end == case.config["audio_frames"]
    return blocks


def gradient_of(case: Case, counts=(None, None)) -> Streams:
    given = zip(read_clip(case, "in.x0"), read_clip(case, "in.fake"), real_of(case), counts, strict=True)
    return Streams(*(dmd.kl_gradient(*each) for each in given))


def test_noise_levels_and_noisy_clips_are_the_reference_s(case):
    sigma = dmd.scoring_sigma(jnp.asarray(case["in.timestep"][:, 0], jnp.int32), scoring_of(case))
    for stream in STREAMS:
        name = f"out.sigma.{stream}"
        case.compare(name, np.broadcast_to(sigma[:, None], case[name].shape))
    compare(case, "out.noisy", dmd.noise_clip(read_clip(case, "in.x0"), read_clip(case, "in.noise"), sigma))


def test_the_gradient_is_the_reference_s(case):
    compare(case, "out.grad", gradient_of(case))
    plain = [fake - real for fake, real in zip(read_clip(case, "in.fake"), real_of(case), strict=True)]
    compare(case, "out.grad_unnormalised", Streams(*plain))


@pytest.mark.parametrize("weights", list(dmd.BlockWeights))
def test_loss_weights_and_the_gradient_on_the_clip_are_the_reference_s(case, weights):
    config, blocks = scoring_of(case, block_weights=weights), blocks_of(case)
    x0, gradient = read_clip(case, "in.x0"), gradient_of(case)
    (loss, parts), slope = jax.value_and_grad(dmd.generator_loss, has_aux=True)(x0, gradient, blocks, config)
    name = f"out.{weights}"
    for stream in STREAMS:
        case.compare(f"{name}.{stream}_loss", parts[f"dmd_{stream}"][None])
    case.compare(f"{name}.loss", loss[None])
    compare(case, f"{name}.dloss_dx0", slope)
    compare(case, f"{name}.dloss_dx0", dmd.clip_cotangent(gradient, blocks, config))
    weights_v, weights_a = dmd.token_weights(blocks, x0, config)
    case.compare(f"{name}.block_weight.video", weights_v.reshape(case.config["frames"], -1)[:, 0])
    case.compare(f"{name}.block_weight.audio", weights_a)


def test_mean_and_normaliser_can_be_those_of_the_last_block(case):
    x0, last = read_clip(case, "in.x0"), blocks_of(case)[-1]
    per_frame = x0.video.shape[1] // case.config["frames"]
    starts = (last.video_start * per_frame, last.audio_start)
    counts = [(jnp.arange(x.shape[1]) >= s).astype(jnp.float32) for x, s in zip(x0, starts, strict=True)]
    gradient = gradient_of(case, counts)

    def loss(x0: Streams):
        parts = [
            dmd.matching_loss(x[:, start:], g[:, start:], count[start:])
            for x, g, count, start in zip(x0, gradient, counts, starts, strict=True)
        ]
        return parts[0] + parts[1]

    value, slope = jax.value_and_grad(loss)(x0)
    case.compare("out.last_block.loss", value[None])
    compare(case, "out.last_block.dloss_dx0", slope)


def test_the_critic_s_loss_is_the_reference_s(case):
    sigma = dmd.scoring_sigma(jnp.asarray(case["in.timestep"][:, 0], jnp.int32), scoring_of(case))
    x0, noise = read_clip(case, "in.x0"), read_clip(case, "in.noise")
    noisy = dmd.noise_clip(x0, noise, sigma)
    compare(case, "out.critic.noisy", noisy)
    predicted = read_clip(case, "in.critic_pred")
    velocity = Streams(*(to_velocity(x, p, sigma) for x, p in zip(noisy, predicted, strict=True)))
    loss, parts = flow.flow_error(velocity, x0, noise)
    case.compare("out.critic.loss", loss[None])
    for stream in STREAMS:
        case.compare(f"out.critic.{stream}_loss", parts[stream][None])


def test_the_average_moves_as_the_reference_s(case):
    """The real step, given a generator whose updates are those that were recorded."""
    decay = float(re.search(r"decay (0\.\d+)", case.meta["tensors"]["ema.out.w1"]["meaning"])[1])
    weights = [case[name] for name in sorted(case.names("ema.in.*"))]
    moves = jnp.asarray(np.diff(weights, axis=0))
    as_told = optax.GradientTransformation(lambda params: (), lambda updates, state, params: (updates, state))

    class AsRecorded:
        def generator(self, params, batch, key, critic, frozen):
            return jnp.zeros(()), {}, moves[batch]

        def critic(self, params, batch, key, generator, frozen):
            return jnp.zeros(()), {}, jnp.zeros_like(params)

    schedule = DistillSchedule(ratio=1, ema_decay=decay, ema_from=0)
    step = make_distill_step(AsRecorded(), (as_told, as_told), schedule)
    first = create(jnp.asarray(weights[0]), as_told, 0)
    state = DistillState(step=0, generator=first, critic=create(jnp.zeros(1), as_told, 1, ema=False))
    for number, name in enumerate(sorted(case.names("ema.out.*"))):
        state, _ = step(state, jnp.int32(number))
        case.compare(name, state.generator.ema)


def test_stage_2_on_the_block_table_and_on_the_reference_s_proportional_map(case):
    blocks = blocks_of(case)
    frames_v, frames_a = block_of_frames(blocks)
    sigmas = jnp.asarray(case["ode.in.sigmas"])
    index_v = jnp.asarray(case["ode.in.index"], jnp.int32)[:, [blocks[k].video_start for k in frames_v]]
    starts = np.rint(np.arange(len(frames_v)) * len(frames_a) / len(frames_v))
    proportional = index_v[:, np.searchsorted(starts, np.arange(len(frames_a)), side="right") - 1]
    aligned = index_v[:, [blocks[k].video_start for k in frames_a]]
    video = jnp.stack([as_tokens(entry) for entry in np.moveaxis(case["ode.in.video_trajectory"], 1, 0)])
    audio = jnp.moveaxis(jnp.asarray(case["ode.in.audio_trajectory"]), 1, 0)
    per_frame = video.shape[2] // len(frames_v)
    noisy_v, noisy_a = ode.pick(video, jnp.repeat(index_v, per_frame, axis=1)), ode.pick(audio, proportional)
    compare(case, "ode.out.noisy", Streams(noisy_v, noisy_a))
    sigma_v, sigma_a, sigma_aligned = (jnp.take_along_axis(sigmas, i, axis=1) for i in (index_v, proportional, aligned))
    case.compare("ode.out.sigma.video", sigma_v)
    case.compare("ode.out.sigma.audio", sigma_a)
    case.compare("ode.aligned.sigma.audio", sigma_aligned)

    def error(predicted, target, sigma):
        return ode.masked_mean((predicted - target) ** 2, (sigma > 1e-6).astype(jnp.float32))

    predicted = read_clip(case, "ode.in.pred_x0")
    loss_v = error(predicted.video, video[-1], jnp.repeat(sigma_v, per_frame, axis=1))
    loss_a = error(predicted.audio, audio[-1], sigma_a)
    case.compare("ode.out.video_loss", loss_v[None])
    case.compare("ode.out.audio_loss", loss_a[None])
    case.compare("ode.out.loss", (loss_v + loss_a)[None])
    case.compare("ode.aligned.audio_loss", error(predicted.audio, audio[-1], sigma_aligned)[None])
    case.assert_all_compared("ode.*")
