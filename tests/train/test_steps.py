"""Steps of one network and of two, on problems small enough to be computed again by hand."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from omniforcing_jax.train import gradient, state, step

RATE = 0.1


def pull(params, batch, key, extra, *beside):
    """A parabola around the batch's mean, moved by a draw and by what stands beside."""
    target = jnp.mean(batch) + jax.random.normal(key, (3,), jnp.float32) + sum(jnp.mean(b["w"]) for b in beside)
    return jnp.sum((params["w"] - target) ** 2), ({"seen": jnp.mean(batch)}, extra)


def weights(value):
    return {"w": jnp.full((3,), value, jnp.float32)}


def pair(generator=pull, critic=pull, seed=7, **options):
    rule = optax.sgd(RATE)
    start = state.create_pair(weights(1.0), weights(2.0), rule, rule, seed, generator_extra=jnp.zeros(()))
    update = step.make_distill_step(gradient.of_loss(generator), gradient.of_loss(critic), rule, rule, **options)
    return start, update


def run(start, update, steps, *frozen):
    states, reports = [jax.device_get(start)], []
    for number in range(steps):
        start, report = update(start, jnp.full((4,), number, jnp.float32), *frozen)
        states.append(jax.device_get(start))
        reports.append(report)
    return states, reports


def test_the_generator_moves_at_every_ratio_th_step_and_the_critic_always():
    states, reports = run(*pair(ratio=3), 7, weights(0.5))
    moved = [
        not np.array_equal(a.generator.params["w"], b.generator.params["w"]) for a, b in itertools.pairwise(states)
    ]
    assert moved == [True, False, False, True, False, False, True]
    assert all(not np.array_equal(a.critic.params["w"], b.critic.params["w"]) for a, b in itertools.pairwise(states))
    assert ["generator/loss" in report.metrics for report in reports] == moved
    assert all("critic/seen" in report.metrics for report in reports)
    assert (int(states[-1].step), int(states[-1].generator.step), int(states[-1].critic.step)) == (7, 3, 7)


def test_each_player_sees_the_other_and_what_is_frozen():
    def only_beside(params, batch, key, extra, other, frozen):
        return jnp.sum((params["w"] - other["w"] - frozen["w"]) ** 2), ({}, extra)

    states, _ = run(*pair(only_beside, only_beside, ratio=1), 1, weights(4.0))
    generator = 1.0 - RATE * 2 * (1.0 - 2.0 - 4.0)
    np.testing.assert_allclose(states[1].generator.params["w"], generator, rtol=1e-6)
    critic = 2.0 - RATE * 2 * (2.0 - generator - 4.0)  # against the generator as it has become
    np.testing.assert_allclose(states[1].critic.params["w"], critic, rtol=1e-6)


def test_the_players_draw_from_different_keys():
    start, _ = pair()
    assert not np.array_equal(start.generator.key, start.critic.key)


def draws_by_number(key, updates):
    """What updates 0, 1, ... must draw: each from the trainer's key and its own number, and from nothing else."""
    return [float(jax.random.normal(jax.random.fold_in(jax.random.wrap_key_data(key), i))) for i in range(updates)]


def drawing(params, batch, key, extra, *beside):
    return jnp.sum(params["w"] ** 2), ({"drawn": jax.random.normal(key)}, extra)


def test_a_trainer_draws_anew_at_every_step():
    rule = optax.sgd(RATE)
    states, reports = run(state.create(weights(1.0), rule, 3), step.make_step(gradient.of_loss(drawing), rule), 4)
    expected = draws_by_number(states[0].key, 4)
    assert len(set(expected)) == 4
    np.testing.assert_allclose([report.metrics["drawn"] for report in reports], expected, rtol=1e-6)


def test_each_player_draws_anew_at_every_update_of_its_own():
    states, reports = run(*pair(drawing, drawing, ratio=2), 5)
    for player, updates in (("generator", 3), ("critic", 5)):
        found = [r.metrics[f"{player}/drawn"] for r in reports if f"{player}/drawn" in r.metrics]
        expected = draws_by_number(getattr(states[0], player).key, updates)
        assert len(set(expected)) == updates
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_average_is_a_copy_until_ema_from_and_then_follows_the_generators_updates_only():
    states, _ = run(*pair(ratio=2, ema_decay=0.75, ema_from=3), 7, weights(0.5))
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

    frozen = weights(0.5)
    run(*pair(counted, counted, ratio=2), 5, frozen)
    assert len(traced) == 2  # one each
    np.testing.assert_array_equal(frozen["w"], 0.5)  # not donated


def test_a_ratio_below_one_is_refused():
    with pytest.raises(ValueError, match="ratio=0"):
        pair(ratio=0)


def test_a_gradient_made_by_hand_trains_as_the_loss_it_belongs_to():
    def by_hand(params, batch, key, extra, *beside):
        value, (metrics, extra) = pull(params, batch, key, extra, *beside)
        target = jnp.mean(batch) + jax.random.normal(key, (3,), jnp.float32)
        return gradient.Graded(value, metrics, extra, {"w": 2 * (params["w"] - target)})

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


def regression(params, batch, key, extra):
    error = batch["x"] @ params["w"] - batch["y"]
    return jnp.mean(error**2), ({"largest": jnp.max(batch["y"])}, extra + 1)


def test_accumulated_parts_give_the_gradient_of_the_whole_batch():
    rng = np.random.default_rng(0)
    batch = {name: jnp.asarray(rng.normal(size=(12, 3)), jnp.float32) for name in ("x", "y")}
    params = {"w": jnp.asarray(rng.normal(size=(3, 3)), jnp.float32)}
    arguments = (params, batch, jax.random.key(0), jnp.zeros(()))
    whole = gradient.of_loss(regression)(*arguments)
    parts = jax.jit(gradient.accumulated(gradient.of_loss(regression), 4))(*arguments)
    np.testing.assert_allclose(parts.grads["w"], whole.grads["w"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(parts.value, whole.value, rtol=1e-6)
    largest = np.mean([np.max(batch["y"][i::4]) for i in range(4)])
    np.testing.assert_allclose(parts.metrics["largest"], largest, rtol=1e-6)
    assert parts.extra == 4


def test_accumulated_parts_draw_from_different_keys():
    def draw(params, batch, key, extra):
        noise = jax.random.normal(key, (2,))
        return jnp.sum(params["w"] * noise), ({}, extra + noise)

    params, batch = {"w": jnp.ones((2,))}, jnp.zeros((4,))
    graded = gradient.accumulated(gradient.of_loss(draw), 2)(params, batch, jax.random.key(0), jnp.zeros((2,)))
    draws = [jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (2,)) for i in range(2)]
    np.testing.assert_allclose(graded.extra, draws[0] + draws[1], rtol=1e-6)


def test_a_batch_that_cannot_be_cut_is_refused():
    parts = gradient.accumulated(gradient.of_loss(pull), 3)
    with pytest.raises(ValueError, match="parts=3: a batch of 4"):
        parts(weights(1.0), jnp.zeros((4,)), jax.random.key(0), None)


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
    def broken(params, batch, key, extra):
        return params["good"].sum() + jnp.sqrt(params["bad"].sum()), ({}, extra)

    rule = optax.sgd(RATE)
    params = {"good": jnp.ones((2,)), "bad": jnp.zeros((2,))}
    _, report = step.make_step(gradient.of_loss(broken), rule)(state.create(params, rule, 0), jnp.zeros((1,)))
    culprits = [name for name, finite in zip(report.checked, report.finite, strict=True) if not finite]
    assert culprits == ["gradient/bad", "parameter/bad"]
