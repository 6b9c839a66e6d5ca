"""Laws of loss: what a model's size and data predict, in logarithms.

A law gives ln L, so that no power over- or underflows, as a function of
theta, whose entries are logarithms where a constant is positive. Sizes are in
parameters, tokens, FLOPs; losses are of any unit.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from aigc_jax.errors import BadConfig, nearest

Columns = Mapping[str, np.ndarray]
STEP = 1e-30  # of complex differentiation: exact to the last bit


@dataclasses.dataclass(frozen=True)
class Law:
  """One law. names: of its constants; logs: which of them theta has the ln of.

  columns: what it needs. log_loss(theta (S, P), columns) -> (S, n), for
  complex theta too. starts: values of theta to begin from, one list for each
  constant; all combinations are tried. exponents: constants that are to lie
  between 0 and 2 to mean anything.
  """

  name: str
  form: str
  source: str
  names: tuple[str, ...]
  logs: tuple[str, ...]
  columns: tuple[str, ...]
  log_loss: Callable[[np.ndarray, Columns], np.ndarray]
  starts: tuple[tuple[float, ...], ...]
  exponents: tuple[str, ...]
  jacobian: Callable[[np.ndarray, Columns], tuple] | None = None

  def value_and_jacobian(self, theta: np.ndarray, x: Columns) -> tuple:
    """(ln L (S, n), its derivative (S, n, P))."""
    if self.jacobian is not None:
      return self.jacobian(theta, x)
    value = self.log_loss(theta, x)
    parts = []
    for k in range(theta.shape[-1]):
      moved = theta.astype(np.complex128)
      moved[..., k] += 1j * STEP
      parts.append(self.log_loss(moved, x).imag / STEP)
    return value, np.stack(parts, axis=-1)

  def grid(self) -> np.ndarray:
    """Every start, (S, P)."""
    return np.array(list(itertools.product(*self.starts)), np.float64)

  def constants(self, theta: np.ndarray) -> dict[str, np.ndarray]:
    """The constants as papers print them; theta (..., P)."""
    with np.errstate(over="ignore"):
      return {
        name: np.exp(theta[..., k]) if name in self.logs else theta[..., k]
        for k, name in enumerate(self.names)
      }

  def theta(self, constants: Mapping[str, float]) -> np.ndarray:
    """Backwards; a positive constant that is 0 has an ln that acts as one."""
    return np.array(
      [
        (math.log(v) if v > 0 else -1e3) if name in self.logs else v
        for name, v in ((name, float(constants[name])) for name in self.names)
      ]
    )


def log_sum_exp(*terms: np.ndarray) -> np.ndarray:
  """ln(sum of e**term), for complex terms too."""
  most = np.maximum.reduce([t.real for t in np.broadcast_arrays(*terms)])
  return most + np.log(sum(np.exp(t - most) for t in terms))


def _chinchilla(theta, x):
  a, b, e, alpha, beta = (theta[..., k : k + 1] for k in range(5))
  return log_sum_exp(
    a - alpha * np.log(x["params"]), b - beta * np.log(x["tokens"]), e
  )


def _chinchilla_jacobian(theta, x):
  a, b, e, alpha, beta = (theta[..., k : k + 1] for k in range(5))
  n, d = np.log(x["params"]), np.log(x["tokens"])
  terms = (
    a - alpha * n,
    b - beta * d,
    np.broadcast_to(e, (len(theta), len(n))),
  )
  most = np.maximum(np.maximum(terms[0], terms[1]), terms[2])
  p, q, r = (np.exp(t - most) for t in terms)
  total = p + q + r
  p, q, r = p / total, q / total, r / total
  return most + np.log(total), np.stack([p, q, r, -p * n, -q * d], axis=-1)


def _kaplan(theta, x):
  alpha_n, alpha_d, n_c, d_c = (theta[..., k : k + 1] for k in range(4))
  ratio = alpha_n / alpha_d
  return alpha_d * log_sum_exp(
    ratio * (n_c - np.log(x["params"])), d_c - np.log(x["tokens"])
  )


def _kaplan_of(column: str):
  def log_loss(theta, x):
    alpha, scale = theta[..., 0:1], theta[..., 1:2]
    return alpha * (scale - np.log(x[column]))

  return log_loss


def _power_of(column: str):
  def log_loss(theta, x):
    a, e, alpha = (theta[..., k : k + 1] for k in range(3))
    return log_sum_exp(a - alpha * np.log(x[column]), e)

  return log_loss


def _effective(used, repeats, log_star):
  """ln of used + used * star * (1 - exp(-repeats / star))."""
  star = np.exp(log_star)
  return np.log(used) + np.log(1 + star * -np.expm1(-repeats / star))


def _data_constrained(theta, x):
  a, b, e, alpha, beta, r_d, r_n = (theta[..., k : k + 1] for k in range(7))
  n, d, unique = x["params"], x["tokens"], x["unique_tokens"]
  u_d = np.minimum(d, unique)
  log_g = (np.log(alpha) + a - np.log(beta) - b) / (alpha + beta)
  log_u_n = log_g + beta / alpha * (np.log(u_d) + log_g)
  # The parameters that the unique data can use, at most those there are.
  log_u_n = np.where(log_u_n.real < np.log(n), log_u_n, np.log(n))
  u_n = np.exp(log_u_n)
  log_n = _effective(u_n, n / u_n - 1, r_n)
  log_d = _effective(u_d, d / u_d - 1, r_d)
  return log_sum_exp(a - alpha * log_n, b - beta * log_d, e)


HALVES = (0.0, 0.5, 1.0, 1.5, 2.0)
FIVES = (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
ENTROPIES = (-1.0, -0.5, 0.0, 0.5, 1.0)

CHINCHILLA = Law(
  name="chinchilla",
  form="L = E + A / N^alpha + B / D^beta",
  source="arXiv:2203.15556, approach 3; procedure of arXiv:2404.10102",
  names=("A", "B", "E", "alpha", "beta"),
  logs=("A", "B", "E"),
  columns=("params", "tokens", "loss"),
  log_loss=_chinchilla,
  jacobian=_chinchilla_jacobian,
  starts=(FIVES, FIVES, ENTROPIES, HALVES, HALVES),
  exponents=("alpha", "beta"),
)
KAPLAN = Law(
  name="kaplan",
  form="L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D",
  source="arXiv:2001.08361, equation 1.5",
  names=("alpha_N", "alpha_D", "N_c", "D_c"),
  logs=("N_c", "D_c"),
  columns=("params", "tokens", "loss"),
  log_loss=_kaplan,
  starts=(
    (0.03, 0.07, 0.15, 0.3, 0.6), (0.03, 0.07, 0.15, 0.3, 0.6),
    (15.0, 20.0, 25.0, 30.0, 35.0), (15.0, 20.0, 25.0, 30.0, 35.0),
  ),
  exponents=("alpha_N", "alpha_D"),
)  # fmt: skip
DATA_CONSTRAINED = Law(
  name="data_constrained",
  form=(
    "L = E + A / N'^alpha + B / D'^beta, D' = U_D + U_D R_D* (1 - exp(-R_D / "
    "R_D*)), N' the same of the parameters that U_D can use"
  ),
  source="arXiv:2305.16264, section 3",
  names=("A", "B", "E", "alpha", "beta", "R_D_star", "R_N_star"),
  logs=("A", "B", "E", "R_D_star", "R_N_star"),
  columns=("params", "tokens", "unique_tokens", "loss"),
  log_loss=_data_constrained,
  starts=(
    (4.0, 8.0), (4.0, 8.0), (0.5,), (0.25, 0.5), (0.25, 0.5), (1.0, 3.0),
    (1.0, 3.0),
  ),
  exponents=("alpha", "beta"),
)  # fmt: skip


def kaplan_of(column: str) -> Law:
  """Kaplan's L(N) or L(D): a power without a floor."""
  letter = {"params": "N", "tokens": "D", "flops": "C"}[column]
  return Law(
    name=f"kaplan of {column}",
    form=f"L = ({letter}_c / {letter})^alpha_{letter}",
    source="arXiv:2001.08361, equations 1.1 to 1.3",
    names=(f"alpha_{letter}", f"{letter}_c"),
    logs=(f"{letter}_c",),
    columns=(column, "loss"),
    log_loss=_kaplan_of(column),
    starts=((0.02, 0.05, 0.1, 0.3, 1.0), (10.0, 20.0, 30.0, 40.0)),
    exponents=(f"alpha_{letter}",),
  )


def power_of(column: str) -> Law:
  """A power of one size, with a floor."""
  letter = {"params": "N", "tokens": "D", "flops": "C"}[column]
  return Law(
    name=f"power of {column}",
    form=f"L = E + A / {letter}^alpha",
    source="arXiv:2010.14701",
    names=("A", "E", "alpha"),
    logs=("A", "E"),
    columns=(column, "loss"),
    log_loss=_power_of(column),
    starts=((0.0, 5.0, 10.0, 15.0, 20.0, 25.0), ENTROPIES, HALVES),
    exponents=("alpha",),
  )


@dataclasses.dataclass(frozen=True)
class Free:
  """Which of theta moves: theta = fixed + spread @ z.

  names: of the entries of z; fixed constants and tied exponents are not in it.
  """

  law: Law
  fixed: np.ndarray
  spread: np.ndarray
  names: tuple[str, ...]

  def full(self, z: np.ndarray) -> np.ndarray:
    return self.fixed + z @ self.spread.T

  def __call__(self, z: np.ndarray, x: Columns) -> tuple:
    value, jacobian = self.law.value_and_jacobian(self.full(z), x)
    return value, jacobian @ self.spread

  def starts(self) -> np.ndarray:
    """The distinct starts of what is free."""
    grid = self.law.grid()
    first = [self.law.names.index(name) for name in self.names]
    return np.unique(grid[:, first], axis=0)


def free(
  law: Law, fix: Mapping[str, float] | None = None, tie: Sequence[str] = ()
) -> Free:
  """The law with constants fixed, and with `tie` (two exponents) made one.

  Raises BadConfig for a name that is no constant of the law.
  """
  fix = dict(fix or {})
  for name in [*fix, *tie]:
    if name not in law.names:
      raise BadConfig(
        f"{name!r} is no constant of {law.name}{nearest(name, law.names)} "
        f"(there are: {', '.join(law.names)})"
      )
  for name, value in fix.items():
    if not math.isfinite(value) or (name in law.logs and value < 0):
      raise BadConfig(f"--fix={name}={value}: expected a number, 0 or more")
  if tie and (len(tie) != 2 or any(name in law.logs for name in tie)):
    raise BadConfig(
      f"--tie={','.join(tie)}: expected the two exponents "
      f"{','.join(law.exponents)}"
    )
  for name in tie:
    if name in fix:
      raise BadConfig(f"{name} is both tied and fixed: leave one out")
  ones = dict.fromkeys(law.names, 1.0)
  known = law.theta(ones | fix)
  fixed = np.array(
    [known[k] if n in fix else 0.0 for k, n in enumerate(law.names)]
  )
  names = [n for n in law.names if n not in fix and n not in tie[1:]]
  if not names:
    raise BadConfig("every constant is fixed: nothing to fit")
  spread = np.zeros((len(law.names), len(names)))
  for column, name in enumerate(names):
    spread[law.names.index(name), column] = 1
    if tie and name == tie[0]:
      spread[law.names.index(tie[1]), column] = 1
  return Free(law, fixed, spread, tuple(names))
