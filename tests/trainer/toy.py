"""A whole run in miniature: a regression with dropout, as a program.

  python -m tests.trainer.toy WORKDIR --steps=40 --save=5

Everything of the trainer is the real thing; only the model and the data are
toys. Exits as a command does.
"""

import argparse
import hashlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from aigc_jax import sharding
from aigc_jax.errors import Refusal
from aigc_jax.metrics import Mean
from aigc_jax.trainer import faults
from aigc_jax.trainer.checkpoint import Checkpoints
from aigc_jax.trainer.consumed import Consumed
from aigc_jax.trainer.journal import Journal
from aigc_jax.trainer.lock import Lock
from aigc_jax.trainer.loop import fit
from aigc_jax.trainer.state import State, fresh
from aigc_jax.trainer.step import make_step, repeat_step
from aigc_jax.trainer.stop import Stop
from aigc_jax.trainer.watchdog import Watchdog

B, D, F = 8, 24, 5
AXES = dict(expert=1, tensor=1, sequence=1, pipeline=1)
LETTERS = {"w": "DF", "b": "F", "empty": "F"}


def rows(step: int, seed: int) -> dict[str, np.ndarray]:
  random = np.random.default_rng((seed, step))
  x = random.normal(size=(B, D)).astype(np.float32)
  weights = (random.random(B) < 0.8).astype(np.float32)
  return {"x": x, "y": x[:, :F] * 2 + 1, "weights": weights}


def score(params, batch, key):
  x = batch["x"]
  if key is not None:
    x = x * jax.random.bernoulli(key, 0.9, x.shape)
  out = x @ params["w"] + params["b"]
  loss = jnp.square(out - batch["y"]).mean(-1)
  return {"loss": Mean.of(loss, batch["weights"])}


def optimizer():
  return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))


def placed(tree, mesh):
  """Shardings of a state: a leaf lies as the parameter of its name."""

  def one(path, x):
    name = str(getattr(path[-1], "key", ""))
    letters = LETTERS.get(name) if x.ndim else None
    if letters is None:
      return sharding.replicated(mesh)
    return sharding.shardings(letters, x.shape, mesh)

  return jax.tree_util.tree_map_with_path(one, tree)


def make_state(mesh, seed: int = 0) -> tuple[State, State]:
  """(state at step 0, the same abstract with shardings)."""

  def init():
    key = jax.random.key(seed)
    w = jax.random.normal(key, (D, F)) / D
    params = {"w": w, "b": jnp.zeros(F), "empty": jnp.zeros(0)}
    return fresh(params, optimizer(), seed)

  shapes = jax.eval_shape(init)
  where = placed(shapes, mesh)
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    where,
  )
  return jax.jit(init, out_shardings=where)(), abstract


def batches(start: int, stop: int, k: int, seed: int, mesh, delay: float):
  def put(x, letters):
    where = sharding.shardings(letters[: x.ndim], x.shape, mesh)
    return jax.make_array_from_callback(x.shape, where, lambda i: x[i])

  for n in range(start, stop, k):
    time.sleep(delay)
    several = [rows(n + i, seed) for i in range(k)]
    if k == 1:
      yield n, {name: put(x, "BD") for name, x in several[0].items()}
    else:
      stacked = {
        name: np.stack([r[name] for r in several]) for name in rows(0, 0)
      }
      yield n, {name: put(x, "_BD") for name, x in stacked.items()}


def run(options) -> dict:
  faults.enable(options.workdir)
  mesh = sharding.make_mesh(data=options.data, fsdp=None, **AXES)
  k = options.steps_per_call
  with (
    Lock(options.workdir, heartbeat_seconds=options.heartbeat) as lock,
    Stop(options.workdir, poll_seconds=0.1) as stop,
    Watchdog(
      options.workdir,
      step_seconds=options.step_seconds,
      compile_seconds=options.compile_seconds,
    ) as watchdog,
    jax.set_mesh(mesh),
  ):
    told: list = []
    checkpoints = Checkpoints(
      f"{options.workdir}/checkpoints",
      every_steps=options.save,
      keep=options.keep,
      keep_every_steps=options.keep_every,
      fence=lock.check,
      tell=lambda kind, **fields: told.append((kind, fields)),
      retries=options.retries,
    )
    checkpoints.clean()
    state, abstract = make_state(mesh, options.seed)
    found = checkpoints.restore(abstract)
    start, before = 0, {}
    if found:
      state, manifest = found
      start, before = manifest["step"], manifest["meta"]
    with Journal(
      options.workdir, step=start, total_steps=options.steps, fence=lock.check
    ) as journal:
      checkpoints.tell = journal.event
      for kind, fields in told:
        journal.event(kind, **fields)
      journal.event("restart" if found else "start", start)
      step = make_step(score, optimizer(), lambda n: 1e-2, 2)
      advance = jax.jit(
        repeat_step(step, k),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda x: x.sharding, abstract), None),
      )
      judge = jax.jit(lambda p, b: score(p, b, None)["loss"].value())

      def evaluate(n, state):
        total = 0.0
        for _, batch in batches(0, 3, 1, 99, mesh, options.delay):
          faults.hit("evaluate/batch", n)
          stop.check()
          total += float(judge(state.params, batch))
        return {"eval/heldout/loss": total}

      _, result = fit(
        state,
        start=start,
        steps=options.steps,
        steps_per_call=k,
        advance=advance,
        batches=batches(
          start, options.steps, k, options.seed, mesh, options.delay
        ),
        evaluate=evaluate,
        due=lambda n: options.evaluate and n % options.evaluate == 0,
        checkpoints=checkpoints,
        meta=lambda n: {"config": hashlib.sha256(b"toy").hexdigest()},
        journal=journal,
        stop=stop,
        watchdog=watchdog,
        log_every_steps=options.log,
        each=Consumed({"examples": B}, 2 * B * D * F),
        peak_flops=None,
        before=before,
        most_skipped=options.most_skipped,
      )
  return result


def parse(words=None):
  parser = argparse.ArgumentParser()
  parser.add_argument("workdir")
  for name, value in dict(
    steps=20, save=5, log=1, keep=3, keep_every=0, steps_per_call=1, evaluate=0,
    seed=0, data=1, heartbeat=10.0, step_seconds=60.0, compile_seconds=60.0,
    delay=0.0, retries=3, most_skipped=10, coordinator="", processes=0,
    process=-1,
  ).items():  # fmt: skip
    flag = "--" + name.replace("_", "-")
    parser.add_argument(flag, type=type(value), default=value, dest=name)
  return parser.parse_args(words)


def main(words=None) -> int:
  options = parse(words)
  try:
    sharding.start_distributed(
      options.coordinator, options.processes, options.process,
      heartbeat_seconds=10, start_seconds=60,
    )  # fmt: skip
    run(options)
  except Refusal as refusal:
    print(refusal, file=sys.stderr, flush=True)
    return refusal.code
  return 0


if __name__ == "__main__":
  sys.exit(main())
