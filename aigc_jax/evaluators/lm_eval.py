"""Our models as a model of lm-evaluation-harness (extra [lm_eval]).

The command `aigc_jax.lm_eval` registers it as "aigc_jax" and hands over to the
harness.
"""

from collections.abc import Callable, Mapping

from aigc_jax.errors import BadConfig
from aigc_jax.evaluators.likelihood import Scorer
from aigc_jax.sampling.decode import Engine
from aigc_jax.sampling.logits import Sampling
from aigc_jax.sampling.text import generate

__all__ = ["Model", "register_model", "sampling_of"]
MAX_TOKENS = 256  # of a generation, where the task names no limit
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens")  # its names for one
try:
  from lm_eval.api.model import LM
  from lm_eval.api.registry import register_model
except ImportError as error:
  raise BadConfig(
    "lm_eval is not installed: pip install 'aigc_jax[lm_eval]'"
  ) from error


class Model(LM):
  """A model of this package, to the harness.

  make_scorer(batch) and make_engine(sampling, seed) give what it works with.
  """

  tokenizer_name = ""  # what the harness's cache knows our tokens by

  def __init__(
    self,
    make_scorer: Callable[[int], Scorer],
    make_engine: Callable[[Sampling, int], Engine],
    *,
    name: str,
    batch: int,
    seed: int,
  ):
    super().__init__()
    self.scorer = make_scorer(batch)
    self.tokenizer_name = name
    self._make_engine, self._batch, self._seed = make_engine, batch, seed
    self._engines: dict[Sampling, Engine] = {}

  def loglikelihood(self, requests, disable_tqdm: bool = False):
    """(log p(continuation | context), whether greedy) of each request."""
    found = self.scorer.pairs([r.args for r in requests])
    answers = [(f.logprob, f.greedy) for f in found]
    for request, answer in zip(requests, answers, strict=True):
      self.cache_hook.add_partial("loglikelihood", request.args, answer)
    return answers

  def loglikelihood_rolling(self, requests, disable_tqdm: bool = False):
    """log p of each text by itself."""
    answers = [self.scorer.rolling(r.args[0]).logprob for r in requests]
    for request, answer in zip(requests, answers, strict=True):
      self.cache_hook.add_partial("loglikelihood_rolling", request.args, answer)
    return answers

  def generate_until(self, requests, disable_tqdm: bool = False):
    """What the model writes after each context, up to a stop string."""
    groups: dict[str, list[int]] = {}
    for i, request in enumerate(requests):
      groups.setdefault(repr(request.args[1]), []).append(i)
    answers = [""] * len(requests)
    for group in groups.values():
      contexts = [requests[i].args[0] for i in group]
      found = self._write(contexts, requests[group[0]].args[1])
      for i, text in zip(group, found, strict=True):
        answers[i] = text
    for request, answer in zip(requests, answers, strict=True):
      self.cache_hook.add_partial("generate_until", request.args, answer)
    return answers

  def _write(self, contexts: list[str], settings: Mapping) -> list[str]:
    """Continuations of all contexts under the same settings of a task."""
    settings = dict(settings)
    stops = settings.pop("until", None) or []
    stops = [stops] if isinstance(stops, str) else list(stops)
    limits = [settings.pop(key, None) for key in LIMITS]
    most = next((int(n) for n in limits if n is not None), MAX_TOKENS)
    how = sampling_of(settings)
    if how not in self._engines:
      self._engines[how] = self._make_engine(how, self._seed)
    found = generate(
      self._engines[how], self.scorer.tokenizer, contexts,
      max_tokens=most, num_samples=1, stops=[s for s in stops if s],
      batch=self._batch, steps=16, keep=max(self.scorer.length - most, 1),
    )  # fmt: skip
    return [c.text for c in found]


def sampling_of(settings: Mapping) -> Sampling:
  """A task's settings as ours: greedy unless it says do_sample=True.

  Raises BadConfig for a setting that would be ignored.
  """
  settings = dict(settings)
  draws = settings.pop("do_sample", settings.get("temperature", 0.0) > 0)
  ours = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
  unknown = [key for key in settings if key not in ours]
  if unknown:
    raise BadConfig(
      f"generation settings {', '.join(unknown)} are unknown (there are: "
      f"until, do_sample, {', '.join((*LIMITS, *ours))})"
    )
  if not draws:
    penalty = settings.pop("repetition_penalty", 1.0)
    return Sampling(repetition_penalty=float(penalty))
  return Sampling(**{"temperature": 1.0} | settings)
