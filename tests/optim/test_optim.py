"""One contract for every optimizer, and the parts they share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from aigc_jax import optim, sharding, tree
from aigc_jax.errors import BadConfig
from aigc_jax.optim import groups, optimizers
from tests import tiny
from tests.sweep import sweep

RUN = dict(
  kind="adamw",
  learning_rate=0.01,
  schedule="constant",
  warmup_steps=0,
  decay_steps=None,
  final_fraction=0.1,
  weight_decay=0.0,
  clip=0.0,
  b1=0.9,
  b2=0.95,
  eps=1e-8,
  groups=(),
  mu_dtype="float32",
  steps=100,
)
KINDS = list(optim.OPTIMIZERS)

# L, V, T, D, N, K, H, F of a decoder
SIZES = dict(L=2, V=11, T=7, D=6, N=4, K=2, H=3, F=10)
SHAPES = {
  "embed/table": "VD",
  "position/table": "TD",
  "stack/norm_attention/scale": "LD",
  "stack/attention/query/w": "LDNH",
  "stack/attention/query/bias": "LNH",
  "stack/attention/key/w": "LDKH",
  "stack/attention/value/w": "LDKH",
  "stack/attention/out/w": "LNHD",
  "stack/mlp/gate/w": "LDF",
  "stack/mlp/up/w": "LDF",
  "stack/mlp/down/w": "LFD",
  "norm/scale": "D",
  "head/table": "VD",
}
# Of each kind of treatment one or two: what most laws are said of, since each
# parameter is compiled by itself.
FEW = [
  "embed/table",
  "stack/norm_attention/scale",
  "stack/attention/query/w",
  "stack/attention/query/bias",
  "stack/mlp/up/w",
  "stack/mlp/down/w",
  "norm/scale",
  "head/table",
]
MATRICES = [n for n in SHAPES if n.startswith("stack") and n.endswith("/w")]


def build(params, **changes):
  return optim.build(**{**RUN, **changes}, params=params)[0]


def nest(flat):
  out = {}
  for name, x in flat.items():
    *path, last = name.split("/")
    place = out
    for part in path:
      place = place.setdefault(part, {})
    place[last] = x
  return out


def normal(seed, names=FEW, **sizes):
  """A tree of the decoder's shapes with normal entries, in numpy.

  Arithmetic on it costs no compilation.
  """
  rng = np.random.default_rng(seed)
  sizes = {**SIZES, **sizes}
  return nest(
    {
      name: rng.normal(size=[sizes[a] for a in SHAPES[name]]).astype(np.float32)
      for name in names
    }
  )


def descent(optimizer, target):
  """A step down the quadratic 0.5 * |params - target|^2."""

  def step(params, state):
    grads = jax.tree.map(jnp.subtract, params, target)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  return step


def runner(optimizer, target):
  return quick(descent(optimizer, target))


def first(optimizer, params, target):
  """Parameters and state after the first step, whose state is a fresh one."""
  step = descent(optimizer, target)
  return quick(lambda p: step(p, optimizer.init(p)))(params)


def update_of(optimizer, grads, params):
  """The first update."""

  def update(grads, params):
    return optimizer.update(grads, optimizer.init(params), params)[0]

  return jax.device_get(quick(update)(grads, params))


QUICK = (
  {"xla_cpu_use_fusion_emitters": False}
  if jax.__version__.startswith("0.10.")
  else {}  # newer versions dropped the option
)


def quick(f):
  """`jax.jit` that compiles three times as fast what runs a few times."""
  return jax.jit(f, compiler_options=QUICK)


def norm(x):
  squares = [
    np.sum(np.square(leaf)) for leaf in map(np.asarray, jax.tree.leaves(x))
  ]
  return float(np.sqrt(sum(squares)))


def distance(a, b):
  return norm(jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), a, b))


def same_bits(a, b):
  return all(
    np.asarray(x).tobytes() == np.asarray(y).tobytes()
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


# Everything on, so that the contract covers it.
HARD = dict(
  weight_decay=0.1,
  clip=1.0,
  schedule="cosine",
  warmup_steps=3,
  mu_dtype="bfloat16",
)


@pytest.mark.parametrize(
  "kind, b1",
  sweep(
    [(k, 0.9) for k in KINDS] + [("sgd", 0.0), ("adafactor", 0.0)],
    ("adamw", 0.9),
    ("muon", 0.9),
    ("adafactor", 0.0),
  ),
)
def test_descends_a_quadratic(kind, b1):
  params, target = normal(0), normal(1)
  optimizer = build(params, kind=kind, learning_rate=0.1, b1=b1)
  step, state = runner(optimizer, target), quick(optimizer.init)(params)
  before = distance(params, target)
  for _ in range(60):
    params, state = step(params, state)
  assert distance(params, target) < 0.5 * before
  for name, x in tree.flat(params).items():
    assert x.dtype == jnp.float32, name
    assert distance(x, tree.flat(target)[name]) < distance(
      tree.flat(normal(0))[name], tree.flat(target)[name]
    ), name


@pytest.mark.parametrize("kind", sweep(KINDS, "adamw"))
def test_goes_on_from_a_copy_of_its_state_as_if_never_stopped(kind):
  params, target = normal(0), normal(1)
  optimizer = build(params, kind=kind, **HARD)
  step, state = runner(optimizer, target), quick(optimizer.init)(params)
  for _ in range(3):
    params, state = step(params, state)
  saved = jax.tree.map(np.array, (params, state))
  on = runner(build(params, kind=kind, **HARD), target)
  again = on(*saved)
  assert same_bits(again, step(params, state))
  # The state has the structure of a fresh one, as restoring wants.
  fresh = jax.eval_shape(optimizer.init, params)
  assert jax.tree.structure(state) == jax.tree.structure(fresh)
  for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(fresh), strict=True):
    assert (x.shape, x.dtype) == (y.shape, y.dtype)


@pytest.mark.parametrize("kind", sweep(KINDS, "adamw"))
def test_a_frozen_group_keeps_every_bit(kind):
  params, target = normal(0), normal(1)
  params["embed"]["table"][0, 0] = -0.0
  frozen = ["embed/*", "stack/mlp/*/w", "norm/scale"]
  group = dict(patterns=frozen, weight_decay=0.1, learning_rate_factor=0.0)
  optimizer = build(params, kind=kind, groups=[group], **HARD)
  update, state = quick(optimizer.update), quick(optimizer.init)(params)
  new = params
  for _ in range(3):
    grads = jax.tree.map(np.subtract, new, target)
    updates, state = update(grads, state, new)
    # Not compiled: XLA would drop the addition of a zero of either sign.
    new = jax.tree.map(np.add, new, updates)
  for name, x in tree.flat(new).items():
    kept = same_bits(x, tree.flat(params)[name])
    assert kept == tree.match(frozen, name), name


@pytest.mark.parametrize("kind", sweep(KINDS, "adamw"))
def test_weight_decay_is_decoupled_and_spares_what_it_should(kind):
  """With decay minus without is -rate * decay * p, or nothing at all."""
  params, target = (normal(i, [*FEW, "position/table"]) for i in (0, 1))
  optimizers = {d: build(params, kind=kind, weight_decay=d) for d in (0.0, 0.5)}
  new = {d: first(o, params, target)[0] for d, o in optimizers.items()}
  spared = ["*/scale", "*/bias", "embed/table", "position/table"]
  for name, p in tree.flat(params).items():
    change = np.subtract(tree.flat(new[0.5])[name], tree.flat(new[0.0])[name])
    decay = 0.0 if tree.match(spared, name) else 0.5
    np.testing.assert_allclose(
      change, -0.01 * decay * p, atol=1e-6, err_msg=name
    )


@pytest.mark.parametrize("kind", sweep(KINDS, "adamw"))
def test_a_group_has_its_own_decay_and_rate(kind):
  params, target = normal(0), normal(1)
  groups = [
    dict(patterns=["embed/table"], weight_decay=0.2, learning_rate_factor=3.0),
    dict(patterns=["*"], weight_decay=0.0, learning_rate_factor=1.0),
  ]
  plain, grouped = (
    first(o, params, target)[0]
    for o in (
      build(params, kind=kind),
      build(params, kind=kind, groups=groups, weight_decay=9.0),
    )
  )
  p = params["embed"]["table"]
  change = np.asarray(plain["embed"]["table"]) - p
  np.testing.assert_allclose(
    np.asarray(grouped["embed"]["table"]) - p,
    3 * (change - 0.01 * 0.2 * p),
    atol=1e-6,
  )
  del plain["embed"], grouped["embed"]
  assert same_bits(plain, grouped)


PLAYER = dict(
  patterns=["stack/*"], weight_decay=0.1, learning_rate_factor=2.0,
  every_steps=3,
)  # fmt: skip


@pytest.mark.parametrize("kind", sweep(KINDS, "adamw"))
def test_a_player_moves_in_every_nth_update_alone(kind):
  """And between them every bit of its moments and counts stays."""
  params, target = normal(0), normal(1)
  params["stack"]["mlp"]["up"]["w"][0, 0, 0] = -0.0
  optimizer = build(params, kind=kind, groups=[PLAYER])
  step, state = runner(optimizer, target), quick(optimizer.init)(params)
  group = {name: tree.match(PLAYER["patterns"], name) for name in FEW}
  for n in range(5):
    new, after = step(params, state)
    for name, x in tree.flat(new).items():
      held = same_bits(x, tree.flat(params)[name])
      assert held == (group[name] and n % 3 != 0), (n, name)
    own, own_after = (
      [x for name, x in tree.flat(s).items() if "player0" in name]
      for s in (state, after)
    )
    changed = [not same_bits(a, b) for a, b in zip(own, own_after, strict=True)]
    # What counts the updates is all that changes in each of them.
    assert sum(changed) > 1 if n % 3 == 0 else sum(changed) == 1
    params, state = new, after


@pytest.mark.parametrize("kind", sweep(KINDS, "adamw"))
def test_a_player_is_moved_as_if_the_updates_between_were_none(kind):
  params, target = normal(0), normal(1)
  factor = dict(PLAYER, learning_rate_factor=2.0)
  alone = dict(patterns=["*"], weight_decay=0.1, learning_rate_factor=2.0)
  game = build(params, kind=kind, groups=[factor], clip=1.0)
  step, state = runner(game, target), quick(game.init)(params)
  whole = params
  for _ in range(4):  # its updates are the first and the fourth
    whole, state = step(whole, state)
  own, goal = {"stack": params["stack"]}, {"stack": target["stack"]}
  single = build(own, kind=kind, groups=[alone], clip=1.0)
  step, state = runner(single, goal), quick(single.init)(own)
  for _ in range(2):
    own, state = step(own, state)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    whole["stack"],
    own["stack"],
  )


def test_a_player_is_clipped_by_its_own_norm():
  params, grads = normal(0), normal(1)
  grads["stack"] = jax.tree.map(lambda g: 1e3 * g, grads["stack"])
  asked = dict(PLAYER, every_steps=1, weight_decay=0.0, learning_rate_factor=1)
  for group, own in ((asked, 0.5), (dict(asked, clip=0.2), 0.2)):
    optimizer = build(
      params, kind="sgd", b1=0.0, clip=0.5, groups=[group], learning_rate=1.0
    )
    updates = update_of(optimizer, grads, params)
    np.testing.assert_allclose(norm(updates.pop("stack")), own, rtol=1e-5)
    # The others do not shrink by it.
    np.testing.assert_allclose(norm(updates), 0.5, rtol=1e-5)


@pytest.mark.slow
def test_players_go_on_from_a_copy_of_their_state():
  params, target = normal(0), normal(1)
  how = HARD | dict(groups=[PLAYER, dict(GROUP, clip=0.3)])
  optimizer = build(params, **how)
  step, state = runner(optimizer, target), quick(optimizer.init)(params)
  for _ in range(2):
    params, state = step(params, state)
  leaves, shape = jax.tree.flatten((params, state))
  copies = [jnp.asarray(np.asarray(x)) for x in leaves]
  again = jax.tree.unflatten(shape, copies)
  on = runner(build(params, **how), target)
  for _ in range(3):
    params, state = step(params, state)
    again = on(*again)
  assert same_bits(again, (params, state))


@pytest.mark.parametrize("kind", sweep(KINDS, "adamw"))
def test_the_first_group_that_matches_counts(kind):
  params = normal(0)
  group = dict(patterns=["*"], weight_decay=0.0, learning_rate_factor=1.0)
  freeze = {**group, "learning_rate_factor": 0.0}
  optimizer = build(params, kind=kind, groups=[group, freeze])
  new, _ = first(optimizer, params, normal(1))
  assert not any(map(same_bits, jax.tree.leaves(new), jax.tree.leaves(params)))


def test_adamw_is_that_of_optax():
  params, target = normal(0), normal(1)
  run = dict(schedule="cosine", warmup_steps=2, clip=1.0, weight_decay=0.3)
  ours, rate = optim.build(**{**RUN, **run}, params=params)
  decayed = [*MATRICES, "head/table"]
  mask = jax.tree_util.tree_map_with_path(
    lambda path, _: tree.match(decayed, tree.name_of(path)), params
  )
  theirs = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(rate, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.3, mask=mask),
  )

  def after(optimizer):
    step = descent(optimizer, target)

    def five(params):
      start = params, optimizer.init(params)
      return jax.lax.scan(lambda c, _: (step(*c), None), start, length=5)[0][0]

    return quick(five)(params)

  a, b = after(ours), after(theirs)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b
  )


@pytest.mark.parametrize("style", tiny.STYLES)
def test_the_decoder_names_its_parameters_as_the_rules_expect(style):
  model = tiny.build(style)
  batch = {"tokens": jax.ShapeDtypeStruct((1, 2), jnp.int32)}
  boxed = jax.eval_shape(model.init, jax.random.key(0), batch)
  params = nn.unbox(boxed)["params"]
  treat = groups.treatments(params, (), 0.1)
  for name in tree.names(params):
    is_matrix = name.startswith("stack/") and name.endswith("/w")
    assert (optimizers.matrix(name) is not None) == is_matrix, name
    decays = is_matrix or name == "head/table"
    assert treat[name].weight_decay == (0.1 if decays else 0.0), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", sweep(KINDS, "muon"))
def test_layers_do_not_see_each_other(kind):
  """A stacked parameter's layers are updated as if each were alone."""
  sizes = dict(D=128, N=4, K=4, H=32, F=130, V=1, T=1)
  params, grads = (normal(i, SHAPES, **sizes) for i in (0, 1))
  # Layers of very different scale would disturb each other at once.
  for g in jax.tree.leaves(grads):
    g[0] *= 1e-3
  names = MATRICES + ["stack/attention/query/bias"]

  # One layer's gradient jumps: Adafactor then clips that layer's update.
  later = jax.tree.map(np.copy, grads)
  for g in jax.tree.leaves(later):
    g[-1] *= 30

  def update(params, grads, later):
    optimizer = build(params, kind=kind)
    step, state = quick(optimizer.update), quick(optimizer.init)(params)
    _, state = step(grads, state, params)
    return tree.flat(step(later, state, params)[0])

  trees = (params, grads, later)
  whole = update(*trees)
  for layer in range(2):
    cut = slice(layer, layer + 1)
    alone = update(*jax.tree.map(lambda x, c=cut: x[c], trees))
    for name in names:
      np.testing.assert_allclose(
        whole[name][cut], alone[name], rtol=2e-3, atol=1e-5, err_msg=name
      )


def reference_muon(g):
  """One step from zero momentum on a single (in, out) matrix, in float64.

  The quintic iteration of Jordan et al., on Nesterov momentum whose bias is
  corrected; then a root mean square of about 0.2.
  """
  beta = 0.95
  nesterov = beta * (1 - beta) * g / (1 - beta**2) + (1 - beta) * g / (1 - beta)
  x = nesterov / np.linalg.norm(nesterov)
  x = x.T if x.shape[0] > x.shape[1] else x
  for _ in range(5):
    a = x @ x.T
    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
  x = x.T if g.shape[0] > g.shape[1] else x
  return 0.2 * np.sqrt(max(g.shape)) * x


def test_muon_orthogonalises_each_layer_of_each_matrix_alone():
  params, grads = normal(0, MATRICES), normal(1, MATRICES)
  optimizer = build(params, kind="muon", learning_rate=1.0)
  updates = update_of(optimizer, grads, params)
  s = SIZES
  inputs = {"out": s["N"] * s["H"], "down": s["F"]}
  for name in MATRICES:
    u, g = tree.flat(updates)[name], tree.flat(grads)[name]
    for layer in range(s["L"]):
      rows = inputs.get(name.split("/")[-2], s["D"])
      matrix = np.asarray(g[layer], np.float64).reshape(rows, -1)
      np.testing.assert_allclose(
        -np.asarray(u[layer]).reshape(rows, -1),
        reference_muon(matrix),
        rtol=1e-3,
        atol=1e-4,
        err_msg=name,
      )
      singular = np.linalg.svd(np.asarray(u[layer]).reshape(rows, -1))[1]
      singular /= 0.2 * np.sqrt(max(matrix.shape))
      assert 0.5 < singular.min() and singular.max() < 1.3, name


def test_beside_muon_all_others_are_in_adamw():
  params, target = normal(0), normal(1)
  new = {
    kind: first(build(params, kind=kind, weight_decay=0.1), params, target)[0]
    for kind in ("muon", "adamw")
  }
  for name, x in tree.flat(new["muon"]).items():
    equal = same_bits(x, tree.flat(new["adamw"])[name])
    assert equal == (name not in MATRICES), name


def test_adafactor_without_momentum_keeps_almost_nothing():
  sizes = dict(V=128, T=128, D=128, N=2, K=2, H=64, F=256)
  params = normal(0, SHAPES, **sizes)
  state = jax.eval_shape(build(params, kind="adafactor", b1=0.0).init, params)
  assert tree.count(state) < 0.03 * tree.count(params)


@pytest.mark.parametrize("kind", ["adamw", "lion", "muon", "sgd", "adafactor"])
def test_mu_dtype_is_that_of_the_first_moment(kind):
  params = normal(0)
  small, large = (
    tree.nbytes(
      jax.eval_shape(build(params, kind=kind, mu_dtype=d).init, params)
    )
    for d in ("bfloat16", "float32")
  )
  assert large - small == 2 * tree.count(params)


def test_clips_to_the_global_norm_and_not_below():
  params = normal(0)
  grads = normal(1)
  whole = norm(grads)
  found = quick(optim.global_norm)(grads)
  np.testing.assert_allclose(found, whole, rtol=1e-6)
  for clip in (whole / 3, whole * 3):
    optimizer = build(params, kind="sgd", b1=0.0, clip=clip, learning_rate=1.0)
    updates = update_of(optimizer, grads, params)
    np.testing.assert_allclose(norm(updates), min(clip, whole), rtol=1e-5)


def test_a_limit_holds_after_every_update_and_is_left_at_once():
  """Momentum of before the limit does not hold a parameter there."""
  params = {"a": {"log_scale": np.float32(1.0)}, "w": np.ones(3, np.float32)}
  f = build(params, limits={"a/log_scale": 1.5}, learning_rate=0.3)
  free = build(params, learning_rate=0.3)
  update, loosely = quick(f.update), quick(free.update)
  state, other = quick(lambda p: (f.init(p), free.init(p)))(params)
  at = params
  for slope, most in ((-1.0, 1.5), (-1.0, 1.5), (-1.0, 1.5), (9.0, 1.45)):
    grads = jax.tree.map(lambda x, s=slope: np.full_like(x, s), params)
    updates, state = update(grads, state, params)
    loose, other = loosely(grads, other, at)
    np.testing.assert_array_equal(updates["w"], loose["w"])
    params, at = (
      jax.tree.map(np.add, x, u) for x, u in ((params, updates), (at, loose))
    )
    assert params["a"]["log_scale"] <= most
  assert at["a"]["log_scale"] > 1.5


def test_frozen_gradients_do_not_count_in_the_norm():
  params, grads = normal(0), normal(1)
  grads["embed"]["table"] = 1e6 * grads["embed"]["table"]
  group = dict(patterns=["embed/*"], weight_decay=0.0, learning_rate_factor=0.0)
  optimizer = build(params, kind="sgd", b1=0.0, clip=0.5, groups=[group])
  updates = update_of(optimizer, grads, params)
  np.testing.assert_allclose(norm(updates), 0.005, rtol=1e-5)


@pytest.mark.slow
def test_logging_the_norm_costs_no_second_pass():
  """A step that returns the norm too has no more reductions compiled."""
  params = normal(0)
  optimizer = build(params, clip=1.0)

  def update(grads, state, params):
    return optimizer.update(grads, state, params)

  def logged(grads, state, params):
    return optim.global_norm(grads), optimizer.update(grads, state, params)

  args = (normal(1), quick(optimizer.init)(params), params)
  counts = [
    jax.jit(f).lower(*args).compile().as_text().count(" reduce(")
    for f in (update, logged)
  ]
  assert counts[0] == counts[1] > 0


def test_the_state_of_a_player_lies_as_its_parameters_do():
  params = normal(0)
  optimizer = build(params, groups=[PLAYER])
  state = jax.eval_shape(optimizer.init, params)
  places = nest({name: f"where {name} is" for name in FEW})
  got = optim.state_shardings(optimizer, state, params, places, "whole")
  assert jax.tree.structure(got) == jax.tree.structure(state)
  own = {n: x for n, x in tree.flat(got).items() if "player0" in n}
  for kept in ("mu", "nu"):
    name = "stack/mlp/up/w"
    (place,) = [x for n, x in own.items() if n.endswith(f"{kept}/{name}")]
    assert place == f"where {name} is"
  assert sum(x == "whole" for x in own.values()) == 2  # the two counts


@pytest.mark.slow
@pytest.mark.parametrize("kind", sweep(KINDS, "adafactor"))
def test_the_state_lies_as_the_parameters_do(kind):
  params = normal(0, SHAPES, D=128, N=2, K=2, H=64)
  mesh = sharding.make_mesh(
    data=1, fsdp=4, expert=1, tensor=2, sequence=1, pipeline=1
  )
  whole = sharding.replicated(mesh)
  shardings = nest(
    {
      name: sharding.shardings(SHAPES[name], x.shape, mesh)
      for name, x in tree.flat(params).items()
    }
  )
  optimizer = build(params, kind=kind, clip=1.0, weight_decay=0.1)
  state = jax.eval_shape(optimizer.init, params)
  got = optim.state_shardings(optimizer, state, params, shardings, whole)
  assert jax.tree.structure(got) == jax.tree.structure(state)
  shapes, found = tree.flat(state), set()
  for path, where in tree.flat(got).items():
    # The longest name: ".../stack/x/scale" is not the parameter "x/scale".
    owners = [n for n in SHAPES if path.endswith("/" + n)]
    owner = max(owners, key=len, default=None)
    if owner and shapes[path].shape == tree.flat(params)[owner].shape:
      assert where == tree.flat(shardings)[owner], path
      found.add(owner)
    else:
      assert where == whole, path
  assert found == set(SHAPES)
  # And a compiled step takes them, for the same result as on one device.
  grads = normal(1, SHAPES, D=128, N=2, K=2, H=64)
  many = jax.jit(
    optimizer.update,
    compiler_options=QUICK,
    in_shardings=(shardings, got, shardings),
    out_shardings=(shardings, got),
  )
  args = (grads, quick(optimizer.init)(params), params)
  one, _ = quick(optimizer.update)(*args)
  for name, u in tree.flat(many(*args)[0]).items():
    np.testing.assert_allclose(
      u, tree.flat(one)[name], rtol=2e-3, atol=1e-6, err_msg=name
    )


GROUP = dict(patterns=["norm/*"], weight_decay=0.0, learning_rate_factor=1.0)


@pytest.mark.parametrize(
  "changes, words",
  [
    (dict(kind="adam"), "did you mean 'adamw'"),
    (dict(mu_dtype="bf16"), "optim.mu_dtype 'bf16'"),
    (dict(b1=1.0), "optim.b1=1.0"),
    (dict(eps=0.0), "optim.eps=0.0"),
    (dict(clip=-1.0), "optim.clip=-1.0"),
    (dict(weight_decay=-0.1), "optim.weight_decay=-0.1"),
    (
      dict(groups=[{**GROUP, "patterns": ["norm/scales"]}]),
      "matches 'norm/scales'; did you mean 'norm/scale'",
    ),
    (dict(groups=[{**GROUP, "patterns": "norm/*"}]), "a list of patterns"),
    (dict(groups=[{**GROUP, "weight_decays": 1}]), "did you mean 'weight_dec"),
    (dict(groups=["dict(patterns=['*'])"]), "expected dict"),
    (dict(groups=[{"patterns": ["*"]}]), "lacks 'weight_decay'"),
    (
      dict(groups=[{**GROUP, "every_steps": 0}]),
      r"every_steps=0: .* 1 or more",
    ),
    (dict(groups=[{**GROUP, "every_steps": 2.5}]), "a whole number"),
    (dict(groups=[{**GROUP, "clip": -1.0}]), r"groups\[0\].clip=-1.0"),
    (dict(groups=[{**GROUP, "every": 2}]), "did you mean 'every_steps'"),
    (
      dict(groups=[{**GROUP, "learning_rate_factor": -1.0}]),
      r"groups\[0\].learning_rate_factor=-1.0",
    ),
  ],
)
def test_refuses_what_cannot_be(changes, words):
  with pytest.raises(BadConfig, match=words):
    build(normal(0), **changes)
