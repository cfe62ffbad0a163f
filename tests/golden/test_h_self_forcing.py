"""Golden h: one whole stage-3 generator step, rollout, loss and every parameter's gradient, in two passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conversion import network_to_original
from flax import struct
from golden_case import Case, needs_golden
from golden_network import LAYOUTS, as_latents, as_tokens, config_of, load_params
from golden_scores import read_clip, real_of, scoring_of

from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.distill import dmd, self_forcing
from omniforcing_jax.rollout import StaticConfig
from omniforcing_jax.streams import Streams
from omniforcing_jax.text.contexts import TextContexts

pytestmark = [needs_golden]
NAME, SCORES, TEXT, NETWORK = "h_self_forcing_step", "g_dmd_math", "d_rollout_v2", "b_causal_v2_masked"
REFERENCES = {"same": "same", "perblock": "perblock", "text_grad": "same"}  # what a gradient is of: its run


@struct.dataclass
class Noise:
    """The recorded noise of a run as the rollout asks for it; never drawn steps are zeros."""

    first: Streams  # [J, B, ...]
    later: Streams  # [K - 1, J, B, ...]

    def __call__(self, block, step, positions) -> Streams:
        is_first = len(positions.tokens.audio_time.cos) == self.first.audio.shape[2]
        at = self.first if is_first else jax.tree.map(lambda x: x[block - 1], self.later)
        return jax.tree.map(lambda x: x[step], at)


def read_draws(case: Case, run: str, steps: int) -> Noise:
    """Deal the flat list of draws out to blocks and steps: denoise steps up to the exit, then the context's."""
    options = case.config["runs"][run]
    names = iter(sorted(case.names(f"{run}.draw*")))
    made = []
    for block, exit_step in zip(case.config["blocks"], options["exit"], strict=True):
        used = [*range(exit_step + 1), *([steps] if options["context_noise"] else [])]
        pairs = {step: (as_tokens(case[next(names)]), case[next(names)]) for step in used}
        some = next(iter(pairs.values()))
        assert some[1].shape[1] == block[3] - block[2]
        full = [pairs.get(step, tuple(np.zeros_like(x) for x in some)) for step in range(steps + 1)]
        made.append(Streams(*(jnp.asarray(np.stack(each)) for each in zip(*full, strict=True))))
    later = jax.tree.map(lambda *leaves: jnp.stack(leaves), *made[1:])
    return Noise(first=made[0], later=later)


@pytest.mark.parametrize("of", REFERENCES)
def test_a_whole_generator_step_is_the_reference_s(of):
    case, run = Case(NAME), REFERENCES[of]
    text, options = Case(TEXT), case.config["runs"][run]
    layout = LAYOUTS[text.config["layout"]]
    blocks = tuple(layout.block(k) for k in range(len(case.config["blocks"])))
    np.testing.assert_array_equal(np.array(blocks), case.config["blocks"])
    network = Case(NETWORK).config
    sampler = SamplerConfig(
        layout=layout,
        sigmas=tuple(case.config["sigmas"]),
        horizon_seconds=layout.start_seconds(len(blocks) + 1),
        context_noise=options["context_noise"] / 1000,
    )
    config = config_of(case, network)
    static = StaticConfig(config, sampler, tuple(network["grid"]))
    mask = text["in.text_mask"] if case.config["text_mask"] else np.ones_like(text["in.text_mask"])
    contexts = TextContexts(
        *(jnp.asarray(text[f"in.{s}_context"]) for s in ("video", "audio")), jnp.asarray(mask, jnp.int32)
    )
    scores = Case(SCORES)
    how = scoring_of(scores)
    fake, real = read_clip(scores, "in.fake"), real_of(scores)

    def score(clip: Streams):
        gradient = Streams(*(dmd.kl_gradient(x, f, r) for x, f, r in zip(clip, fake, real, strict=True)))
        return dmd.clip_cotangent(gradient, blocks, how), (gradient, dmd.generator_loss(clip, gradient, blocks, how)[0])

    @jax.jit
    def step(params, contexts, noise, exits):
        draws = self_forcing.Draws(exits, noise)
        return self_forcing.two_pass_gradient(params, contexts, score, draws, plan)

    plan = self_forcing.plan_rollout(static, len(blocks), text_gradient=of == "text_grad")
    params = load_params(case.config["weights"], config)
    arguments = (params, contexts, read_draws(case, run, sampler.steps), jnp.asarray(options["exit"], jnp.int32))
    gradient, clip, (kl_gradient, loss) = step(*arguments)
    if of == run:
        for name, latents in (("out", clip), ("kl_grad", kl_gradient)):
            case.compare(f"{run}.{name}.video", as_latents(latents.video, case[f"{run}.out.video"]))
            case.compare(f"{run}.{name}.audio", latents.audio)
        case.compare(f"{run}.loss", loss[None])
    theirs = network_to_original(config, gradient)
    recorded = {name.removeprefix(f"{of}.grad."): name for name in case.names(f"{of}.grad.*")}
    for key, name in recorded.items():
        case.compare(name, theirs[key])
    norms = {key: float(np.linalg.norm(value)) for key, value in theirs.items()}
    assert {key for key, norm in norms.items() if norm} == case.meta["grad_l2_norms"][of].keys()
    for key, norm in case.meta["grad_l2_norms"][of].items():
        np.testing.assert_allclose(
            norms[key], norm, rtol=case.find_limit(f"{of}.grad.{key}")["rel_to_largest"], err_msg=key
        )
    case.assert_all_compared(f"{of}.*")
