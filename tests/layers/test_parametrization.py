"""What of a decoder changes with its size: the references' numbers, and laws.

REFERENCE has the numbers of the public implementations of muP and CompleteP
(nanoGPT-mup, MIT): AdamW, epsilon for all tensors of blocks.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from aigc_jax import hf, optim, run, sharding, tree
from aigc_jax.errors import BadConfig
from aigc_jax.layers.parametrization import (
  KINDS,
  OPTIMIZERS,
  Factors,
  parametrization_of,
)
from aigc_jax.models import MODELS, decoder
from aigc_jax.models.decoder import resolved
from aigc_jax.optim.optimizers import matrix
from aigc_jax.planning import summary
from aigc_jax.presets import skeleton
from aigc_jax.trainer import changes
from tests import tiny
from tests.sweep import sweep

SIGMA, RATE, DECAY, EPSILON = 0.02, 0.01, 0.1, 1e-8
# (base dim, dim, base layers, layers): what muP, CompleteP, depth-muP say.
REFERENCE = {
  (256, 1024, 2, 2): dict(
    std=0.01, rate=0.0025, decay=0.4, logits=0.25,
    completep=dict(rate=0.0025, residual=1.0, eps=2.5e-9, norm=0.01),
    depth_mup=dict(rate=0.0025, residual=1.0, eps=2.5e-9, norm=0.01),
  ),
  (256, 1024, 2, 8): dict(
    std=0.01, rate=0.0025, decay=0.4, logits=0.25,
    completep=dict(rate=0.0025, residual=0.25, eps=6.25e-10, norm=0.01),
    depth_mup=dict(rate=0.00125, residual=0.5, eps=1.25e-9, norm=0.005),
  ),
  (128, 768, 4, 24): dict(
    std=0.008164965809277261, rate=0.0016666666666666668,
    decay=0.6000000000000001, logits=0.16666666666666666,
    completep=dict(
      rate=0.0016666666666666668, residual=0.16666666666666666,
      eps=2.7777777777777777e-10, norm=0.01,
    ),
    depth_mup=dict(
      rate=0.0006804138174397717, residual=0.408248290463863,
      eps=6.804138174397717e-10, norm=0.004082482904638631,
    ),
  ),
}  # fmt: skip
QUERY, UP, NORM = (
  "stack/attention/query/w", "stack/mlp/up/w", "stack/norm_mlp/scale",
)  # fmt: skip
HIDDEN = (
  QUERY, "stack/attention/key/w", "stack/attention/value/w",
  "stack/attention/out/w", "stack/mlp/gate/w", UP, "stack/mlp/down/w",
)  # fmt: skip
OUTSIDE = ("embed/table", "position/table", "head/table", "norm/scale")


def rule(kind, dim=(256, 1024), layers=(2, 2), **base):
  """Heads of 64; sizes are (base, own). base: more of the base's sizes."""
  sizes = dict(
    dim=dim[1], layers=layers[1], heads=dim[1] // 64, kv_heads=dim[1] // 64,
    head_dim=64, mlp_dim=4 * dim[1],
  )  # fmt: skip
  known = dict.fromkeys(sizes) | dict(dim=dim[0], layers=layers[0]) | base
  return parametrization_of(kind, sizes, known, joint=False)


def near(value):
  return pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("point", REFERENCE)
def test_each_class_of_mup_has_the_reference_numbers(point):
  known = REFERENCE[point]
  p = rule("mup", point[:2], point[2:])
  for path in HIDDEN:
    found = p.factors(path, "adamw")
    assert SIGMA * found.deviation == near(known["std"])
    assert RATE * found.learning_rate == near(known["rate"])
    assert DECAY * found.weight_decay == near(known["decay"])
    assert found.learning_rate * found.weight_decay == near(1)
  for path in (*OUTSIDE, NORM, "stack/mlp/up/bias", "head/bias"):
    found = p.factors(path, "adamw")
    assert (found.deviation, found.learning_rate) == (1, 1)
    assert found.weight_decay == 1
  assert p.logits == near(known["logits"]) and p.residual == 1
  # 1 / d itself is that of a base whose heads are one wide.
  assert p.scale(None) is None
  alone = rule("mup", point[:2], point[2:], head_dim=1)
  assert alone.scale(None) == near(0.015625)


@pytest.mark.parametrize("kind", ["completep", "depth_mup"])
@pytest.mark.parametrize("point", REFERENCE)
def test_each_class_in_a_block_follows_the_depth_as_in_the_reference(
  point, kind
):
  known, p = REFERENCE[point][kind], rule(kind, point[:2], point[2:])
  assert p.residual == near(known["residual"])
  for path in HIDDEN:
    found = p.factors(path, "adamw")
    assert RATE * found.learning_rate == near(known["rate"])
    assert EPSILON * found.epsilon == near(known["eps"])
    assert SIGMA * found.deviation == near(REFERENCE[point]["std"])
    assert DECAY * found.weight_decay == near(REFERENCE[point]["decay"])
  for path in (NORM, "stack/attention/query/bias", "stack/mlp/down/bias"):
    found = p.factors(path, "adamw")
    assert RATE * found.learning_rate == near(known["norm"])
    assert EPSILON * found.epsilon == near(known["eps"])
  for path in OUTSIDE:
    assert p.factors(path, "adamw").learning_rate == 1
    assert p.factors(path, "adamw").epsilon == near(point[0] / point[1])


def test_what_grows_at_its_own_pace_goes_by_what_a_tensor_reads_and_makes():
  """As the package mup has MuAdam and MuSGD, weight decay coupled."""
  p = rule("mup", heads=2, mlp_dim=512, head_dim=32, kv_heads=1)
  grown = {"D": 4.0, "NH": 16.0, "KH": 32.0, "F": 8.0}
  assert {axes: p.growth(axes) for axes in grown} == grown
  ends = {QUERY: ("D", "NH"), "stack/attention/key/w": ("D", "KH"),
          "stack/attention/out/w": ("NH", "D"), UP: ("D", "F"),
          "stack/mlp/down/w": ("F", "D")}  # fmt: skip
  for path, (reads, makes) in ends.items():
    adam, sgd = p.factors(path, "adamw"), p.factors(path, "sgd")
    assert adam.learning_rate == 1 / grown[reads]
    assert adam.weight_decay == grown[reads]
    assert adam.deviation == sgd.deviation == grown[reads] ** -0.5
    assert sgd.learning_rate == grown[makes] / grown[reads]
    assert p.factors(path, "lion") == Factors(
      adam.deviation, adam.learning_rate, adam.weight_decay
    )
  vectors = {"embed/table": 4.0, "head/table": 4.0, NORM: 4.0,
             "stack/mlp/up/bias": 8.0, "head/bias": 1.0,
             "stack/attention/key/bias": 32.0}  # fmt: skip
  for path, m in vectors.items():
    sgd = p.factors(path, "sgd")
    assert (sgd.learning_rate, sgd.weight_decay) == (m, 1 / m)
  assert p.scale(None) == near(32**0.5 / 64)
  assert p.scale(0.5) == near(0.25)


@pytest.mark.parametrize("path", HIDDEN)
def test_muon_changes_a_matrix_by_the_root_of_what_it_makes_over_reads(path):
  """In spectral norm, which its direction has like the root of the larger."""
  p = rule("mup", mlp_dim=512)
  tensor = p.tensor(path)

  def norm(sizes):  # of an update at factor 1
    return max(sizes.of(tensor.reads), sizes.of(tensor.makes)) ** 0.5

  found = p.factors(path, "muon")
  moved = found.learning_rate * norm(p.sizes) / norm(p.base)
  wanted = p.growth(tensor.makes) / p.growth(tensor.reads)
  assert moved == near(wanted**0.5)
  assert found.learning_rate * found.weight_decay == near(1)
  for other in (*OUTSIDE, NORM):
    assert p.factors(other, "muon") == p.factors(other, "adamw")


def test_an_optimizer_of_which_nothing_is_known_is_refused():
  for kind in KINDS:
    for optimizer in optim.OPTIMIZERS:
      p, depth = rule(kind), KINDS[kind].depth
      silent = kind != "standard" and (
        optimizer not in OPTIMIZERS or (depth and optimizer == "sgd")
      )
      if not silent:
        p.factors(QUERY, optimizer)
        continue
      with pytest.raises(BadConfig, match=f"optim.kind={optimizer}"):
        p.factors(QUERY, optimizer)
  with pytest.raises(BadConfig, match=r"adafactor.*adamw, lion, sgd, muon"):
    built(parametrization="mup", base_dim=32, kind="adafactor")


@pytest.mark.parametrize(
  ("changed", "words"),
  [
    (dict(parametrization="mup"), r"needs model\.base_dim.*base_dim=64"),
    (dict(parametrization="completep", base_dim=32), r"model\.base_layers"),
    (dict(parametrization="mop", base_dim=32), r"did you mean 'mup'"),
    (dict(parametrization="mup", base_dim=0), r"model\.base_dim=0"),
    (dict(parametrization="mup", base_dim=32, base_heads=-1), "base_heads=-1"),
  ],
)
def test_a_base_that_is_not_said_or_is_none_is_refused(changed, words):
  with pytest.raises(BadConfig, match=words):
    built(**changed)


def config_of(kind="adamw", **model):
  config = skeleton()
  config.optim.kind = kind
  config.data.update(tokenizer="bytes", batch=2, length=8)
  config.model.update(vocab=259, layers=2, dim=64, heads=4, mlp_dim=96)
  config.model.update(model)
  return run.read(config)


def built(**changes):
  mesh = sharding.mesh_of(jax.devices()[0])
  return run.build(config_of(**changes), mesh)


def names_in(style: str) -> list[str]:
  return list(run.deviations(tiny.build(style)))


def said(model) -> str:
  """All that a model's layers are told, to the last digit."""
  return repr(model.clone(parametrization=None))


@pytest.mark.parametrize("style", sweep(tiny.STYLES, "gemma"))
def test_at_the_base_a_decoder_is_the_standard_one_to_the_bit(style):
  own = tiny.STYLES[style]
  base = dict(base_dim=own["dim"], base_layers=own["layers"])
  wanted = said(tiny.build(style))
  for kind in ("mup", "depth_mup", "completep"):
    model = tiny.build(style, parametrization=kind, **base)
    assert said(model) == wanted
    for name in names_in(style):
      assert model.factors(name, "adamw") == Factors()
  grown = tiny.build(style, parametrization="mup", base_dim=own["dim"] // 2)
  assert said(grown) != wanted


@pytest.mark.slow
def test_at_the_base_the_programs_of_a_run_are_those_of_standard():
  base = dict(base_dim=64, base_layers=2, kv_heads=2, tied=False, init_std=0.02)

  def programs(**changes):
    r = built(**base | changes)
    step = jax.jit(r.step).lower(r.state, r.batch).as_text()
    return r.init.lower().as_text(), step

  wanted = programs()
  assert programs(parametrization="completep") == wanted
  larger = programs(parametrization="mup", base_dim=32)
  assert all(a != b for a, b in zip(larger, wanted, strict=True))


@pytest.mark.parametrize("style", tiny.STYLES)
def test_every_parameter_of_a_decoder_is_of_a_class(style):
  """And matrices of blocks are those that Muon takes for such."""
  model = tiny.build(style, parametrization="mup", base_dim=12)
  for name in names_in(style):
    found = model.parametrization.tensor(name)
    assert (found.role == "hidden") == (matrix(name) is not None)
    assert found.block == name.startswith("stack/")
    assert model.factors(name, "sgd").learning_rate > 0


def test_a_parameter_of_no_class_is_refused():
  with pytest.raises(BadConfig, match=r"no rule says how stack/router/w"):
    rule("mup").factors("stack/router/w", "adamw")


def test_fresh_weights_have_the_deviations_of_the_table():
  for std in (None, 0.02):
    r = built(
      parametrization="mup", base_dim=16, tied=False, init_std=std, head_dim=16
    )
    found = run.deviations(r.model)
    assert found["embed/table"] == found["head/table"] == near(std or 16**-0.5)
    hidden = (std or 16**-0.5) / 2  # grown fourfold
    assert found[QUERY] == found[UP] == near(hidden)
    assert found["stack/attention/out/w"] == near(hidden / 4**0.5)
    fan_in = std and std / 2 or 96**-0.5
    assert found["stack/mlp/down/w"] == near(fan_in / 4**0.5)


def test_a_dry_run_shows_each_factor_and_what_is_multiplied():
  r = built(
    parametrization="completep", base_dim=16, base_layers=1, base_head_dim=4
  )
  rows = {
    line.split()[0]: line.split()[2:-1]
    for line in summary.parameters(r).splitlines()
  }
  assert rows["parameter"][2:] == ["deviation", "rate", "decay", "eps"]
  assert rows["embed/table"] == ["0.25", "1", "0", "0.25"]
  assert rows[QUERY] == ["0.125", "0.25", "0.4", "0.125"]
  (table,) = summary.multipliers(r)
  told = {" ".join(line.split()) for line in table.splitlines()}
  assert {"scores, as the base has them x 0.25", "what a block adds x 0.5",
          "logits x 0.25"} <= told  # fmt: skip


@pytest.mark.slow
def test_training_by_table_8_is_training_by_table_3():
  """A head fresh and moved by 1 / m is one whose logits are times 1 / m.

  But for rounding: products and sums of other numbers are fused into one.
  """
  style = dict(tiny.LLAMA, dim=32, init_std=0.02, mlp_dim=64)
  eight = decoder(**style, parametrization="mup", base_dim=8)
  three = eight.clone(logit_multiplier=0.0)
  batch = tiny.ragged_batch(2, 7)
  start = jax.jit(eight.init)(jax.random.key(0), batch)
  start = nn.unbox(start)["params"]
  names = tree.names(start)
  factors = {name: eight.factors(name, "adamw") for name in names}

  def trained(model, params, factors):
    optimizer, _ = optim.build(
      kind="adamw", learning_rate=0.01, schedule="constant", warmup_steps=0,
      decay_steps=None, final_fraction=1.0, weight_decay=0.0, clip=None,
      b1=0.9, b2=0.95, eps=1e-30, groups=(), mu_dtype="float32", steps=9,
      params=params, factors=factors,
    )  # fmt: skip
    score = tiny.score_of(model)

    @jax.jit
    def step(params, state):
      loss, grads = jax.value_and_grad(
        lambda p: score(p, batch, None)["loss"].sum
      )(params)
      updates, state = optimizer.update(grads, state, params)
      return optax.apply_updates(params, updates), state, loss

    state, losses = optimizer.init(params), []
    for _ in range(3):
      params, state, loss = step(params, state)
      losses.append(float(loss))
    return params, losses

  quarter = jax.tree.map(lambda x: x / 4, start["head"])
  by_head = factors | {"head/table": Factors(learning_rate=0.25, epsilon=0.25)}
  a, losses = trained(eight, start, factors)
  b, again = trained(three, start | {"head": quarter}, by_head)
  np.testing.assert_allclose(losses, again, rtol=1e-6)
  assert losses[2] < losses[0]
  whole = jax.tree.map(lambda x: 4 * x, b["head"])
  assert tiny.distance(a["head"], whole) < 1e-6 < tiny.distance(a, start)
  assert tiny.distance(a["stack"], b["stack"]) < 1e-6


def test_a_factor_of_epsilon_is_a_larger_or_smaller_epsilon():
  grads = {"a": np.float32([1e-4, -3e-4]), "b": np.float32([1e-4, 2e-4])}

  def moved(eps, factors=None):
    f, _ = optim.build(
      kind="adamw", learning_rate=1.0, schedule="constant", warmup_steps=0,
      decay_steps=None, final_fraction=1.0, weight_decay=0.0, clip=None,
      b1=0.9, b2=0.95, eps=eps, groups=(), mu_dtype="float32", steps=9,
      params=grads, factors=factors,
    )  # fmt: skip
    return jax.jit(lambda g: f.update(g, f.init(g), g)[0])(grads)

  some = moved(1e-4, {"a": Factors(epsilon=0.25), "b": Factors()})
  np.testing.assert_allclose(some["a"], moved(0.25e-4)["a"], rtol=1e-6)
  np.testing.assert_array_equal(some["b"], moved(1e-4)["b"])
  safe = dict(kind="adamw", b1=0.9, b2=0.95, eps=1e-8, mu_dtype="float32")
  assert optim.at_once(**safe, clip=None) and optim.at_once(
    **safe, clip=1.0, epsilon=0.01
  )
  assert not optim.at_once(**safe, clip=None, epsilon=0.01)


def test_groups_multiply_what_the_parametrization_says():
  params = {"stack": {"mlp": {"up": {"w": jnp.ones(2)}}}}
  group = dict(patterns=["stack/*"], weight_decay=0.3, learning_rate_factor=0.5)
  found = optim.treatments(params, [group], 0.1, {UP: Factors(1, 0.25, 4.0)})
  assert found[UP].learning_rate_factor == 0.125
  assert found[UP].weight_decay == pytest.approx(1.2)


def test_a_part_of_several_models_keeps_its_own_factors():
  model = dict(
    tiny.LLAMA, kind="decoder", parametrization="mup", base_dim=12
  )  # fmt: skip
  plain = dict(tiny.LLAMA, kind="decoder")
  both = MODELS["roles"](parts=dict(student=model, teacher=plain))
  assert both.factors(f"student/{QUERY}", "adamw").learning_rate == 0.5
  assert both.factors(f"teacher/{QUERY}", "adamw") == Factors()


@pytest.mark.parametrize("style", sweep(["llama", "gemma", "olmo"], "llama"))
def test_a_model_is_a_standard_one_with_its_multipliers(style):
  grown = tiny.STYLES[style] | dict(
    parametrization="completep", base_dim=12, base_layers=1, base_head_dim=2
  )
  keys = {f"base_{k}": None for k in ("heads", "kv_heads", "mlp_dim")}
  plain = dict(qk_norm_joint=False, embed_multiplier=None,
               residual_multiplier=None, logit_multiplier=None)  # fmt: skip
  said = resolved(plain | keys | grown)
  assert said["parametrization"] == "standard"
  batch = {"tokens": tiny.some_tokens(2, 7)}
  params = {"params": tiny.params_of(style)}

  def logits(model):
    f = jax.jit(lambda p, batch: model.apply(p, batch).logits())
    return np.asarray(f(params, batch))

  a, b = (logits(decoder(**k)) for k in (grown, said))
  np.testing.assert_array_equal(a, b)
  standard = np.asarray(tiny.logits(style, batch["tokens"]))
  assert np.max(np.abs(a - standard)) > 1e-3


def test_a_mup_llama_is_written_for_transformers_as_a_granite():
  kwargs = config_of(
    parametrization="completep", base_dim=16, base_layers=1, base_head_dim=4
  )["model"]
  del kwargs["kind"]
  family = hf.choose_family(kwargs)
  assert family.model_type == "granite"
  written = hf.families.write_config(family, kwargs)
  assert written["logits_scaling"] == 4
  assert written["residual_multiplier"] == 0.5
  assert written["attention_multiplier"] == 4**0.5 / 16


def test_a_run_of_before_there_were_such_keys_goes_on():
  now = config_of()
  before = {k: dict(v) if k == "model" else v for k, v in now.items()}
  for key in [k for k in before["model"] if k.startswith(("base_", "parame"))]:
    del before["model"][key]
  assert len(before["model"]) == len(now["model"]) - 7
  assert changes.changes(before, now) == []
  assert run.read(before)["model"] == before["model"]
  (found,) = changes.changes(
    before, config_of(parametrization="mup", base_dim=64)
  )[1:]
  assert found.key == "model.parametrization" and found.old == "standard"
  # Nor does it matter that the decoder is a part of something.
  as_part = [{"model": {"parts": {"prior": c["model"]}}} for c in (before, now)]
  assert changes.changes(*as_part) == []
  a, b = run.filled(as_part)
  assert (
    a["model"]["parts"]["prior"]["parametrization"]
    == b["model"]["parts"]["prior"]["parametrization"]
  )
