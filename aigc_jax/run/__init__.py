"""Config to Run: the only part of the package that reads a config.

script (the file), overrides (the command line), settings (read, check),
spelling (of before), compute (the section of that name, handed to models) ->
build (mesh, model, objective, optimizer, step),
inputs (data), evaluation (evaluators), load (parameters that are there; origin:
are they those of the model, alike: are two models one), loaded (what a model
with its parameters can be used for; drawing: images, speaking: speech),
kept (what nobody else writes), standing (where a run goes on), branch (from
another run), budget (where it ends), places (what a run names, from another
folder)
"""

from aigc_jax.run import branch
from aigc_jax.run.build import (
  Run,
  abstract_params,
  build,
  declared_params,
  deviations,
  make_mesh,
  model_of,
  objective_of,
  reached,
  scorer,
)
from aigc_jax.run.compute import keywords, sectioned, taken
from aigc_jax.run.defaults import filled
from aigc_jax.run.embedded import KINDS as EMBEDDED
from aigc_jax.run.embedded import known as known_embedded
from aigc_jax.run.embedded import made as embedded_evaluator
from aigc_jax.run.embedded import opened as open_embedded
from aigc_jax.run.evaluation import (
  Place,
  check_evaluators,
  evaluations,
  evaluator,
  left_out,
)
from aigc_jax.run.extension import extend
from aigc_jax.run.inputs import (
  check_heldout_paths,
  check_inputs,
  check_paths,
  check_workdir,
  example_of,
  few,
  find_eval,
  note_inputs,
  open_eval,
  open_stream,
)
from aigc_jax.run.kept import check_out
from aigc_jax.run.load import (
  averaged_enough,
  config_of_part,
  frozen_digest,
  heldout_prints,
  load,
  part_of,
  parts_in,
  read_frozen,
  read_params,
  read_trained,
)
from aigc_jax.run.loaded import Loaded, trained_length
from aigc_jax.run.measured import heldout_sets, known_by, lost
from aigc_jax.run.origin import (
  check_origin,
  check_resumed,
  hf_folder,
  identity_in,
)
from aigc_jax.run.overrides import configured, repeated, section_of
from aigc_jax.run.record import entries
from aigc_jax.run.script import place_of
from aigc_jax.run.session import Options, Session, changed_since, identity_of
from aigc_jax.run.settings import (
  Config,
  check_data,
  config_in,
  data_of,
  fingerprint,
  provenance_in,
  read,
  result_in,
  usable_config_in,
)
from aigc_jax.run.speaking import said_of
from aigc_jax.run.standing import Standing, going_on

__all__ = [
  "EMBEDDED",
  "Config",
  "Loaded",
  "Options",
  "Place",
  "Run",
  "Session",
  "Standing",
  "abstract_params",
  "averaged_enough",
  "branch",
  "build",
  "changed_since",
  "check_data",
  "check_evaluators",
  "check_heldout_paths",
  "check_inputs",
  "check_paths",
  "check_origin",
  "check_out",
  "check_resumed",
  "check_workdir",
  "config_in",
  "configured",
  "data_of",
  "declared_params",
  "deviations",
  "embedded_evaluator",
  "entries",
  "evaluations",
  "left_out",
  "evaluator",
  "extend",
  "filled",
  "find_eval",
  "fingerprint",
  "frozen_digest",
  "going_on",
  "heldout_prints",
  "heldout_sets",
  "hf_folder",
  "identity_in",
  "identity_of",
  "keywords",
  "known_by",
  "known_embedded",
  "load",
  "lost",
  "trained_length",
  "make_mesh",
  "model_of",
  "few",
  "note_inputs",
  "objective_of",
  "open_embedded",
  "example_of",
  "open_eval",
  "open_stream",
  "part_of",
  "config_of_part",
  "parts_in",
  "place_of",
  "provenance_in",
  "reached",
  "read",
  "read_frozen",
  "read_params",
  "read_trained",
  "repeated",
  "result_in",
  "said_of",
  "scorer",
  "section_of",
  "sectioned",
  "taken",
  "usable_config_in",
]
