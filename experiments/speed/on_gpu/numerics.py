"""Every path that only a GPU has, against float64.

Errors are norms of differences over norms of what is right. Beside each stands
the error of the plain form in the same dtype, where there is one: rounding of
the inputs alone makes some.
"""

import contextlib
import functools
import json
import os
import subprocess
import sys
import traceback

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.layers import kernels, lookup, mlp, norm
from aigc_jax.layers.forms import plain_formulas
from aigc_jax.layers.products import product_fp8
from aigc_jax.layers.visible import Visible
from aigc_jax.objectives.tokens import LOGITS, Table, Terms, summed
from aigc_jax.timing.program import library_calls
from experiments.speed.on_gpu.part import Call

# name -> heads, heads of keys, width of a head, what is visible, softcap
ATTENTION = {
  "causal, head 64": (4, 4, 64, {}, 0.0),
  "causal, head 128": (4, 4, 128, {}, 0.0),
  "causal, head 256": (2, 2, 256, {}, 0.0),
  "causal, 4 heads of queries to one of keys": (8, 2, 64, {}, 0.0),
  "causal, window 100": (4, 2, 64, {"window": 100}, 0.0),
  "both directions": (4, 4, 64, {"causal": False}, 0.0),
  "both directions, window 100": (
    4, 4, 64, {"causal": False, "window": 100}, 0.0,
  ),
  "causal, segments": (4, 2, 64, {"segments": 5}, 0.0),
  "both directions, segments": (
    4, 4, 64, {"causal": False, "segments": 5}, 0.0,
  ),
  "causal, softcap": (4, 2, 64, {}, 20.0),
  "causal, length 4096, segments": (2, 1, 64, {"segments": 9}, 0.0),
}  # fmt: skip
BOUND = {
  "y": 1e-2,
  "gradient": 2e-2,
  "fp8": 8e-2,
  "sums": 1e-2,
  "float32": 1e-4,
}
# Variants of a small decoder; each loss of 20 steps beside that of a CPU in
# float32, and how far apart they may be, relatively.
VARIANTS = {
  "float32": ({"compute.dtype": "float32"}, 1e-3),
  "bfloat16": ({}, 1e-3),
  "bfloat16, layers in a loop": ({"compute.unroll": 1}, 1e-3),
  "bfloat16, cast at each use": ({"compute.cast_once": False}, 1e-3),
  "bfloat16, remat": ({"compute.remat": "full"}, 1e-3),
  "bfloat16, microbatches": ({"compute.microbatches": 2}, 1e-3),
  "bfloat16, dense attention": ({"compute.kernel": "xla"}, 1e-3),
  "bfloat16, 4 steps in a call": ({"compute.steps_per_call": 4}, 1e-3),
  "products of bfloat16": (
    {"compute.dtype": "float32", "compute.products": "bf16"}, 1e-3,
  ),
  "products of 8 bits": ({"compute.products": "fp8"}, 3e-3),
  "first moment in bfloat16": ({"optim.mu_dtype": "bfloat16"}, 3e-3),
  "bfloat16, all logits at once": ({"objective.chunk": None}, 1e-3),
}  # fmt: skip


def find(call: Call) -> None:
  losses = start_losses(call)
  checks = {f"attention: {name}": functools.partial(attention, call, name)
            for name in ATTENTION}  # fmt: skip
  checks |= {
    f"loss in pieces, {kind}": functools.partial(loss, call, kind)
    for kind in ("float32", "bfloat16")
  }
  checks |= {
    f"embedding's gradient: {form}": functools.partial(embedding, call, form)
    for form in lookup.GRADIENTS
  }
  checks["products of 8 bits"] = functools.partial(eight_bits, call)
  checks["second derivative of the norms"] = norms_twice
  checks["second derivative of GELU"] = gelu_twice
  for name, check in checks.items():
    call.say(name, told(check))
  for name, value in finish_losses(losses):
    call.say(name, value)


def told(check) -> dict:
  """What a check finds; what it raises is a finding too."""
  try:
    found = check()
  except Exception as error:  # noqa: BLE001, the rest is looked at all the same
    lines = traceback.format_exc().splitlines()
    return {"ok": False, "raised": f"{error!r}"[:1000], "where": lines[-12:]}
  wrong = [k for k, e in found["errors"].items() if not e <= found["bounds"][k]]
  return {"ok": not wrong, **found}


def error(got, want) -> float:
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@contextlib.contextmanager
def in_float64():
  """On the CPU; what is computed in here is 64 bits wide."""
  cpu = jax.devices("cpu")[0]
  with jax.enable_x64(True), jax.default_device(cpu):
    yield


def wide(x):
  return jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), x)


def attention(call: Call, name: str) -> dict:
  """The kernel that "auto" takes, and the dense one, in bfloat16."""
  N, K, H, seen, softcap = ATTENTION[name]
  T = 4096 if "4096" in name else 1024
  T = T // 16 if call.rehearse else T
  seen, B = dict(seen), 2
  parts = seen.pop("segments", None)
  segments = None
  if parts:
    segments = np.sort(draw(0).integers(0, parts, (B, T)), axis=1)
  visible = Visible(
    **seen,
    segments_BT=None if segments is None else jnp.asarray(segments, jnp.int32),
    segments_BS=None if segments is None else jnp.asarray(segments, jnp.int32),
  )
  numbers = draw(1)
  q, k, v, dy = (
    jnp.asarray(numbers.standard_normal((B, T, n, H)), jnp.bfloat16)
    for n in (N, K, K, N)
  )
  scale = H**-0.5

  @functools.partial(jax.jit, static_argnums=0)
  def ours(kernel, q, k, v, dy):
    def run(q, k, v):
      return kernels.attend(
        q, k, v, visible, scale=scale, softcap=softcap, kernel=kernel
      )

    y, back = jax.vjp(run, q, k, v)
    return y, *back(dy)

  def right(q, k, v):
    s = jnp.einsum("btkgh,bskh->bkgts", q.reshape(B, T, K, N // K, H), k)
    s = s * scale
    if softcap:
      s = softcap * jnp.tanh(s / softcap)
    behind = np.arange(T)[:, None] - np.arange(T)
    mask = np.ones((1, T, T), bool)
    if seen.get("causal", True):
      mask = mask & (behind >= 0)
    if "window" in seen:
      mask = mask & (abs(behind) < seen["window"])
    if segments is not None:
      mask = mask & (segments[:, :, None] == segments[:, None])
    s = jnp.where(mask[:, None, None], s, -jnp.inf)
    y = jnp.einsum("bkgts,bskh->btkgh", jax.nn.softmax(s, -1), v)
    return y.reshape(B, T, N, H)

  with in_float64():
    y, back = jax.vjp(right, *wide((q, k, v)))
    want = [np.asarray(x) for x in (y, *back(wide(dy)))]
  kernel = kernels.resolve(q, k, visible, softcap)
  names = ("y", "dq", "dk", "dv")
  found = {}
  for which in dict.fromkeys((kernel, "xla")):
    got = ours(which, q, k, v, dy)
    found[which] = dict(zip(names, map(error, got, want), strict=True))
  bounds = {n: BOUND["y" if n == "y" else "gradient"] for n in names}
  return {
    "kernel": kernel, "errors": found[kernel], "dense": found["xla"],
    "bounds": bounds,
  }  # fmt: skip


def draw(seed: int) -> np.random.Generator:
  return np.random.default_rng(seed)


def loss(call: Call, logits: str) -> dict:
  """The loss and its gradients, in pieces that do not divide the tokens."""
  T, D, V = (100, 32, 500) if call.rehearse else (3000, 512, 50_304)
  numbers = draw(2)
  x = jnp.asarray(numbers.standard_normal((1, T, D)), jnp.bfloat16)
  w = jnp.asarray(numbers.standard_normal((V, D)) / D**0.5, jnp.float32)
  y = jnp.asarray(numbers.integers(0, V, (1, T)), jnp.int32)
  weights = jnp.asarray(numbers.random((1, T)), jnp.float32)
  terms = Terms(1e-4, 0.0, T // 3 - 1, LOGITS[logits])

  @jax.jit
  def ours(x, w):
    def run(x, w):
      table = Table(w, None)
      return summed(terms, x, table, y, weights).loss

    return jax.value_and_grad(run, (0, 1))(x, w)

  def right(x, w, weights):
    z = x[0] @ w.T
    logz = jax.nn.logsumexp(z, -1)
    each = logz - z[np.arange(T), np.asarray(y[0])] + 1e-4 * logz**2
    return jnp.sum(each * weights[0])

  value, (dx, dw) = ours(x, w)
  with in_float64():
    # Weights are rounded to the features' dtype, which is no error of the loss.
    want = jax.value_and_grad(right, (0, 1))(
      wide(x), wide(w.astype(jnp.bfloat16)), wide(weights)
    )
  return {
    "errors": {
      "loss": error(value, want[0]), "dx": error(dx, want[1][0]),
      "dw": error(dw, want[1][1]),
    },
    "bounds": {"loss": 1e-3, "dx": BOUND["sums"], "dw": BOUND["sums"]},
  }  # fmt: skip


def embedding(call: Call, form: str) -> dict:
  B, T, D, V = (2, 64, 16, 300) if call.rehearse else (16, 1024, 256, 50_304)
  numbers = draw(3)
  shares = np.cumsum(1 / (np.arange(V) + 2.7))
  ids = np.searchsorted(shares, numbers.random((B, T)) * shares[-1])
  dy = jnp.asarray(numbers.standard_normal((B, T, D)), jnp.bfloat16)

  @jax.jit
  def ours(table, ids, dy):
    def read(table):
      return lookup.lookup(table, ids, jnp.bfloat16, form)

    return jax.vjp(read, table)[1](dy)[0]

  got = ours(jnp.zeros((V, D)), jnp.asarray(ids, jnp.int32), dy)
  want = np.zeros((V, D))
  np.add.at(want, ids, np.asarray(dy, np.float64))
  again = ours(jnp.zeros((V, D)), jnp.asarray(ids, jnp.int32), dy)
  return {
    "errors": {"gradient": error(got, want)},
    "bounds": {"gradient": 1e-5},
    "twice the same bits": bool(jnp.all(got == again)),
  }


def eight_bits(call: Call) -> dict:
  T, D, F = (64, 32, 64) if call.rehearse else (2048, 1024, 4096)
  numbers = draw(4)
  x, w, dy = (
    jnp.asarray(numbers.standard_normal(shape), jnp.bfloat16)
    for shape in ((1, T, D), (D, F), (1, T, F))
  )

  @jax.jit
  def ours(x, w, dy):
    y, back = jax.vjp(lambda x, w: product_fp8("BTD,DF->BTF", x, w), x, w)
    return y, *back(dy.astype(y.dtype))

  compiled = ours.lower(x, w, dy).compile()
  x64, w64, dy64 = (np.asarray(a, np.float64) for a in (x[0], w, dy[0]))
  want = {"y": x64 @ w64, "dx": dy64 @ w64.T, "dw": x64.T @ dy64}
  got = dict(zip(want, ours(x, w, dy), strict=True))
  return {
    "errors": {
      k: error(np.squeeze(np.asarray(got[k], np.float64)), want[k])
      for k in want
    },
    "bounds": dict.fromkeys(want, BOUND["fp8"]),
    "calls": library_calls(compiled.as_text()),
  }


def twice(f, g, x, v) -> dict:
  """Hessian-vector products of a sum: `f` in float32 here, `g` in float64."""

  def product(h, x, v):
    return jax.jvp(jax.grad(lambda x: jnp.sum(jnp.sin(h(x)))), (x,), (v,))[1]

  with plain_formulas():
    got = jax.jit(functools.partial(product, f))(x, v)
  with in_float64():
    want = np.asarray(product(g, wide(x), wide(v)))
  return {
    "errors": {"product": error(got, want)},
    "bounds": {"product": BOUND["float32"]},
  }


def norms_twice() -> dict:
  x, v = (jnp.asarray(draw(5 + i).standard_normal((64, 256)), jnp.float32)
          for i in range(2))  # fmt: skip
  ones = jnp.ones(256)

  def ours(x):
    return norm.normalise(x, ones, None, eps=1e-5, centre=True, offset=0.0)

  def right(x):
    y = x - jnp.mean(x, -1, keepdims=True)
    return y / jnp.sqrt(jnp.mean(y * y, -1, keepdims=True) + 1e-5)

  return twice(ours, right, x, v)


def gelu_twice() -> dict:
  x, v = (jnp.asarray(draw(7 + i).standard_normal((64, 256)), jnp.float32)
          for i in range(2))  # fmt: skip

  def right(x):
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))

  return twice(lambda x: mlp.activate("gelu", x), right, x, v)


def start_losses(call: Call) -> dict:
  """Small trainings in processes of their own, all at once."""
  started = {}
  wanted = {"on a CPU": {"compute.dtype": "float32"}}
  wanted |= {name: change for name, (change, _) in VARIANTS.items()}
  if call.rehearse:
    wanted = dict(list(wanted.items())[:3])
  for name, change in wanted.items():
    env = dict(os.environ)
    if name == "on a CPU":
      env["JAX_PLATFORMS"] = "cpu"
    line = [
      sys.executable, "-m", "experiments.speed.on_gpu.losses",
      f"--change={json.dumps(change)}",
    ]  # fmt: skip
    started[name] = subprocess.Popen(
      line, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
  return started


def finish_losses(started: dict):
  """(name, finding) of each; they are compared with the one on a CPU."""
  found, wrong = {}, {}
  for name, process in started.items():
    out, err = process.communicate()
    if process.returncode:
      wrong[name] = err.splitlines()[-12:]
    else:
      found[name] = json.loads(out.splitlines()[-1])
  right = found.pop("on a CPU", None)
  yield "losses on a CPU", right or {"ok": False, "where": wrong["on a CPU"]}
  for name in started:
    if name in wrong:
      yield f"training: {name}", {"ok": False, "where": wrong[name]}
    elif name in found and right:
      got, want = (np.array(x["losses"]) for x in (found[name], right))
      bound = VARIANTS[name][1]
      worst = float(np.max(np.abs(got / want - 1)))
      yield f"training: {name}", {
        "ok": worst <= bound, "errors": {"losses": worst},
        "bounds": {"losses": bound}, "kernel": found[name]["kernel"],
        "calls": found[name]["calls"],
      }  # fmt: skip
