"""Steps of one network and of two, on problems small enough to be computed again by hand."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from one_loss import one_loss

from omniforcing_jax.train import gradient, state, step

RATE = 0.1


def pull(params, batch, key, *others):
    """A parabola around the batch's mean, moved by a draw and by other networks."""
    target = jnp.mean(batch) + jax.random.normal(key, (3,), jnp.float32) + sum(jnp.mean(b["w"]) for b in others)
    return jnp.sum((params["w"] - target) ** 2), {"seen": jnp.mean(batch)}


def weights(value):
    return {"w": jnp.full((3,), value, jnp.float32)}


def pair(method=None, frozen=0.5, seed=7, **schedule):
    rules = optax.sgd(RATE), optax.sgd(RATE)
    start = state.create_pair(weights(1.0), weights(2.0), rules, seed)
    return start, step.make_distill_step(
        method or one_loss(pull), rules, step.DistillSchedule(**schedule), weights(frozen)
    )


def run(start, update, steps):
    states, reports = [jax.device_get(start)], []
    for number in range(steps):
        start, report = update(start, jnp.full((4,), number, jnp.float32))
        states.append(jax.device_get(start))
        reports.append(report)
    return states, reports


def test_the_generator_moves_at_every_ratio_th_step_and_the_critic_always():
    states, reports = run(*pair(ratio=3), 7)
    moved = [
        not np.array_equal(a.generator.params["w"], b.generator.params["w"]) for a, b in itertools.pairwise(states)
    ]
    assert moved == [True, False, False, True, False, False, True]
    assert all(not np.array_equal(a.critic.params["w"], b.critic.params["w"]) for a, b in itertools.pairwise(states))
    assert ["generator/loss" in report.metrics for report in reports] == moved
    assert all("critic/seen" in report.metrics for report in reports)
    assert (int(states[-1].step), int(states[-1].generator.step), int(states[-1].critic.step)) == (7, 3, 7)


def test_each_network_sees_the_other_and_what_is_frozen():
    def only_others(params, batch, key, other, frozen):
        return jnp.sum((params["w"] - other["w"] - frozen["w"]) ** 2), {}

    states, _ = run(*pair(one_loss(only_others), 4.0, ratio=1), 1)
    generator = 1.0 - RATE * 2 * (1.0 - 2.0 - 4.0)
    np.testing.assert_allclose(states[1].generator.params["w"], generator, rtol=1e-6)
    critic = 2.0 - RATE * 2 * (2.0 - generator - 4.0)  # against the generator as it has become
    np.testing.assert_allclose(states[1].critic.params["w"], critic, rtol=1e-6)


def test_both_networks_draw_from_different_keys():
    start, _ = pair()
    assert not np.array_equal(start.generator.key, start.critic.key)


def test_every_step_draws_from_a_key_of_its_own():
    drawn = []

    def draws(params, batch, key, other, frozen):
        return jnp.sum(params["w"]), {"drawn": jax.random.uniform(key)}

    _, reports = run(*pair(one_loss(draws), ratio=2), 4)
    drawn = [float(value) for report in reports for name, value in report.metrics.items() if name.endswith("/drawn")]
    assert len(set(drawn)) == len(drawn) == 6
    keys = [jax.random.fold_in(jax.random.wrap_key_data(pair()[0].critic.key), i) for i in range(4)]
    found = [float(report.metrics["critic/drawn"]) for report in reports]
    np.testing.assert_allclose(found, [jax.random.uniform(key) for key in keys], rtol=1e-6)


def test_the_average_is_a_copy_until_ema_from_and_then_follows_the_generators_updates_only():
    states, _ = run(*pair(ratio=2, ema_decay=0.75, ema_from=3), 7)
    params, averages = ([getattr(s.generator, name)["w"] for s in states] for name in ("params", "ema"))
    for done in range(4):
        np.testing.assert_array_equal(averages[done], params[done])
    np.testing.assert_array_equal(averages[4], averages[3])  # steps 4 and 6 are the critic's alone
    np.testing.assert_allclose(averages[5], 0.75 * averages[4] + 0.25 * params[5], rtol=1e-6)
    np.testing.assert_array_equal(averages[6], averages[5])
    np.testing.assert_allclose(averages[7], 0.75 * averages[6] + 0.25 * params[7], rtol=1e-6)
    assert states[-1].critic.ema is None


def test_a_pair_compiles_two_programs_and_keeps_what_is_frozen():
    traced = []

    def counted(*arguments):
        traced.append(1)
        return pull(*arguments)

    start, update = pair(one_loss(counted), 0.5, ratio=2)
    run(start, update, 5)
    assert len(traced) == 2  # one each
    np.testing.assert_array_equal(update.frozen["w"], 0.5)  # not donated


def test_a_ratio_below_one_is_refused():
    with pytest.raises(ValueError, match="ratio=0"):
        pair(ratio=0)


def test_a_gradient_made_by_hand_trains_as_the_loss_it_belongs_to():
    def by_hand(params, batch, key, extra):
        target = jnp.mean(batch) + jax.random.normal(key, (3,), jnp.float32)
        return gradient.Graded(*pull(params, batch, key), {"w": 2 * (params["w"] - target)})

    rule = optax.adam(RATE)
    ends = []
    for kind in (by_hand, gradient.of_loss(pull)):
        states, _ = run(state.create(weights(1.0), rule, 3), step.make_step(kind, rule), 3)
        ends.append(states[-1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *ends)


def test_the_average_of_one_network_begins_where_it_is_told_to():
    rule = optax.sgd(RATE)
    states, _ = run(state.create(weights(1.0), rule, 3), step.make_step(gradient.of_loss(pull), rule, ema_from=2), 4)
    for done in range(3):
        np.testing.assert_array_equal(states[done].ema["w"], states[done].params["w"])
    expected = states[2].ema["w"] / 10 + states[3].params["w"] * 9 / 10
    np.testing.assert_allclose(states[3].ema["w"], expected, rtol=1e-6)


@dataclasses.dataclass
class Named:
    name: str
    site: str


@pytest.mark.parametrize(
    "case",
    [
        Named("layers/video/self_attn/q/w", "layers/video/self_attn"),
        Named("layers/audio/table", "layers/audio/table"),
        Named("layers/a2v/k/b", "layers/a2v"),
        Named("layers/cross_table_video", "layers/cross_table_video"),
        Named("audio/time/up/w", "audio"),
        Named("sinks", "sinks"),
    ],
    ids=lambda case: case.name,
)
def test_a_weight_has_a_site(case):
    assert gradient.network_site(case.name) == case.site


def test_gradient_norms_by_site_make_up_the_whole_norm():
    grads = {"layers": {"a2v": {"q": jnp.array([3.0]), "k": jnp.array([[4.0]])}}, "sinks": jnp.array([12.0])}
    found = gradient.norms(grads, gradient.network_site)
    assert {name: float(value) for name, value in found.items()} == {
        "grad_norm/layers/a2v": 5.0,
        "grad_norm/sinks": 12.0,
    }


def test_a_report_names_what_is_not_finite():
    def broken(params, batch, key):
        return params["good"].sum() + jnp.sqrt(params["bad"].sum()), {}

    rule = optax.sgd(RATE)
    params = {"good": jnp.ones((2,)), "bad": jnp.zeros((2,))}
    _, report = step.make_step(gradient.of_loss(broken), rule)(state.create(params, rule, 0), jnp.zeros((1,)))
    culprits = [name for name, finite in zip(report.checked, report.finite, strict=True) if not finite]
    assert culprits == ["gradient/bad", "parameter/bad"]
