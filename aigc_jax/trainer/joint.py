"""Several runs whose steps are one program: small models side by side.

Each run keeps its own loop, in a thread of its own, with its own batches, rows
and checkpoints. Where they meet is the step: it waits for all of them, and
takes all their steps as one batched program. Their states lie in one stack,
which that program alone moves; a run has a Share of it, and its own state is
copied out where it evaluates or saves. A run that ends, stops or fails leaves
the others to themselves. Between the steps one run works at a
time: compilations side by side can wait for each other for ever where a process
has one core, and no more than one has work for the device anyway.

What may differ between their steps are numbers: the steps are traced one by
one, and every literal in which they differ becomes an argument of the program
that they share.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from aigc_jax.errors import BadConfig
from aigc_jax.trainer.checkpoint import Checkpoints
from aigc_jax.tree import Tree

# Parameters of operations that are rules of differentiation: made anew at each
# trace, and not run any more once the gradients are taken.
RULES = ("thunk", "_fun", "bwd", "out_trees")


def batched(
  steps: Sequence[Callable], states: Sequence[Tree], batches: Sequence[Tree]
) -> Callable:
  """f(stack, batches) -> (stack, [metrics]): step k of row k and batch k.

  states, batches: those of each, or their shapes; the stack has all states in
  one, along a first axis. f is to be jitted. Raises BadConfig where the steps
  differ in more than numbers.
  """
  for name, trees in (("state", states), ("batch", batches)):
    first, *others = (
      jax.tree.map(lambda x: (x.shape, x.dtype), one) for one in trees
    )
    if any(other != first for other in others):
      raise _unlike(f"the shapes of their {name}")
  step, numbers = with_numbers(steps, states[0], batches[0])

  def f(stack, batches):
    joined = jax.tree.map(lambda *x: jnp.stack(x), *batches)
    stack, metrics = jax.vmap(step)(numbers, stack, joined)
    rows = range(len(steps))
    return stack, [jax.tree.map(lambda x, k=k: x[k], metrics) for k in rows]

  return f


def stacked(states: Sequence[Tree]) -> Tree:
  """All states in one, along a first axis; made on the host, once."""
  return jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *states)


@jax.jit
def _row(stack: Tree, k: jax.Array) -> Tree:
  return jax.tree.map(lambda x: x[k], stack)


class Share:
  """The state of one run in the stack of all, until they step again."""

  def __init__(self, stack: Tree, k: int, like: Tree):
    self._stack, self._k, self._like = stack, k, like

  @functools.cached_property
  def own(self) -> Tree:
    """A copy, laid out as the run had it at its start."""
    return jax.device_put(_row(self._stack, self._k), self._like)


def own(state: "Share | Tree") -> Tree:
  """A state by itself, whether it lies in a stack or not."""
  return state.own if isinstance(state, Share) else state


def with_numbers(
  steps: Sequence[Callable], state: Tree, batch: Tree
) -> tuple[Callable, list[jax.Array]]:
  """(f, numbers): f([n[k] for n in numbers], state, batch) is step k's result.

  numbers: an array over the steps for each literal in which they differ.
  """
  traced = [
    jax.make_jaxpr(step, return_shape=True)(state, batch) for step in steps
  ]
  closed = [one for one, _ in traced]
  first = closed[0]
  places = _places([one.jaxpr for one in closed])
  constants = list(zip(*(one.consts for one in closed), strict=True))
  outputs = jax.tree.structure(traced[0][1])
  equations, variables = _lifted(first.jaxpr, places)
  jaxpr = first.jaxpr.replace(
    eqns=equations, invars=[*variables, *first.jaxpr.invars]
  )
  # Both kinds of numbers, those in the text and those beside it.
  literals = [
    jnp.stack([jnp.asarray(x.val, x.aval.dtype) for x in row])
    for row in places.values()
  ]
  beside = [jnp.stack([jnp.asarray(x) for x in row]) for row in constants]

  def f(numbers, state, batch):
    mine, consts = numbers[: len(literals)], numbers[len(literals) :]
    run = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, list(consts)))
    return jax.tree.unflatten(
      outputs, run(*mine, *jax.tree.leaves((state, batch)))
    )

  return f, literals + beside


def _places(jaxprs: Sequence) -> dict[tuple[int, int], tuple]:
  """{(equation, argument): the literals there} where not all are equal."""
  found = {}
  first, *others = jaxprs
  for other in others:
    if len(other.eqns) != len(first.eqns):
      raise _unlike(f"{len(first.eqns)} and {len(other.eqns)} operations")
  for i, equations in enumerate(zip(*(j.eqns for j in jaxprs), strict=True)):
    for other in equations[1:]:
      _check_alike(equations[0], other)
    for j, words in enumerate(zip(*(e.invars for e in equations), strict=True)):
      literals = [isinstance(x, core.Literal) for x in words]
      if any(literals) and not all(literals):
        raise _unlike(str(equations[0].primitive))
      if all(literals) and not all(_same(words[0], x) for x in words):
        found[i, j] = words
  return found


def _same(one, other) -> bool:
  return np.asarray(one.val).tobytes() == np.asarray(other.val).tobytes()


def _check_alike(one, other, inside: bool = False) -> None:
  """Raises BadConfig unless two operations are one but for their literals.

  inside: of a loop or a function, where literals have to be equal too.
  """
  name = str(one.primitive)
  if one.primitive is not other.primitive or len(one.invars) != len(
    other.invars
  ):
    raise _unlike(f"{name} and {other.primitive}")
  for x, y in zip(
    (*one.invars, *one.outvars), (*other.invars, *other.outvars), strict=True
  ):
    if x.aval.shape != y.aval.shape or x.aval.dtype != y.aval.dtype:
      raise _unlike(f"{name} of {x.aval} and {y.aval}")
    if inside and isinstance(x, core.Literal):
      if not isinstance(y, core.Literal) or not _same(x, y):
        raise _unlike(f"a number inside a loop ({name})")
  for key, value in one.params.items():
    if not key.endswith(RULES):
      _check_params(name, key, value, other.params.get(key))


def _check_params(name: str, key: str, one, other) -> None:
  if isinstance(one, tuple | list):
    if len(one) != len(other):
      raise _unlike(f"{name}, {key}")
    for x, y in zip(one, other, strict=True):
      _check_params(name, key, x, y)
    return
  if hasattr(one, "jaxpr"):
    for x, y in zip(one.consts, other.consts, strict=True):
      if not np.array_equal(np.asarray(x), np.asarray(y)):
        raise _unlike(f"numbers inside {name}")
    one, other = one.jaxpr, other.jaxpr
  if hasattr(one, "eqns"):
    if len(one.eqns) != len(other.eqns):
      raise _unlike(name)
    for x, y in zip(one.eqns, other.eqns, strict=True):
      _check_alike(x, y, inside=True)
  elif not callable(one) and one != other and repr(one) != repr(other):
    raise _unlike(f"{name}, {key}: {one} and {other}")


def _unlike(what: str) -> BadConfig:
  return BadConfig(
    "runs that train together may differ in numbers only, such as seed, "
    "learning rate, weight decay or b1, and the programs of these differ "
    f"({what}): train them by themselves (without --together)"
  )


def _lifted(jaxpr, places: dict) -> tuple[list, list]:
  """(equations with variables at these places, the variables)."""
  equations, variables = list(jaxpr.eqns), []
  for (i, j), words in places.items():
    variable = core.Var(words[0].aval)
    variables.append(variable)
    old = equations[i]
    new = [variable if n == j else x for n, x in enumerate(old.invars)]
    equations[i] = old.replace(invars=new)
  return equations, variables


class OneAtATime(Checkpoints):
  """Checkpoints of one of several runs in a process.

  Two saves or restores at once would wait for each other for ever: what Orbax
  does in the background it tells apart by a counter of the whole process.
  """

  turn = threading.RLock()

  def save(self, step: int, state, meta: Mapping) -> bool:
    """Saves, and waits until all of it is on the disk."""
    with self.turn:
      saved = super().save(step, own(state), meta)
      self.wait()
      return saved

  def commit(self, step: int, state, meta: Mapping) -> None:
    with self.turn:
      super().commit(step, own(state), meta)

  def restore(self, abstract, check: Callable = lambda content: None):
    with self.turn:
      return super().restore(abstract, check)


class Meeting:
  """Where the steps of several runs meet.

  make([part of each], states, batches) gives the program, see `batched`. It is
  made once, of the runs that come to a first step.
  """

  def __init__(self, make: Callable, count: int):
    self._make = make
    self._there = set(range(count))
    self._parts: dict[int, object] = {}
    self._members: list[int] = []  # of the program, once there is one
    self._program: Callable | None = None
    self._stack: Tree = None  # of the states of the members
    self._layouts: list[Tree] = []
    self._given: dict[int, tuple] = {}
    self._made: dict[int, object] = {}
    # Whoever has its lock works; whoever waits for the others gives it away.
    self._change = threading.Condition()

  def turn(self) -> contextlib.AbstractContextManager:
    """Until its end this thread works, but while it waits within a step."""
    return self._change

  def advance(self, k: int, part) -> Callable:
    """The step of run k: waits for those of the others. part: for `make`.

    It takes the state of the start, or the Share of the step before.
    """
    self._parts[k] = part

    def step(state, batch):
      with self._change:
        self._given[k] = state, batch
        self._run_if_all_are_there()
        self._change.wait_for(lambda: k in self._made)
        made = self._made.pop(k)
      if isinstance(made, BaseException):
        raise made
      return made

    return step

  def leave(self, k: int) -> None:
    """Run k takes no more steps; the others do not wait for it."""
    with self._change:
      self._there.discard(k)
      self._given.pop(k, None)
      self._run_if_all_are_there()

  def _run_if_all_are_there(self) -> None:
    if not self._there or self._there - self._given.keys():
      return
    try:
      self._made |= self._taken()
    except BaseException as error:  # all of them have to know
      self._made |= dict.fromkeys(self._given, error)
    self._given.clear()
    self._change.notify_all()

  def _taken(self) -> dict[int, object]:
    """The results of one step of all, by run."""
    if self._program is None:
      self._begin()
    # Who has left still has a row, and is given another's batch: the program
    # is as wide as ever, and nobody looks at what becomes of that row.
    _, some = next(iter(self._given.values()))
    batches = [self._given.get(k, (None, some))[1] for k in self._members]
    self._stack, metrics = self._program(self._stack, batches)
    return {
      k: (Share(self._stack, i, self._layouts[i]), metrics[i])
      for i, k in enumerate(self._members)
      if k in self._given
    }

  def _begin(self) -> None:
    """Makes the program and the stack of those that are there."""
    self._members = sorted(self._there)
    states, batches = zip(*(self._given[k] for k in self._members), strict=True)
    parts = [self._parts[k] for k in self._members]
    self._program = self._make(parts, states, batches)
    self._stack = stacked(states)
    self._layouts = [
      jax.tree.map(lambda x: x.sharding, state) for state in states
    ]
