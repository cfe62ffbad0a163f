"""The trainer on a problem of one matrix: what is resumed equals what was never interrupted."""

import itertools
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omniforcing_jax.train import data, gradient, loop, metrics, optimiser, state, step

STEPS = 8


def noisy_regression(params, batch, key, extra):
    noise = 0.01 * jax.random.normal(key, batch["x"].shape, jnp.float32)
    error = (batch["x"] + noise) @ params["w"].T - batch["y"]
    return jnp.mean(error**2), ({"seen": extra}, extra + 1.0)


def rows():
    """Batches of ones."""
    return data.batches(data.ArraySource({"x": np.ones((4, 1), np.float32)}), 2, seed=0)


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 8)).astype(np.float32)
    source = data.ArraySource({"x": x, "y": (x @ rng.normal(size=(8, 8))).astype(np.float32)})
    rule = optimiser.optimiser(optimiser.OptimiserConfig(learning_rate=0.01, steps=STEPS, warmup=2))

    def fresh():
        params = {"w": jnp.asarray(np.random.default_rng(1).normal(size=(8, 8)), jnp.float32)}
        return state.create(params, rule, seed=3, extra=jnp.zeros(()))

    def run(folder, steps):
        config = loop.LoopConfig(folder=folder, steps=steps, log_every=1, save_every=3)
        return loop.train(
            config,
            fresh(),
            step.make_step(gradient.of_carrying_loss(noisy_regression), rule),
            data.batches(source, 4, seed=5),
        )

    return run


def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(problem, tmp_path):
    unbroken = problem(tmp_path / "unbroken", STEPS)
    problem(tmp_path / "resumed", 3)
    problem(tmp_path / "resumed", 4)
    resumed = problem(tmp_path / "resumed", STEPS)
    jax.tree.map(np.testing.assert_array_equal, unbroken, resumed)
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("unbroken", "resumed")
    ]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]
    assert [line["seen"] for line in lines[0]] == list(range(STEPS))


def test_a_checkpoint_of_another_shape_is_refused(problem, tmp_path):
    problem(tmp_path, 3)
    other = state.create(
        {"w": jnp.ones((5, 8))},
        optimiser.optimiser(optimiser.OptimiserConfig(learning_rate=0.01, steps=9, warmup=2)),
        0,
    )
    config = loop.LoopConfig(folder=tmp_path, steps=4)
    with pytest.raises(ValueError, match=r"another configuration: ema/w=float32\[8, 8\], expected float32\[5, 8\]"):
        loop.train(config, other, lambda *_: None, rows())


def test_a_loss_that_is_not_finite_stops_the_run_and_names_it(problem, tmp_path):
    rule = optimiser.optimiser(optimiser.OptimiserConfig(learning_rate=0.01, steps=9, warmup=2))
    bad = step.make_step(gradient.of_loss(lambda p, batch, key: (p["w"].sum() / 0.0, {})), rule)
    with pytest.raises(loop.NotFiniteError, match=r"step 1: not finite: gradient/w, loss, .*the last checkpoint none"):
        loop.train(
            loop.LoopConfig(folder=tmp_path, steps=2, log_every=1),
            state.create({"w": jnp.ones((8, 8))}, rule, 0),
            bad,
            rows(),
        )


def test_a_source_smaller_than_a_batch_is_refused():
    with pytest.raises(ValueError, match="batch=4"):
        data.batches(data.ArraySource({"x": np.ones((3, 1))}), 4, seed=0)


def test_one_process_reads_batches_of_one_row_as_it_reads_larger_ones():
    source = data.ArraySource({"x": np.arange(5)[:, None]})
    ones, fives = data.batches(source, 1, seed=2), data.batches(source, 5, seed=2)
    for _ in range(3):  # through three orders
        np.testing.assert_array_equal([next(ones)["x"][0] for _ in range(5)], next(fives)["x"])
    position = ones.get_state()
    row = next(ones)["x"]
    ones.set_state(position)
    np.testing.assert_array_equal(next(ones)["x"], row)


@pytest.mark.parametrize(("batch", "processes"), [(4, 2), (4, 4), (1, 1)])
def test_processes_share_the_batches_that_one_process_would_read(batch, processes):
    source = data.ArraySource({"x": np.arange(10)[:, None]})
    whole = data.batches(source, batch, seed=2)
    parts = [data.batches(source, batch, seed=2, process=i, processes=processes) for i in range(processes)]
    for _ in range(6):  # more than the source holds: through a new order, too
        together = np.concatenate([next(part)["x"] for part in parts]).ravel()
        np.testing.assert_array_equal(together, next(whole)["x"].ravel())
    assert parts[0].get_state() == parts[-1].get_state() == whole.get_state()
    with pytest.raises(ValueError, match="batch=4: 3 processes"):
        data.batches(source, 4, seed=2, processes=3)


def test_the_learning_rate_warms_up_stays_and_falls_to_zero():
    rate = optimiser.learning_rate(optimiser.OptimiserConfig(learning_rate=1.0, steps=100, warmup=10, decay_from=0.5))
    np.testing.assert_allclose(
        [rate(0), rate(5), rate(10), rate(49), rate(75), rate(100)], [0, 0.5, 1, 1, 0.5, 0], atol=1e-6
    )


def test_the_learning_rate_of_the_reference_is_constant_or_ends_above_zero():
    constant = optimiser.learning_rate(optimiser.OptimiserConfig(learning_rate=2.0, steps=9, warmup=0, decay_from=1.0))
    np.testing.assert_array_equal([constant(0), constant(8)], [2.0, 2.0])
    floor = optimiser.learning_rate(
        optimiser.OptimiserConfig(learning_rate=2.0, steps=9, warmup=3, decay_from=0.0, last_rate=0.5)
    )
    np.testing.assert_allclose([floor(0), floor(3), floor(6), floor(9), floor(20)], [0, 2, 1.25, 0.5, 0.5], atol=1e-6)


@pytest.fixture
def idle():
    """A trainer of one weight that learns nothing, its step and its batches."""
    rule = optimiser.optimiser(optimiser.OptimiserConfig(learning_rate=0.01, steps=9, warmup=2))
    update = step.make_step(gradient.of_loss(lambda p, batch, key: (p["w"].sum(), {})), rule)
    start = state.create({"w": jnp.ones((2, 2))}, rule, 0)
    return start, update, rows


def test_a_run_of_another_configuration_is_refused_by_the_fields_that_differ(idle, tmp_path):
    start, update, batches = idle
    config = loop.LoopConfig(folder=tmp_path, steps=1)
    described = {"optimiser": {"steps": 9, "rate": 0.1}, "seed": 1}
    loop.train(config, jax.tree.map(jnp.copy, start), update, batches(), describe=described)
    other = {"optimiser": {"steps": 9, "rate": 0.2}, "seed": 1, "given": True}
    with pytest.raises(
        ValueError, match=r"1: made by .*: optimiser.rate=0.1, expected 0.2; given=absent, expected True"
    ):
        loop.train(config, start, update, batches(), describe=other)
    assert json.loads((tmp_path / "config.json").read_text()) == described


def test_a_run_of_another_configuration_goes_on_where_that_is_asked_for(idle, tmp_path, caplog):
    start, update, batches = idle
    first = loop.LoopConfig(folder=tmp_path, steps=1)
    loop.train(first, jax.tree.map(jnp.copy, start), update, batches(), describe={"rate": 0.1})
    config = loop.LoopConfig(folder=tmp_path, steps=2, accept_changes=True)
    end = loop.train(config, start, update, batches(), describe={"rate": 0.2})
    assert int(end.step) == 2
    assert "goes on with another configuration: rate=0.1, expected 0.2" in caplog.text
    assert json.loads((tmp_path / "config.json").read_text()) == {"rate": 0.2}
    assert json.loads((tmp_path / "flags.json").read_text())["steps"] == 2


def test_a_checkpoint_is_made_before_more_than_so_many_minutes_are_unsaved(idle, tmp_path, monkeypatch):
    start, update, batches = idle
    looks = itertools.count(0, 4 * 60)  # four minutes pass between looks at the clock
    monkeypatch.setattr("omniforcing_jax.train.clock.time", types.SimpleNamespace(monotonic=lambda: float(next(looks))))
    config = loop.LoopConfig(folder=tmp_path, steps=9, keep=9, save_minutes=15.0)
    loop.train(config, start, update, batches())
    # At 12 minutes the next look would come at 16. A save takes a look of its own here.
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [3, 6, 9]


def test_measures_belong_to_the_line_of_their_step(idle, tmp_path):
    start, update, batches = idle
    measure = loop.Measure(2, lambda state: {"held_out/loss": jnp.asarray(state.step, jnp.float32)})
    config = loop.LoopConfig(folder=tmp_path, steps=4, log_every=1)
    loop.train(config, start, update, batches(), measures=(measure,))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("held_out/loss") for line in lines] == [None, 2.0, None, 4.0]


def test_what_is_held_out_is_never_learned_from_and_the_same_for_every_run():
    source = data.ArraySource({"x": np.arange(20)[:, None]})
    learned, held = data.hold_out(source, 0.1)
    rows = [[int(part[i]["x"][0]) for i in range(len(part))] for part in (learned, held)]
    assert sorted(rows[0] + rows[1]) == list(range(20))
    assert len(rows[1]) == 2
    read = [batch["x"][:, 0].tolist() for batch in data.ordered_batches(held, 4, 9, None)]
    assert read == [rows[1] * 2]
    assert [len(batch["x"]) for batch in data.ordered_batches(source, 6, 2, None)] == [6, 6]
    assert len(data.hold_out(source, 0.01)[1]) == 0


def refuse_to_step(*arguments):
    raise AssertionError("a step was made")


def test_a_full_disk_is_an_error_before_the_first_step(idle, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 100})())
    with pytest.raises(ValueError, match=rf"{tmp_path}: checkpoints need .* GB of disk, 1e-07 GB are free"):
        loop.train(loop.LoopConfig(folder=tmp_path, steps=1), idle[0], refuse_to_step, idle[2]())


def test_a_damaged_checkpoint_is_refused_by_its_folder(idle, tmp_path):
    start, update, batches = idle
    config = loop.LoopConfig(folder=tmp_path, steps=1)
    loop.train(config, jax.tree.map(jnp.copy, start), update, batches())
    (tmp_path / "checkpoints" / "1" / "data" / "metadata").write_text("{")
    with pytest.raises(ValueError, match=r"checkpoints/1: damaged"):
        loop.train(config, start, update, batches())


def test_hooks_are_called_at_their_steps_with_the_state(idle, tmp_path):
    start, update, batches = idle
    calls = []
    hook = loop.Hook(2, lambda done, state: calls.append((done, int(state.step))))
    loop.train(loop.LoopConfig(folder=tmp_path, steps=5), start, update, batches(), hooks=(hook,))
    assert calls == [(2, 2), (4, 4)]


def test_checkpoints_at_multiples_stay(idle, tmp_path):
    start, update, batches = idle
    config = loop.LoopConfig(folder=tmp_path, steps=5, save_every=1, keep=1, keep_every=2)
    loop.train(config, start, update, batches())
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "4", "5"]


def test_a_gradient_that_breaks_later_names_itself_the_last_good_step_and_the_checkpoint(idle, tmp_path):
    start, _, batches = idle
    rule = optimiser.optimiser(optimiser.OptimiserConfig(learning_rate=0.01, steps=9, warmup=2))

    def breaks_at_step_4(params, batch, key, extra):
        return jnp.sum(jnp.sqrt(jnp.where(extra < 3, 1.0, 0.0) * params["w"])), ({}, extra + 1)

    update = step.make_step(gradient.of_carrying_loss(breaks_at_step_4), rule)
    config = loop.LoopConfig(folder=tmp_path, steps=9, save_every=2)
    start = state.create(start.params, rule, 0, extra=jnp.zeros(()))
    expected = r"step 4: not finite: gradient/w, parameter/w; the last good step is 3, the last checkpoint step 2"
    with pytest.raises(loop.NotFiniteError, match=expected):
        loop.train(config, start, update, batches())
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]


def test_tensorboard_is_asked_for_and_missing(idle, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    start, update, batches = idle
    with pytest.raises(ValueError, match="tensorboardX is not installed"):
        loop.train(loop.LoopConfig(folder=tmp_path, steps=1, tensorboard=True), start, update, batches())


def test_tensorboard_gets_every_metric_of_a_line(tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, *scalar):
            written.append(scalar)

        def close(self):
            written.append("closed")

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    recorder = metrics.Recorder(tmp_path, 4, {"loss": [1.0]}, tensorboard=True)
    recorder.add({"loss": jnp.float32(2.0)})
    recorder.write(5, 0.1)
    recorder.close()
    assert written == [(str(tmp_path / "tensorboard"), 5), ("loss", 1.5, 5), "closed"]


def test_lines_after_the_checkpoint_and_lines_cut_off_are_dropped(tmp_path):
    file = tmp_path / metrics.FILE
    file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    with metrics.open_after(file, 2) as opened:
        opened.write('{"step": 3, "again": 1}\n')
    assert file.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "again": 1}\n'
