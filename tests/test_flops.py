"""FLOPs per token against figures worked out apart from the code."""

import jax
import jax.numpy as jnp
import pytest

from aigc_jax import flops, run, sharding
from aigc_jax.layers.visible import Visible
from configs import quickstart
from tests.test_presets import FAMILIES


def decoder(
  vocab, layers, dim, heads, kv_heads, head_dim, mlp_dim, *, gated, tied
):
  """A decoder's abstract parameters, with parts that must not be counted."""

  def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)

  def weight(*shape):
    return {"w": array(layers, *shape), "bias": array(layers, shape[-1])}

  mlp = {"up": weight(dim, mlp_dim), "down": weight(mlp_dim, dim)}
  if gated:
    mlp["gate"] = weight(dim, mlp_dim)
  params = {
    "embed": {"table": array(vocab, dim)},
    "position": {"table": array(1024, dim)},
    "stack": {
      "norm_attention": {"scale": array(layers, dim)},
      "attention": {
        "query": weight(dim, heads, head_dim),
        "key": weight(dim, kv_heads, head_dim),
        "value": weight(dim, kv_heads, head_dim),
        "out": weight(heads, head_dim, dim),
      },
      "mlp": mlp,
    },
    "norm": {"scale": array(dim)},
  }
  if not tied:
    params["head"] = {"table": array(vocab, dim)}
  return params


GPT2_SMALL = decoder(50304, 12, 768, 12, 12, 64, 3072, gated=False, tied=True)


# name: abstract parameters, length, matmul parameters in millions, GFLOPs by
# our convention and by PaLM's, the latter two to three or four digits.
TABLE = {
  "gpt2_124m": (GPT2_SMALL, 1024, 123.6, 0.7980, 0.8547),
  "gpt2_1.5b": (
    decoder(50304, 48, 1600, 25, 25, 64, 6400, gated=False, tied=True),
    1024, 1555, 9.802, 10.27,
  ),
  "1.3b": (
    decoder(50304, 24, 2048, 16, 16, 128, 8192, gated=False, tied=True),
    2048, 1311, 8.470, 9.07,
  ),
  "llama3.2_1b": (
    decoder(128256, 16, 2048, 32, 8, 64, 8192, gated=True, tied=True),
    4096, 1236, 8.220, 9.03,
  ),
  "llama3.2_3b": (
    decoder(128256, 28, 3072, 24, 8, 128, 8192, gated=True, tied=True),
    4096, 3213, 21.39, 23.5,
  ),
  "llama3_8b": (
    decoder(128256, 32, 4096, 32, 8, 128, 14336, gated=True, tied=False),
    4096, 7505, 48.25, 51.5,
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_known_models(name):
  params, length, millions, ours, palm = TABLE[name]
  cost = flops.per_token(params, length=length, windows=())
  assert cost.matmul_params / 1e6 == pytest.approx(millions, rel=5e-4)
  assert cost.train / 1e9 == pytest.approx(ours, rel=5e-4)
  assert cost.palm / 1e9 == pytest.approx(palm, rel=1e-3)


def test_gpt2_small_to_the_last_flop():
  cost = flops.per_token(GPT2_SMALL, length=1024, windows=())
  matmul = 50304 * 768 + 12 * (4 * 768 * 768 + 2 * 768 * 3072)
  assert cost.matmul_params == matmul == 123_568_128
  assert cost.train == 6 * matmul + 12 * 12 * 768 * 512.5
  assert cost.palm == 6 * matmul + 12 * 12 * 768 * 1024
  assert cost.train == 3 * cost.forward


@pytest.mark.parametrize("window", [None, 1, 3, 7, 9])
@pytest.mark.parametrize("causal", [True, False])
def test_context_is_the_mean_over_a_mask_that_is_counted(window, causal):
  length = 7
  seen_TS = Visible(causal, window).mask(length, length)
  seen = length**2 if seen_TS is None else int(seen_TS.sum())
  assert flops.context(length, window, causal) == pytest.approx(seen / length)


def test_products_are_counted_where_they_are_and_as_often_as_they_run():
  x, w = jnp.ones((3, 5)), jnp.ones((5, 5))

  def looped(x, w):
    return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=4)[0]

  assert flops.count(looped, x, w) == 4 * 2 * 3 * 5 * 5
  grad = jax.grad(lambda x, w: looped(x, w).sum(), argnums=(0, 1))
  assert flops.count(grad, x, w) == 3 * 4 * 2 * 3 * 5 * 5
  # What no gradient reaches has no backward products.
  grad = jax.grad(lambda x, w: looped(jax.lax.stop_gradient(x) @ w, w).sum())
  assert flops.count(grad, x, w) == 2 * 75 * 1 + 4 * 2 * 75
  branch = lambda x, w: jax.lax.cond(  # noqa: E731
    x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w
  )
  assert flops.count(branch, x, w) == 2 * 2 * 75
  images, kernel = jnp.ones((2, 8, 8, 6)), jnp.ones((3, 3, 3, 10))
  convolved = lambda a, b: jax.lax.conv_general_dilated(  # noqa: E731
    a, b, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=2,
  )  # fmt: skip
  assert flops.count(convolved, images, kernel) == 2 * 2 * 4 * 4 * 10 * 9 * 3
  experts = lambda x, w, n: jax.lax.ragged_dot(x, w, n)  # noqa: E731
  of_three = jnp.ones((3, 5, 7)), jnp.array([1, 2, 0])
  assert flops.count(experts, x, *of_three) == 2 * 3 * 5 * 7


def test_a_loop_of_unknown_length_is_refused_if_it_multiplies():
  x = jnp.ones((5, 5))
  until = lambda x: jax.lax.while_loop(  # noqa: E731
    lambda x: x[0, 0] < 9, lambda x: x @ x, x
  )
  with pytest.raises(ValueError, match="unknown length"):
    flops.count(until, x)


def counted(config) -> float:
  """The count of the traced gradient against the closed formula."""
  mesh = sharding.mesh_of(jax.devices()[0])
  r = run.build(run.read(config), mesh)

  def loss(params, batch):
    return r.score(params, batch, jax.random.key(0))["loss"].sum

  gradient = jax.value_and_grad(loss)
  return flops.count(gradient, r.state.params, r.batch) / r.flops_per_step


SOME = ("gpt2", "gemma")  # learned places and biases; windows, caps, tied


def presets():
  """One of some families, all others among the slow tests."""
  for family, config in FAMILIES.items():
    for i, size in enumerate(config.SIZES):
      marks = [pytest.mark.slow] if i or family not in SOME else []
      yield pytest.param(config, size, marks=marks, id=f"{family}:{size}")


@pytest.mark.parametrize("config, size", list(presets()))
def test_the_traced_gradient_costs_what_the_formula_says(config, size):
  assert counted(config.get_config(size)) == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
def test_speed_switches_do_not_change_what_a_step_costs():
  config = quickstart.get_config()
  config.model.update(layers=4, windows=(16, None))
  config.compute.update(remat="full", kernel="blocks", unroll=2, microbatches=2)
  assert counted(config) == pytest.approx(1, abs=1e-3)


def test_what_fills_the_last_piece_of_the_loss_costs_nothing():
  """Of 2,048 tokens in pieces of 1,500 the last is filled with 952 more."""
  config = quickstart.get_config()
  found = []
  for config.objective.chunk in (None, 1500):
    found.append(counted(config))
  assert found[0] == found[1]


def test_windows_repeat_over_the_layers():
  params = decoder(11, 5, 6, 2, 1, 4, 10, gated=True, tied=True)

  def attention(windows):
    return flops.per_token(params, length=8, windows=windows).attention

  local, whole = flops.context(8, 2, True), flops.context(8, None, True)
  assert attention((2, None)) == 2 * 4 * (3 * local + 2 * whole)
  assert attention((2,)) == 2 * 4 * 5 * local
  assert attention((None,)) == attention(()) == 2 * 4 * 5 * whole


def test_a_separate_head_costs_and_the_look_up_does_not():
  tied = decoder(11, 5, 6, 2, 1, 4, 10, gated=True, tied=True)
  untied = decoder(11, 5, 6, 2, 1, 4, 10, gated=True, tied=False)
  assert flops.matmul_params(tied) == flops.matmul_params(untied)
  headless = {k: v for k, v in tied.items() if k != "embed"}
  assert flops.matmul_params(tied) - flops.matmul_params(headless) == 66


def test_a_program_for_each_device_counts_on_all_of_them():
  mesh = sharding.make_mesh(
    data=8, fsdp=1, expert=1, tensor=1, sequence=1, pipeline=1
  )
  x, w = jnp.ones((16, 6)), jnp.ones((6, 5))

  def f(x, w):
    return sharding.over_batch(
      lambda x, w: jnp.sum(x @ w), mesh, (True, False)
    )(x, w)

  assert flops.count(f, x, w) == 2 * 16 * 6 * 5
