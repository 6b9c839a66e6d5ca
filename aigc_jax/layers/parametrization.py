"""Parametrization: what becomes of each tensor of a decoder when it grows.

Numbers are tuned on a small model, the base. A larger one gives each tensor
those numbers times factors of how much the tensor has grown, so that a step
moves every activation by as much as it did there. With m_in and m_out for the
growth of what a tensor reads and of what it makes, m for that of the residual
stream and l for that of the depth, muP (arXiv:2203.03466, its table 8, the one
under which the embedding may be the head too) says

  class   deviation   rate      decay  epsilon  rate of SGD   rate of Muon
  input   1           1         1      1 / m    m_out         as AdamW's
  hidden  m_in**-1/2  1 / m_in  m_in   1 / m    m_out / m_in  `_orthogonal`
  output  1           1         1      1 / m    m_in          as AdamW's
  vector  -           1         1      1 / m    m_out         as AdamW's

and multiplies logits by 1 / m and scores by 1 / the width of a head, which is
its root at the base. Decay is what a rate multiplies: of rate times decay
nothing grows. CompleteP (arXiv:2505.01618) multiplies what a block adds by
l**-a with a = 1, and within blocks rates by l**(a - 1) and epsilon by l**-a;
with a = 1/2 that is depth-muP. At the base every factor is 1, and the model
the standard one to the bit.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import NamedTuple

from aigc_jax import errors, tree


@dataclasses.dataclass(frozen=True)
class Sizes:
  """A decoder's sizes by the letters of its axes; of a base also fractions."""

  D: Fraction  # the residual stream
  N: Fraction  # heads of queries
  K: Fraction  # heads of keys
  H: Fraction  # a head
  F: Fraction  # the MLP
  L: Fraction  # layers

  def of(self, letters: str) -> Fraction:
    """The product of the axes; of none, 1."""
    return math.prod((getattr(self, a) for a in letters), start=Fraction(1))


class Tensor(NamedTuple):
  """A class of tensors. reads, makes: the axes that are summed over, and those
  that are left, as far as they grow. block: whether it is part of a block."""

  role: str  # input, hidden, output or vector
  reads: str
  makes: str
  block: bool = True


# By path; the first pattern that matches.
TENSORS: dict[str, Tensor] = {
  "embed/table": Tensor("input", "", "D", block=False),
  "position/table": Tensor("input", "", "D", block=False),
  "head/table": Tensor("output", "D", "", block=False),
  "head/bias": Tensor("vector", "", "", block=False),
  "norm/*": Tensor("vector", "", "D", block=False),
  "stack/attention/query/w": Tensor("hidden", "D", "NH"),
  "stack/attention/key/w": Tensor("hidden", "D", "KH"),
  "stack/attention/value/w": Tensor("hidden", "D", "KH"),
  "stack/attention/out/w": Tensor("hidden", "NH", "D"),
  "stack/mlp/gate/w": Tensor("hidden", "D", "F"),
  "stack/mlp/up/w": Tensor("hidden", "D", "F"),
  "stack/mlp/down/w": Tensor("hidden", "F", "D"),
  "stack/attention/query/bias": Tensor("vector", "", "NH"),
  "stack/attention/key/bias": Tensor("vector", "", "KH"),
  "stack/attention/value/bias": Tensor("vector", "", "KH"),
  "stack/attention/out/bias": Tensor("vector", "", "D"),
  "stack/attention/norm_query/*": Tensor("vector", "", "H"),
  "stack/attention/norm_key/*": Tensor("vector", "", "H"),
  "stack/mlp/gate/bias": Tensor("vector", "", "F"),
  "stack/mlp/up/bias": Tensor("vector", "", "F"),
  "stack/mlp/down/bias": Tensor("vector", "", "D"),
  "stack/norm_*": Tensor("vector", "", "D"),
  "stack/post_*": Tensor("vector", "", "D"),
}
# Where norms of queries and keys are over all heads at once.
JOINT = {
  "stack/attention/norm_query/*": Tensor("vector", "", "NH"),
  "stack/attention/norm_key/*": Tensor("vector", "", "KH"),
}


@dataclasses.dataclass(frozen=True)
class Factors:
  """What a tensor's numbers are multiplied by, as the base has them."""

  deviation: float = 1.0  # of its fresh values
  learning_rate: float = 1.0
  weight_decay: float = 1.0
  epsilon: float = 1.0


class Kind(NamedTuple):
  """by_width: whether anything follows the width. depth: the exponent a of
  what blocks are multiplied by, l**-a; None where nothing follows the depth."""

  by_width: bool
  depth: float | None


KINDS = {
  "standard": Kind(by_width=False, depth=None),
  "mup": Kind(by_width=True, depth=None),
  "depth_mup": Kind(by_width=True, depth=0.5),
  "completep": Kind(by_width=True, depth=1.0),
}


@dataclasses.dataclass(frozen=True)
class Parametrization:
  """How a decoder of `sizes` follows one of the sizes `base`.

  joint: whether norms of queries and keys are over all heads at once.
  """

  kind: str
  sizes: Sizes
  base: Sizes
  joint: bool = False

  @property
  def grows(self) -> bool:
    """Whether numbers are those of a base at all."""
    return self.kind != "standard"

  def growth(self, letters: str) -> float:
    """How many times the base's these axes are together."""
    return float(self.sizes.of(letters) / self.base.of(letters))

  @property
  def residual(self) -> float:
    """What each part of a block is multiplied by before it is added."""
    return self.growth("L") ** -(KINDS[self.kind].depth or 0.0)

  @property
  def logits(self) -> float:
    """What the logits are multiplied by."""
    return 1 / self.growth("D")

  def scale(self, given: float | None) -> float | None:
    """The scores' factor, `given` being the base's; None: 1 / root of a head.

    As it is given where heads are as wide as the base's.
    """
    if self.growth("H") == 1:
      return given
    return (given or float(self.base.H) ** -0.5) / self.growth("H")

  def multipliers(
    self,
    attention_scale: float | None,
    embed_scale: bool,
    embed_multiplier: float | None,
    residual_multiplier: float | None,
    logit_multiplier: float | None,
  ) -> dict:
    """These keys of a decoder as they are at its size, given the base's."""
    if embed_scale and self.growth("D") != 1:
      root = math.sqrt(self.base.D)
      embed_scale, embed_multiplier = False, root * (embed_multiplier or 1.0)
    return dict(
      attention_scale=self.scale(attention_scale),
      embed_scale=embed_scale,
      embed_multiplier=embed_multiplier,
      residual_multiplier=_times(residual_multiplier, self.residual),
      logit_multiplier=_times(logit_multiplier, self.logits),
    )

  def fresh(self, std: float) -> float:
    """The deviation of tables of inputs and outputs; std 0: by the base's D."""
    return std or 1.0 / math.sqrt(self.base.D)

  def tensor(self, path: str) -> Tensor:
    """The class of the parameter at this path; BadConfig for one of none."""
    tables = (JOINT, TENSORS) if self.joint else (TENSORS,)
    for table in tables:
      for pattern, found in table.items():
        if tree.match((pattern,), path):
          return found
    raise errors.BadConfig(
      f"model.parametrization={self.kind}: no rule says how {path} changes "
      "with the size: --config.model.parametrization=standard"
    )

  def deviation(self, path: str) -> float:
    """The factor of the deviation, where that is not by fan-in."""
    found = self.tensor(path)
    if found.role != "hidden":
      return 1.0
    return self.growth(found.reads) ** -0.5

  def factors(self, path: str, optimizer: str) -> Factors:
    """Those of the parameter at this path. Raises BadConfig, see `check`."""
    if not self.grows:
      return Factors()
    self.check(optimizer)
    return dataclasses.replace(
      OPTIMIZERS[optimizer](self, self.tensor(path)),
      deviation=self.deviation(path),
    )

  def check(self, optimizer: str) -> None:
    """Raises BadConfig for an optimizer whose rates no theory transfers."""
    where = f"model.parametrization={self.kind}"
    if self.grows and optimizer not in OPTIMIZERS:
      raise errors.BadConfig(
        f"{where} says nothing of optim.kind={optimizer}: its rates are known "
        f"for {', '.join(OPTIMIZERS)}; or --config.model.parametrization="
        "standard, with a rate tuned at this size"
      )
    if KINDS[self.kind].depth is not None and optimizer == "sgd":
      raise errors.BadConfig(
        f"{where} has its depth from directions that do not know the size of a "
        "gradient, which optim.kind=sgd does: take adamw, lion or muon, or "
        "--config.model.parametrization=mup and the base's depth"
      )


def _times(given: float | None, factor: float) -> float | None:
  return given if factor == 1 else (1.0 if given is None else given) * factor


def _in_block(p: Parametrization, tensor: Tensor, exponent: float) -> float:
  """l**exponent within blocks, where anything follows the depth."""
  follows = tensor.block and KINDS[p.kind].depth is not None
  return p.growth("L") ** exponent if follows else 1.0


def _normalised(p: Parametrization, tensor: Tensor) -> Factors:
  """AdamW, whose direction is as large for any size of the gradient.

  The logits' 1 / m makes all gradients smaller, and so what is added to their
  root mean square is to be.
  """
  alpha = KINDS[p.kind].depth or 0.0
  m = p.growth(tensor.reads) if tensor.role == "hidden" else 1.0
  return Factors(
    learning_rate=_in_block(p, tensor, alpha - 1) / m,
    weight_decay=m,
    epsilon=_in_block(p, tensor, -alpha) / p.growth("D"),
  )


def _signs(p: Parametrization, tensor: Tensor) -> Factors:
  """Lion: as AdamW, and without an epsilon."""
  return dataclasses.replace(_normalised(p, tensor), epsilon=1.0)


def _gradient(p: Parametrization, tensor: Tensor) -> Factors:
  """SGD, as table 8 has it."""
  reads, makes = p.growth(tensor.reads), p.growth(tensor.makes)
  rate = {
    "input": makes, "vector": makes, "hidden": makes / reads, "output": reads,
  }[tensor.role]  # fmt: skip
  return Factors(learning_rate=rate, weight_decay=1 / rate)


def _orthogonal(p: Parametrization, tensor: Tensor) -> Factors:
  """Muon: matrices of blocks by their spectral norm, all others as AdamW.

  What a matrix is changed by is to have a spectral norm like the root of
  makes / reads (arXiv:2310.17813); that of the direction is like the root of
  the larger of the two, from which its entries are as large as AdamW's.
  """
  if tensor.role != "hidden":
    return _normalised(p, tensor)
  alpha = KINDS[p.kind].depth or 0.0
  larger = [
    max(s.of(tensor.reads), s.of(tensor.makes)) for s in (p.sizes, p.base)
  ]
  wanted = p.growth(tensor.makes) / p.growth(tensor.reads)
  width = math.sqrt(wanted / float(larger[0] / larger[1]))
  return Factors(
    learning_rate=_in_block(p, tensor, alpha - 1) * width,
    weight_decay=1 / width,
  )


# What is said of each optimizer; of others nothing is.
OPTIMIZERS: Mapping[str, Callable[[Parametrization, Tensor], Factors]] = {
  "adamw": _normalised,
  "lion": _signs,
  "sgd": _gradient,
  "muon": _orthogonal,
}


def parametrization_of(
  kind: str, sizes: Mapping[str, int], base: Mapping[str, int | None], joint
) -> Parametrization:
  """From plain values: sizes and base by the keys of config.model.

  Of a base None follows by itself: heads are as wide as the model's, and what
  lies across the stream has grown as much as the stream has. Raises BadConfig
  where the base is not said that the kind needs.
  """
  rule = errors.choose(kind, KINDS, "model.parametrization")
  for key, value in base.items():
    if value is not None and value < 1:
      raise errors.BadConfig(
        f"model.base_{key}={value}: expected a size of the model that the "
        "numbers were tuned on, from 1, or None"
      )
  for key, needed in (("dim", rule.by_width), ("layers", rule.depth)):
    if needed and base[key] is None:
      raise errors.BadConfig(
        f"model.parametrization={kind} needs model.base_{key}, that of the "
        "model on which the learning rate and the other numbers were tuned: "
        f"--config.model.base_{key}={sizes[key]} if it is this one"
      )
  own = Sizes(
    *(
      Fraction(sizes[key])
      for key in ("dim", "heads", "kv_heads", "head_dim", "mlp_dim", "layers")
    )
  )
  if not rule.by_width:
    return Parametrization(kind, own, own, joint)
  D, H = Fraction(base["dim"]), Fraction(base["head_dim"] or own.H)
  N = Fraction(base["heads"] or own.N * (D / own.D) * (own.H / H))
  return Parametrization(
    kind,
    own,
    Sizes(
      D=D, N=N, H=H,
      K=Fraction(base["kv_heads"] or own.K * (N / own.N)),
      F=Fraction(base["mlp_dim"] or own.F * (D / own.D)),
      L=own.L if rule.depth is None else Fraction(base["layers"]),
    ),
    joint,
  )  # fmt: skip
