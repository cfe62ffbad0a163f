import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omniforcing_jax.config import EightBitKind
from omniforcing_jax.nn.linear import Linear, linear_spec, project
from omniforcing_jax.nn.quantised import EIGHTS, encode, measure_scale, quantise_along, quantised_spec
from omniforcing_jax.parallel import mesh as meshes
from omniforcing_jax.parallel import spec
from omniforcing_jax.parallel.mesh import MeshConfig, make_mesh
from tests.eight_bits import quantise

KINDS = pytest.mark.parametrize("kind", list(EightBitKind))
STEP = {EightBitKind.INT8: 0.5 / 127, EightBitKind.FLOAT8: 1 / 16}  # of the largest value; of a value itself


def draw(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def widen(w):
    return np.asarray(w.values, np.float32) * np.asarray(w.scale)[..., None]


@KINDS
def test_values_and_scales_encode_a_matrix_channel_by_channel(kind):
    w = np.array(draw(6, 64)) * np.array([1e-6, 1, 1e4, 3, 0.1, 0])[:, None]
    found = quantise(w, kind)
    assert (found.values.dtype, found.scale.shape) == (EIGHTS[kind].dtype, (6,))
    top = np.abs(w).max(1, keepdims=True)
    allowed = STEP[kind] * (top if kind is EightBitKind.INT8 else np.maximum(np.abs(w), top / 448 / 64))
    assert (np.abs(widen(found) - w) <= allowed * 1.001 + 1e-37).all()


@KINDS
def test_the_largest_value_of_a_channel_is_exact_to_rounding(kind):
    w = np.array(draw(5, 33))
    top = np.abs(w).argmax(1)[:, None]
    found = np.take_along_axis(widen(quantise(w, kind)), top, 1)
    np.testing.assert_allclose(found, np.take_along_axis(w, top, 1), rtol=2e-7)


@KINDS
def test_a_projection_in_eight_bits_is_that_of_the_matrices_that_they_stand_for(kind):
    p = Linear(w=quantise(draw(48, 64), kind), b=draw(48, seed=1))
    x = draw(2, 7, 64, seed=2)
    rows, scale = quantise_along(x, EIGHTS[kind], -1)
    exact = (np.asarray(rows, np.float64) * np.asarray(scale)) @ widen(p.w).T.astype(np.float64) + np.asarray(p.b)
    np.testing.assert_allclose(project(p, x), exact, rtol=1e-5, atol=2e-5)


@KINDS
def test_eight_bits_of_activations_lose_little_at_any_size_of_a_row(kind):
    p = Linear(w=quantise(draw(48, 512), kind), b=None)
    x = draw(40, 512, seed=2) * np.logspace(-3, 3, 40)[:, None].astype(np.float32)
    exact = np.asarray(x, np.float64) @ widen(p.w).T
    share = np.linalg.norm(project(p, x) - exact, axis=1) / np.linalg.norm(exact, axis=1)
    # Half a step of int8 is 1/254 of a row's largest value, 3.2 deviations here; float8 rounds at 1/16 of a value.
    assert np.median(share) < (3.2 / 127 / np.sqrt(12) * 1.3 if kind is EightBitKind.INT8 else 1 / 16 / np.sqrt(3))


@KINDS
def test_rows_of_zeros_and_rows_of_one_value_are_exact(kind):
    x = jnp.stack([jnp.zeros(8), jnp.full(8, -3e4), jnp.full(8, 1e-30)])
    rows, scale = quantise_along(x, EIGHTS[kind], -1)
    np.testing.assert_allclose(np.asarray(rows, np.float32) * np.asarray(scale), x, rtol=1e-6)


@KINDS
def test_the_result_has_the_type_of_its_input(kind):
    p = Linear(w=quantise(draw(5, 16), kind), b=draw(5))
    assert project(p, draw(3, 16, dtype=jnp.bfloat16)).dtype == jnp.bfloat16
    assert project(Linear(w=p.w, b=None), draw(3, 16)).dtype == jnp.float32


@KINDS
def test_a_gradient_through_eight_bits_is_refused(kind):
    p = Linear(w=quantise(draw(5, 16), kind), b=draw(5))
    with pytest.raises(ValueError, match="weights in eight bits have no gradient"):
        jax.grad(lambda x: project(p, x).sum())(draw(3, 16))
    with pytest.raises(ValueError, match="weights in eight bits have no gradient"):
        jax.grad(lambda scale: project(Linear(w=p.w.replace(scale=scale), b=None), draw(3, 16)).sum())(p.w.scale)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        measure_scale(np.array([[1, np.nan]], np.float32), EightBitKind.INT8)
    with pytest.raises(ValueError, match="not finite"):
        measure_scale(np.array([[1, -np.inf]], np.float32), EightBitKind.INT8)


@KINDS
def test_random_eight_bits_have_the_scale_of_their_inputs(kind):
    declared = quantised_spec(linear_spec(300, 200).w, kind)
    drawn, shapes = spec.init(declared, jax.random.key(0), jnp.bfloat16), spec.abstract(declared, jnp.bfloat16)
    assert jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), drawn) == shapes
    assert abs(widen(drawn).std() * np.sqrt(300) - 1) < 0.02


def test_a_matrix_is_encoded_piece_by_piece_as_in_one(monkeypatch):
    w = np.array(draw(37, 11))
    whole = encode(w, measure_scale(w, EightBitKind.INT8), EightBitKind.INT8)
    monkeypatch.setattr("omniforcing_jax.nn.quantised.VALUES_AT_ONCE", 30)
    np.testing.assert_array_equal(encode(w, measure_scale(w, EightBitKind.INT8), EightBitKind.INT8), whole)


@pytest.mark.parametrize(("dtype", "written"), [("bfloat16", "bf16"), ("float32", "f32"), ("float16", "f32")])
def test_the_product_for_a_gpu_is_of_float8_with_its_fast_sums(dtype, written):
    p, x = Linear(w=quantise(draw(16, 32), "float8"), b=None), draw(16, 32).astype(dtype)
    text = jax.jit(project).trace(p, x).lower(lowering_platforms=("cuda",)).as_text()
    (dot,) = (line for line in text.splitlines() if "dot_general" in line)
    assert dot.count("f8E4M3FN>") == 2
    assert "accumulation_type = f32" in dot
    assert "allow_imprecise_accumulation = true" in dot
    assert dot.endswith(f"tensor<16x16x{written}>")


def test_the_product_of_int8_sums_in_int32():
    p, x = Linear(w=quantise(draw(16, 32), "int8"), b=None), draw(16, 32)
    (dot,) = (line for line in jax.jit(project).lower(p, x).as_text().splitlines() if "dot_general" in line)
    assert "(tensor<16x32xi8>, tensor<16x32xi8>) -> tensor<16x16xi32>" in dot


@KINDS
def test_a_product_whose_inputs_are_cut_over_devices_is_that_of_one_device(kind):
    p, x = Linear(w=quantise(draw(16, 64), kind), b=None), draw(3, 64)
    mesh, declared = make_mesh(MeshConfig.parse("1,2,4")), linear_spec(64, 16, ("embed", "heads"), bias=False)
    shardings = meshes.param_shardings(declared.replace(w=quantised_spec(declared.w, kind)), mesh)
    with jax.set_mesh(mesh):
        put = jax.device_put(x, jax.NamedSharding(mesh, jax.P(None, "tensor")))
        found = jax.jit(project)(jax.device_put(p, shardings), put)
    np.testing.assert_allclose(found, project(p, x), rtol=1e-5, atol=1e-5)
