"""The held-out sets that a run was measured on, as they lie here by now."""

from collections.abc import Iterator, Mapping, Sequence

from aigc_jax.data import EvalSet
from aigc_jax.data.kept import damaged
from aigc_jax.data.pairs import Pairs
from aigc_jax.errors import BadConfig, BadData
from aigc_jax.run.evaluation import check_evaluators, evaluations
from aigc_jax.run.inputs import find_eval, open_eval
from aigc_jax.run.load import heldout_prints
from aigc_jax.run.loaded import Loaded
from aigc_jax.run.record import TEXTS
from aigc_jax.run.settings import Config, data_of

PREPARE = "add --prepare"


def heldout_sets(
  loaded: Loaded,
  *,
  prepare: bool = False,
  otherwise: str,
  ask: str = PREPARE,
) -> Iterator[tuple[str, EvalSet]]:
  """(name, set) of each that the run's config holds out.

  Only stores below its data.root are read, and just those that the run was
  measured on. prepare: those that are missing are made, of the sources that the
  config names. otherwise: what to do about a run that has no set, ask: how to
  have one prepared. Raises BadConfig where there is none, BadData where one is
  not prepared.
  """
  config = loaded.config
  prints = heldout_prints(loaded.name, loaded.step)
  entries = {
    name: entry
    for name, entry in evaluations(config).items()
    if entry["kind"] == "loss"
  }
  if not entries:
    raise BadConfig(
      "the run's config has no held-out set (evaluate.NAME.kind='loss'): "
      f"{otherwise}"
    )
  for name, entry in entries.items():
    check_evaluators(config | {"evaluate": {name: entry}}, prepared=True)
    given = dict(batches=entry["batches"], tokenizer=loaded.tokenizer)
    given |= entry["data"]
    found = find_eval(config, **known_by(prints, name), **given)
    if found is None and prepare:
      found = open_eval(config, **given)
    if found is None:
      raise lost(name, config, ask)
    yield name, found


def known_by(prints: Mapping[str, Sequence[str]], name: str) -> dict:
  """What `find_eval` knows a held-out set by; prints: of `heldout_prints`."""
  return {
    "fingerprints": prints.get(name, ()),
    "texts": prints.get(f"{name}.{TEXTS}", ()),
  }


def lost(name: str, config: Config, ask: str = PREPARE) -> BadData:
  """Of a held-out set whose store is gone; ask: how to have it prepared."""
  if isinstance(data_of(config), Pairs):  # of which there are no stores
    return BadData(
      f"evaluate.{name}: the pairs that lie here are not those that the run "
      "was measured on, or are gone: put their files back as they were (`data` "
      "in the run's config.json names them), or, to measure what is there now, "
      f"{ask}"
    )
  root = config["data"]["root"]
  why = damaged(root)
  return BadData(
    f"evaluate.{name}: the store of this held-out set is not below {root}"
    f"{f' ({why})' if why else ''}. What it is made of is read, and a store "
    "written, on request only: look at `data` in the run's config.json, "
    f"then {ask}"
  )
