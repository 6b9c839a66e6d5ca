"""Config to Run: the only part of the package that reads a config.

script (the file), overrides (the command line), settings (read, check),
spelling (of before) -> build (mesh, model, objective, optimizer, step),
inputs (data), evaluation (evaluators), load (parameters that are there),
standing (where a run goes on), budget (where it ends), places (a run again)
"""

from aigc_jax.run.build import (
  Run,
  abstract_params,
  build,
  declared_params,
  make_mesh,
  model_of,
  objective_of,
  reached,
  scorer,
)
from aigc_jax.run.evaluation import (
  Place,
  check_evaluators,
  evaluations,
  evaluator,
)
from aigc_jax.run.inputs import (
  check_inputs,
  check_workdir,
  data_arguments,
  find_eval,
  heldout_arguments,
  open_eval,
  open_stream,
  prepared_data,
  tokenizer_of,
)
from aigc_jax.run.load import (
  Loaded,
  check_origin,
  check_resumed,
  heldout_prints,
  hf_folder,
  identity_in,
  load,
  read_params,
)
from aigc_jax.run.overrides import configured, section_of
from aigc_jax.run.places import repeated
from aigc_jax.run.settings import (
  Config,
  check_data,
  config_in,
  fingerprint,
  provenance_in,
  read,
  result_in,
  usable_config_in,
)
from aigc_jax.run.standing import Standing, going_on

__all__ = [
  "Config",
  "Loaded",
  "Place",
  "Run",
  "Standing",
  "abstract_params",
  "build",
  "check_data",
  "check_evaluators",
  "check_inputs",
  "check_origin",
  "check_resumed",
  "check_workdir",
  "config_in",
  "configured",
  "data_arguments",
  "declared_params",
  "evaluations",
  "evaluator",
  "find_eval",
  "fingerprint",
  "going_on",
  "heldout_arguments",
  "heldout_prints",
  "hf_folder",
  "identity_in",
  "load",
  "make_mesh",
  "model_of",
  "objective_of",
  "open_eval",
  "open_stream",
  "prepared_data",
  "provenance_in",
  "reached",
  "read",
  "read_params",
  "repeated",
  "result_in",
  "scorer",
  "section_of",
  "tokenizer_of",
  "usable_config_in",
]
