"""A model with its parameters, and what it can be used for."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from aigc_jax import files, tree
from aigc_jax.data import special
from aigc_jax.evaluators.features import Features, check_features
from aigc_jax.evaluators.spoken import Recogniser
from aigc_jax.layers.report import STATS
from aigc_jax.run import compute
from aigc_jax.run.drawing import (
  check_own,
  pixels_in,
  sampler_of,
  told_rows,
)
from aigc_jax.run.origin import hf_folder
from aigc_jax.run.settings import (
  Config,
  most_positions,
)
from aigc_jax.run.speaking import synthesiser_of
from aigc_jax.sampling.beam import Beams, BeamSearch
from aigc_jax.sampling.decode import Engine
from aigc_jax.sampling.decodes import check_decodes
from aigc_jax.sampling.images import (
  Batches,
  check_draws,
  check_reconstructs,
  pixels_of,
)
from aigc_jax.sampling.logits import Sampling
from aigc_jax.sampling.speech import Line, Synthesiser, check_speaks, line_of
from aigc_jax.sampling.transcripts import (
  Aligns,
  Greedy,
  InWords,
  check_hears,
)
from aigc_jax.sampling.words import Known
from aigc_jax.trainer.state import Fixed

# Of a config.json, what no model is made by.
UNREAD = ("transformers_version", "_name_or_path", "architectures")
HEARD = 200  # tokens of what is heard, where nothing says how many


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model with its parameters and tokenizer, ready to be used."""

  model: nn.Module
  params: tree.Tree
  tokenizer: Any
  config: Config
  mesh: jax.sharding.Mesh
  step: int  # updates behind the parameters; 0 for a Hugging Face folder
  name: str
  fixed: Fixed | None = None  # what the model reads besides parameters

  @property
  def length(self) -> int:
    """How many tokens the model was made to read at once; 0 if it is unsaid."""
    made = self.config["model"].get("position_length") or 0
    if made or "data" not in self.config:
      return made
    return self.config["data"].get("length", 0)

  @functools.cached_property
  def digest_words(self) -> list[int]:
    """The digest of all that the model reads; every process has to ask."""
    with jax.set_mesh(self.mesh):
      return np.asarray(jax.jit(tree.digest)(self.variables)).tolist()

  @property
  def digest(self) -> str:
    """The same in hexadecimal."""
    return "".join(f"{word:08x}" for word in self.digest_words)

  def most_written(self, length: int) -> int:
    """Tokens that hold any target of a length, its end of text included.

    Where no position is left for that end, nothing is to come behind it: it
    need not be written.
    """
    if not getattr(self.model, "source", False):
      return length
    return self.room(length, 1)  # one has the start token

  def room(self, tokens: int, before: int) -> int:
    """So many tokens, or as many as there are positions behind those before.

    At least 1: where there is none at all, whoever writes refuses that.
    """
    positions = most_positions(compute.keywords(self.config))
    return max(1, min(tokens, positions - before)) if positions else tokens

  def engine(self, sampling: Sampling, *, seed: int, group: int) -> Engine:
    """Decoding with this model; see sampling/decode.py."""
    check_decodes(self.model, "writing text")
    return Engine(
      self.model, self.params, sampling=sampling, group=group, seed=seed,
      **decoding_of(self.config, self.tokenizer),
    )  # fmt: skip

  def search(self, beams: Beams) -> BeamSearch:
    """Beam search with this model; see sampling/beam.py."""
    check_decodes(self.model, "beam search")
    return BeamSearch(
      self.model, self.params, beams=beams,
      **decoding_of(self.config, self.tokenizer),
    )  # fmt: skip

  def hearing(
    self, beams: Beams | None = None, words: Known | None = None
  ) -> Greedy | Engine | BeamSearch:
    """What makes text of sound; see sampling/transcripts.py.

    beams: of a model that writes, or of known words; None takes the likeliest.
    words: that alone are heard, by a model that aligns; with beams.
    """
    check_hears(self.model, "transcribing", beams, words)
    if isinstance(self.model, Aligns):
      if words is None:
        return Greedy(self.model, self.params)
      search = words.search(self.tokenizer, self.model.blank, beams.width)
      return InWords(self.model, self.params, search)
    if beams is not None:
      return self.search(beams)
    return self.engine(Sampling(temperature=0.0), seed=0, group=32)

  def sampler(
    self, *, sampler: str, steps: int, guidance: float, seed: int
  ) -> Batches:
    """Drawing images with this model; see sampling/images.py."""
    check_draws(self.model, "drawing")
    check_own(self.config)
    return sampler_of(
      self.config, self.model, self.variables, sampler=sampler, steps=steps,
      guidance=guidance, seed=seed,
    )  # fmt: skip

  def told_rows(
    self, rows: int, *, labels: Sequence[str], prompts: Sequence[str]
  ) -> np.ndarray:
    """What the rows of a grid are drawn of; see run/drawing.py."""
    check_own(self.config)
    return told_rows(
      self.config, self.model, self.tokenizer, rows=rows, labels=labels,
      prompts=prompts,
    )  # fmt: skip

  def synthesiser(
    self, *, sampler: str, steps: int, guidance: float, seed: int
  ) -> Synthesiser:
    """Speaking with this model; see sampling/speech.py."""
    check_speaks(self.model, "speaking")
    return synthesiser_of(
      self.config, self.model, self.variables, sampler=sampler, steps=steps,
      guidance=guidance, seed=seed,
    )  # fmt: skip

  def line(self, text: str, speaker: int) -> Line:
    """A text as this model is to say it. Raises BadData."""
    return line_of(
      self.tokenizer, text, speaker, self.config["data"]["target_length"]
    )

  def recogniser(self) -> Recogniser:
    """This model as one that judges speech; see evaluators/spoken.py."""
    most = trained_length(self.config)
    made = files.sha256_json(
      ["recogniser 1", self.digest_words, self.tokenizer.fingerprint]
    )
    return Recogniser(
      self.hearing(), self.tokenizer, most or HEARD, made, self.said_of_itself
    )

  @functools.cached_property
  def said_of_itself(self) -> str:
    """sha256 of what hf:FOLDER says of its model beside the parameters.

    An activation, say, or where texts end; "" of a run, whose checkpoints hold
    its config.
    """
    folder = hf_folder(self.name)
    if folder is None:
      return ""
    said = files.read_json(files.expanded(folder) / "config.json")
    said = {key: x for key, x in said.items() if key not in UNREAD}
    special = getattr(self.tokenizer, "special_fingerprint", "")
    return files.sha256_json(["config 1", said, special])

  def features(self) -> Features:
    """Of images, by this model of their labels; see evaluators/features.py."""
    check_features(self.model, self.name)
    if "data" in self.config:
      check_own(self.config)
      pixels = {key: self.config["data"].get(key) for key in ("mean", "std")}
    else:
      pixels = pixels_in(hf_folder(self.name))
    return Features(
      self.model, self.variables, name=self.name, said=self.said_of_itself,
      **pixels,
    )  # fmt: skip

  def reconstructed(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images in the units of the data, as uint8, and what is made of them."""
    check_reconstructs(self.model, "--reconstruct")
    check_own(self.config)
    scale = {key: self.config["data"][key] for key in ("mean", "std")}
    make = jax.jit(functools.partial(self.model.apply, method="reconstruct"))
    made = np.asarray(make(self.variables, images))
    return pixels_of(images, **scale), pixels_of(made, **scale)

  @property
  def variables(self) -> dict[str, tree.Tree]:
    """All that the model reads, by collection."""
    found = {"params": self.params}
    if self.fixed is not None and self.fixed.stats is not None:
      found[STATS] = self.fixed.stats
    return found


def trained_length(config: Config) -> int:
  """How many tokens a run was trained to write; 0 where there is none."""
  data = config.get("data", {})
  return data.get("target_length", data.get("length", 0))


def decoding_of(config: Config, tokenizer) -> dict:
  """What decoding has to know beside a model and its parameters."""
  model = compute.keywords(config)
  start = model.get("start_token")
  return dict(
    stop_ids=special.stops(tokenizer),
    positions=most_positions(model),
    unrolled=not model["unroll"],
    start=tokenizer.eot if start is None else start,
  )
