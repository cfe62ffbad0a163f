"""Noise levels: schedules, snapping, noising, velocity and x0, Euler steps.

Schedules are host arrays in float64. Arithmetic on latents is float32 whatever their type, because a sigma rounded to
bfloat16 is no longer the noise level of the latent.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Sigma = Float[Array, "..."] | float | int

DEFAULT_TOKENS = 4096  # the reference's assumption where it does not pass a latent
TERMINAL = 0.1  # the last sigma before 0
DISTILLED = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)  # LTX-2's published list
SECOND_STAGE = DISTILLED[-4:]  # of LTX-2's two-stage pipelines


def timestep_shift(tokens: int) -> float:
    """Exponent of the timestep shift: linear in the token count, 0.95 at 1024 and 2.05 at 4096, unbounded."""
    return 0.95 + (tokens - 1024) * (2.05 - 0.95) / (4096 - 1024)


def ltx2_schedule(steps: int, tokens: int = DEFAULT_TOKENS) -> Float[np.ndarray, " {steps}+1"]:
    """Sigmas from 1 to 0, shifted by the token count and then stretched so that the last but one is 0.1.

    Source: ltx-core@1.0.0:components/schedulers.py, LTX2Scheduler.

    Raises:
        ValueError: Steps < 1.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: must be at least 1")
    u = 1 - np.arange(steps, dtype=np.float64) / steps
    factor = math.exp(timestep_shift(tokens))
    shifted = factor / (factor + (1 / u - 1))
    if steps > 1:
        shifted = 1 - (1 - shifted) * (1 - TERMINAL) / (1 - shifted[-1])
    return np.append(shifted, 0.0)


def snap(
    timesteps: Sequence[int | float], schedule: Float[np.ndarray, " J"]
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Replace every timestep t by the schedule's entry nearest to t / 1000; return indices and sigmas.

    Source: OmniForcing@50a271f:ltx_distillation/dmd.py, LTX2DMD.__init__.
    """
    indices = tuple(int(np.argmin(np.abs(schedule - t / 1000))) for t in timesteps)
    return indices, tuple(float(schedule[i]) for i in indices)


def sigma_lookup(steps: int = 1000) -> Float[np.ndarray, " {steps}+1"]:
    """Sigma of integer timestep t at index t: the reversed schedule, in which 0 is clean."""
    return ltx2_schedule(steps)[::-1].copy()


def _like(sigma: Sigma, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Append axes to sigma, so that it broadcasts over x."""
    sigma = jnp.asarray(sigma, jnp.float32)
    return sigma.reshape(sigma.shape + (1,) * (x.ndim - sigma.ndim)) if sigma.ndim else sigma


def add_noise(x0: Float[Array, "*shape"], noise: Float[Array, "*shape"], sigma: Sigma) -> Float[Array, "*shape"]:
    """Interpolate clean latents towards noise; with fresh noise this also re-noises between steps.

    sigma is in [0, 1] with the leading axes of x0 ([], [B] or [B, T]): 0 returns x0, 1 returns noise. Computed in
    float32, returned in x0's type.

    Source: OmniForcing@50a271f:ltx_distillation/dmd.py, LTX2DMD.add_noise (which casts sigma to bfloat16; we do not).
    """
    sigma = _like(sigma, x0)
    mixed = (1 - sigma) * x0.astype(jnp.float32) + sigma * noise.astype(jnp.float32)
    return mixed.astype(x0.dtype)


def to_x0(x: Float[Array, "*shape"], velocity: Float[Array, "*shape"], sigma: Sigma) -> Float[Array, "*shape"]:
    """Clean estimate x - sigma * velocity, in float32."""
    return x.astype(jnp.float32) - _like(sigma, x) * velocity.astype(jnp.float32)


def to_velocity(x: Float[Array, "*shape"], x0: Float[Array, "*shape"], sigma: Sigma) -> Float[Array, "*shape"]:
    """Velocity (x - x0) / sigma, in float32; sigma must be positive."""
    return (x.astype(jnp.float32) - x0.astype(jnp.float32)) / _like(sigma, x)


def fresh_shares(sigmas: Sequence[float] | Float[np.ndarray, " J"], renewal: int | float) -> Float[np.ndarray, " _"]:
    """Return the share of fresh noise at each level but the closing 0: from 0 (all carried over) to 1 (all fresh).

    A share g of fresh noise is added to sqrt(1 - g^2) of the carried noise. `renewal` 0 carries all noise (Euler
    steps), and 1 is ancestral sampling (a diffusion run backwards). Larger values lie between that and fresh noise at
    every step. The first level has nothing to carry, so its share is 1.

    Args:
        sigmas: Noise levels from 1 down, the closing 0 included.
        renewal: At least 0; infinity draws all noise afresh.

    Source: eta of DDIM (arXiv 2010.02502, equation 16), written for straight paths: variance over signal is sigma over
    1 - sigma there.
    """
    levels = np.asarray(sigmas, np.float64)[:-1]
    after, before = levels[1:] / (1 - levels[1:]), levels[:-1] / np.maximum(1 - levels[:-1], 1e-12)
    ancestral = np.sqrt(1 - (after / before) ** 2)
    later = np.minimum(1.0, renewal * ancestral) if renewal else np.zeros_like(ancestral)
    return np.concatenate([[1.0], later]).astype(np.float32)


def ancestral_shares(sigmas: Sequence[float] | Float[np.ndarray, " J"], eta: int | float) -> Float[np.ndarray, " _"]:
    """Return the share of fresh noise at each level as LTX-2.5's ancestral Euler steps draw it; see `fresh_shares`.

    A step goes down to a level below the next one, and up again by fresh noise. The shares are others than those of a
    `renewal`.

    Args:
        sigmas: Noise levels from 1 down, the closing 0 included.
        eta: From 0 (Euler steps) to 1, which LTX-2.5's distilled weights take.

    Source: ltx-core@1.2.0:components/diffusion_steps.py, EulerAncestralDiffusionStep.
    """
    levels = np.asarray(sigmas, np.float64)[:-1]
    before, after = levels[:-1], levels[1:]
    down = after * (1 + (after / before - 1) * eta)
    kept = down / after * (1 - after) / (1 - down)  # of the carried noise, over what the next level has
    return np.concatenate([[1.0], np.sqrt(np.maximum(0.0, 1 - kept**2))]).astype(np.float32)


def renew(carried: Float[Array, "*shape"], fresh: Float[Array, "*shape"], share: Sigma) -> Float[Array, "*shape"]:
    """Mix fresh noise into `carried`, keeping its variance: sqrt(1 - share^2) * carried + share * fresh."""
    share = _like(share, carried)
    return jnp.sqrt(1 - share**2) * carried + share * fresh


def renewing_step(
    x: Float[Array, "*shape"],
    x0: Float[Array, "*shape"],
    fresh: Float[Array, "*shape"],
    share: Sigma,
    sigma: Sigma,
    sigma_next: Sigma,
) -> Float[Array, "*shape"]:
    """Step x from sigma to sigma_next with a share of fresh noise, in float32; without any it is Euler's step."""
    x0 = x0.astype(jnp.float32)
    carried = x0 + to_velocity(x, x0, sigma)
    return add_noise(x0, renew(carried, fresh, share), sigma_next)


def euler_step(
    x: Float[Array, "*shape"], x0: Float[Array, "*shape"], sigma: Sigma, sigma_next: Sigma
) -> Float[Array, "*shape"]:
    """Step x from sigma to sigma_next along the line through x0, in float32; at sigma_next = 0 exactly x0.

    It equals x + (x - x0) / sigma * (sigma_next - sigma).
    """
    ratio = _like(sigma_next, x) / _like(sigma, x)
    return x0.astype(jnp.float32) + ratio * (x.astype(jnp.float32) - x0.astype(jnp.float32))
