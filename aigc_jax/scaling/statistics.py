"""Statistics of few seeds, in float64: what an honest ablation prints.

An effect is variant - baseline, tests are two-sided, standard deviations have
n - 1 below, intervals are of 95 % unless alpha says otherwise. What cannot be
known (a deviation of one value, a t without spread) is None, never a number.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from scipy import optimize, special, stats

ALPHA = 0.05
POWER = 0.8
MOST_FLIPS = 20  # pairs up to which all 2**n signs are tried
MOST_SPLITS = 200_000  # ways to deal values to two arms that are all tried
MOST_RESAMPLES = 50_000  # n**n up to which the bootstrap takes each of them
RESAMPLES = 20_000  # beyond that
TIES = 1e-9  # of the largest difference: rounding makes no order

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Summary:
  """The values of one arm. Of one value there is no sd, sem nor interval."""

  n: int
  mean: float
  sd: float | None
  sem: float | None
  ci95_t: Interval | None
  min: float
  max: float
  median: float


@dataclasses.dataclass(frozen=True)
class Bootstrap:
  """Of a mean: each of the n**n resamples where that can be, else drawn.

  bca: bias-corrected and accelerated (Efron 1987); z0 and acc its constants.
  """

  resamples: int
  exact: bool
  se: float
  percentile95: Interval
  bca95: Interval | None
  z0: float | None
  acc: float | None


@dataclasses.dataclass(frozen=True)
class Paired:
  """Differences by seed.

  corr: of the two arms over the seeds; pairing pays where it is positive.
  cohen_dz, hedges_gz: the mean in deviations, the second without bias.
  mde_*_power80: the difference that n pairs find 4 times in 5, in deviations
  of the differences and in the metric. n_for_power80: pairs that would find
  this one; None where two do.
  """

  n_pairs: int
  mean_diff: float
  sd_diff: float
  se_diff: float
  t: float | None
  df: int
  p_two_sided: float | None
  ci95: Interval
  cohen_dz: float | None
  hedges_gz: float | None
  corr: float | None
  signflip_p: float
  signflip_exact: bool
  wilcoxon_W: float | None
  wilcoxon_p: float | None
  mde_d_power80: float
  mde_abs_power80: float
  n_for_power80: float | None
  bootstrap: Bootstrap


@dataclasses.dataclass(frozen=True)
class Welch:
  """Two arms whose seeds share nothing; df by Satterthwaite.

  mde_*_power80: in pooled deviations and in the metric, for these two n.
  """

  n_variant: int
  n_baseline: int
  diff: float
  se: float
  t: float | None
  df: float | None
  p_two_sided: float | None
  ci95: Interval | None
  cohen_d_pooled: float | None
  hedges_g: float | None
  mannwhitney_U: float
  mannwhitney_p: float
  permutation_p: float | None
  permutation_n: int
  mde_d_power80: float
  mde_abs_power80: float


@dataclasses.dataclass(frozen=True)
class Equivalence:
  """Two one-sided tests: whether a difference lies within low and high."""

  low: float
  high: float
  t_low: float
  p_low: float
  t_high: float
  p_high: float
  p: float
  df: float


@dataclasses.dataclass(frozen=True)
class Clustered:
  """Paired differences of examples that come in clusters (arXiv:2411.00640)."""

  n: int
  n_clusters: int
  mean_diff: float
  se_unpaired: float
  se_paired_iid: float
  se_paired_clustered: float
  z_clustered: float | None
  p_clustered: float | None


def summary(values: Sequence[float], alpha: float = ALPHA) -> Summary:
  """The values of an arm; raises ValueError without one, or for NaN."""
  x = _checked(values)
  n, mean = len(x), float(x.mean())
  sd = float(x.std(ddof=1)) if n > 1 else None
  sem = None if sd is None else sd / math.sqrt(n)
  return Summary(
    n=n,
    mean=mean,
    sd=sd,
    sem=sem,
    ci95_t=None if sem is None else _around(mean, sem, n - 1, alpha),
    min=float(x.min()),
    max=float(x.max()),
    median=float(np.median(x)),
  )


def paired(
  variant: Sequence[float], baseline: Sequence[float], alpha: float = ALPHA
) -> Paired:
  """The differences of two arms whose i-th values share a seed.

  Raises ValueError for fewer than two pairs.
  """
  x, y = _checked(variant), _checked(baseline)
  if len(x) != len(y) or len(x) < 2:
    raise ValueError(f"{len(x)} and {len(y)} values: expected 2 pairs or more")
  d = x - y
  n, mean, sd = len(d), float(d.mean()), float(d.std(ddof=1))
  if sd <= TIES * max(np.abs(x).max(), np.abs(y).max()) * 1e-5:
    sd = 0.0  # the same difference in each pair, but for rounding
  se = sd / math.sqrt(n)
  t = mean / se if se else None
  dz = mean / sd if sd else None
  flips, exact = sign_flip(d)
  w, w_p = _wilcoxon(d)
  least = smallest_effect(n - 1, lambda d: d * math.sqrt(n), alpha)
  return Paired(
    n_pairs=n,
    mean_diff=mean,
    sd_diff=sd,
    se_diff=se,
    t=t,
    df=n - 1,
    p_two_sided=_p(t, n - 1),
    ci95=_around(mean, se, n - 1, alpha),
    cohen_dz=dz,
    hedges_gz=None if dz is None else dz * _unbiased(n - 1),
    corr=_correlation(x, y),
    signflip_p=flips,
    signflip_exact=exact,
    wilcoxon_W=w,
    wilcoxon_p=w_p,
    mde_d_power80=least,
    mde_abs_power80=least * sd,
    n_for_power80=None if dz is None else pairs_needed(dz, alpha),
    bootstrap=bootstrap(d, alpha),
  )


def welch(
  variant: Sequence[float], baseline: Sequence[float], alpha: float = ALPHA
) -> Welch:
  """Two arms of unequal variance; raises ValueError below two values each."""
  x, y = _checked(variant), _checked(baseline)
  n, m = len(x), len(y)
  if min(n, m) < 2:
    raise ValueError(f"{n} and {m} values: expected 2 or more each")
  diff = float(x.mean() - y.mean())
  vx, vy = float(x.var(ddof=1)) / n, float(y.var(ddof=1)) / m
  se = math.sqrt(vx + vy)
  t = diff / se if se else None
  df = None
  if se:  # by shares, as squares of small variances vanish
    share = vx / (vx + vy)
    df = 1 / (share**2 / (n - 1) + (1 - share) ** 2 / (m - 1))
  pooled = math.sqrt(
    ((n - 1) * x.var(ddof=1) + (m - 1) * y.var(ddof=1)) / (n + m - 2)
  )
  d = diff / pooled if pooled else None
  rank = stats.mannwhitneyu(x, y, alternative="two-sided")
  p, count = permutation(x, y)
  least = smallest_effect(
    n + m - 2, lambda d: d * math.sqrt(n * m / (n + m)), alpha
  )
  return Welch(
    n_variant=n,
    n_baseline=m,
    diff=diff,
    se=se,
    t=t,
    df=df,
    p_two_sided=_p(t, df),
    ci95=None if df is None else _around(diff, se, df, alpha),
    cohen_d_pooled=d,
    hedges_g=None if d is None else d * _unbiased(n + m - 2),
    mannwhitney_U=float(rank.statistic),
    mannwhitney_p=float(rank.pvalue),
    permutation_p=p,
    permutation_n=count,
    mde_d_power80=least,
    mde_abs_power80=least * pooled,
  )


def sign_flip(d: np.ndarray) -> tuple[float, bool]:
  """(p, whether exact) of the mean of differences, signs being exchangeable.

  With n pairs no p is below 2 / 2**n: five seeds cannot reach .05.
  """
  n = len(d)
  bound = abs(d.sum()) - TIES * np.abs(d).max(initial=0.0) * n
  if n <= MOST_FLIPS:
    # Half of the signs: the other half gives the same sizes.
    signs = 1 - 2 * ((np.arange(2 ** (n - 1))[:, None] >> np.arange(n)) & 1)
    return float((np.abs(signs @ d) >= bound).mean()), True
  signs = np.random.default_rng(0).choice([-1.0, 1.0], (RESAMPLES, n))
  count = int((np.abs(signs @ d) >= bound).sum())
  return (count + 1) / (RESAMPLES + 1), False


def permutation(x: np.ndarray, y: np.ndarray) -> tuple[float | None, int]:
  """(p, ways) of the difference of means, over all ways to deal the values.

  (None, ways) where the ways are too many to try.
  """
  both, n = np.concatenate([x, y]), len(x)
  ways = math.comb(len(both), n)
  if ways > MOST_SPLITS:
    return None, ways
  chosen = np.array(list(itertools.combinations(range(len(both)), n)))
  ours = both[chosen].sum(1)
  means = ours / n - (both.sum() - ours) / len(y)
  bound = abs(x.mean() - y.mean()) - TIES * np.ptp(both)
  return float((np.abs(means) >= bound).mean()), ways


def bootstrap(values: np.ndarray, alpha: float = ALPHA) -> Bootstrap:
  """The bootstrap of a mean; the same values give the same interval."""
  n = len(values)
  exact = n**n <= MOST_RESAMPLES
  if exact:
    index = np.array(list(itertools.product(range(n), repeat=n)))
  else:
    index = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
  means = values[index].mean(1)
  mean = values.mean()
  ends = (alpha / 2, 1 - alpha / 2)
  low, high = np.quantile(means, ends)
  # Half of those that equal the mean count as below it.
  slack = TIES * np.ptp(values)
  equal = np.abs(means - mean) <= slack
  share = float((means < mean - slack).mean() + equal.mean() / 2)
  spread = np.ptp(values) > 0 and 0 < share < 1
  z0 = acc = bca = None
  if spread:
    z0 = float(stats.norm.ppf(share))
    away = (values.sum() - values) / (n - 1)
    away = away.mean() - away
    acc = float((away**3).sum() / (6 * (away**2).sum() ** 1.5))
    z = z0 + stats.norm.ppf(ends)
    bca = np.quantile(means, stats.norm.cdf(z0 + z / (1 - acc * z)))
  return Bootstrap(
    resamples=len(index),
    exact=exact,
    se=float(means.std(ddof=0 if exact else 1)),
    percentile95=(float(low), float(high)),
    bca95=None if bca is None else (float(bca[0]), float(bca[1])),
    z0=z0,
    acc=acc,
  )


def power(noncentrality: float, df: float, alpha: float = ALPHA) -> float:
  """Of a two-sided t test: how often it finds an effect of this size.

  The chance that |Z + noncentrality| exceeds the critical t times the
  estimated deviation, whose square is chi-squared / df.
  """
  critical = float(stats.t.isf(alpha / 2, df))
  # Beyond these the estimated deviation hardly ever lies.
  low, high = np.sqrt(special.chdtri(df, [1 - 1e-16, 1e-15]) / df)
  middle = min(max(noncentrality / critical, low), high)
  return _tails(low, middle, noncentrality, critical, df) + _tails(
    middle, high, noncentrality, critical, df
  )


def _tails(low, high, noncentrality, critical, df) -> float:
  """Both tails beyond critical * s, over deviations s from low to high."""
  nodes, weights = _legendre()
  half = (high - low) / 2
  s = low + half * (nodes + 1)
  density = (
    math.log(2)
    + df / 2 * math.log(df / 2)
    - special.gammaln(df / 2)
    + special.xlogy(df - 1, s)
    - df * s * s / 2
  )
  tails = special.ndtr(noncentrality - critical * s) + special.ndtr(
    -noncentrality - critical * s
  )
  return float(half * (weights * np.exp(density) * tails).sum())


@functools.cache
def _legendre() -> tuple[np.ndarray, np.ndarray]:
  return np.polynomial.legendre.leggauss(160)


def smallest_effect(
  df: float, noncentrality: Callable[[float], float], alpha: float = ALPHA
) -> float:
  """In deviations: what is found at 80 % power (the minimal detectable effect).

  noncentrality(d): that of the t of an effect of d deviations.
  """
  high = 1.0
  while power(noncentrality(high), df, alpha) < POWER:
    high *= 2
  return optimize.brentq(
    lambda d: power(noncentrality(d), df, alpha) - POWER,
    0.0,
    high,
    xtol=1e-12,
    rtol=1e-12,
  )


def pairs_needed(dz: float, alpha: float = ALPHA) -> float | None:
  """How many pairs would find dz at 80 % power, in parts of one.

  None where two pairs do, or a million do not.
  """

  def lacking(n):
    return power(abs(dz) * math.sqrt(n), n - 1, alpha) - POWER

  least, most = 2.0, 1e6
  if lacking(least) >= 0 or lacking(most) < 0:
    return None
  return optimize.brentq(lacking, least, most, xtol=1e-9, rtol=1e-12)


def bonferroni_holm(p: Sequence[float]) -> list[float]:
  """Holm's adjusted p: one false finding among all has a chance of alpha."""
  order = np.argsort(p, kind="stable")
  adjusted, worst = [0.0] * len(p), 0.0
  for rank, i in enumerate(order):
    worst = max(worst, (len(p) - rank) * p[i])
    adjusted[i] = min(1.0, worst)
  return adjusted


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
  """Adjusted p: of all findings the expected false share stays below alpha."""
  order = np.argsort(p, kind="stable")[::-1]
  adjusted, least = [0.0] * len(p), 1.0
  for rank, i in enumerate(order):
    least = min(least, len(p) / (len(p) - rank) * p[i])
    adjusted[i] = least
  return adjusted


def equivalence(
  mean: float, se: float, df: float, low: float, high: float
) -> Equivalence | None:
  """Whether a difference lies within (low, high); None without spread."""
  if not low < high:
    raise ValueError(f"low={low}, high={high}: expected low < high")
  if not se:
    return None
  t_low, t_high = (mean - low) / se, (mean - high) / se
  p_low, p_high = float(stats.t.sf(t_low, df)), float(stats.t.cdf(t_high, df))
  return Equivalence(
    low, high, t_low, p_low, t_high, p_high, max(p_low, p_high), df
  )


def clustered(
  variant: Sequence[float],
  baseline: Sequence[float],
  clusters: Sequence[Hashable],
) -> Clustered:
  """The mean difference over examples, and its error by clusters of them.

  Raises ValueError where the three differ in length, or below two clusters.
  """
  x, y = _checked(variant), _checked(baseline)
  if not len(x) == len(y) == len(clusters):
    raise ValueError("expected a value of both and a cluster for each example")
  d = x - y
  n = len(d)
  names, index = np.unique(np.asarray(clusters), return_inverse=True)
  if len(names) < 2:
    raise ValueError(f"{len(names)} cluster: expected 2 or more")
  mean = float(d.mean())
  sums = np.bincount(index, weights=d - mean)
  se = float(np.sqrt((sums**2).sum())) / n
  z = mean / se if se else None
  return Clustered(
    n=n,
    n_clusters=len(names),
    mean_diff=mean,
    se_unpaired=float(np.sqrt(x.var(ddof=1) / n + y.var(ddof=1) / n)),
    se_paired_iid=float(d.std(ddof=1) / math.sqrt(n)),
    se_paired_clustered=se,
    z_clustered=z,
    p_clustered=None if z is None else float(2 * stats.norm.sf(abs(z))),
  )


def _checked(values: Sequence[float]) -> np.ndarray:
  x = np.asarray(values, np.float64)
  if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
    raise ValueError(f"expected one or more finite values, got {values}")
  return x


def _around(mean: float, se: float, df: float, alpha: float) -> Interval:
  reach = float(stats.t.isf(alpha / 2, df)) * se
  return (mean - reach, mean + reach)


def _p(t: float | None, df: float | None) -> float | None:
  return None if t is None else float(2 * stats.t.sf(abs(t), df))


def _unbiased(df: float) -> float:
  """Hedges' factor, by its usual approximation."""
  return 1 - 3 / (4 * df - 1)


def _correlation(x: np.ndarray, y: np.ndarray) -> float | None:
  if not np.ptp(x) or not np.ptp(y):
    return None
  return float(np.corrcoef(x, y)[0, 1])


def _wilcoxon(d: np.ndarray) -> tuple[float | None, float | None]:
  """Wilcoxon's signed ranks, exact where there is no tie."""
  if not d.any():
    return None, None
  found = stats.wilcoxon(d)
  return float(found.statistic), float(found.pvalue)
