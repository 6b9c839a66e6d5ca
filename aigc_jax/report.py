"""Reports on finished or running runs.

  python -m aigc_jax.report diff DIR1 DIR2 [--json]

diff: what differs between two runs (config, code, data, environment) and where
their curves part. Exit status 0 when the curves are equal bit for bit, else 1.
"""

import dataclasses
import json

from absl import flags

from aigc_jax import command
from aigc_jax.errors import BadConfig, choose
from aigc_jax.scaling import compare


def diff(words: list[str]) -> int:
  """The report on two work directories."""
  if len(words) != 2:
    raise BadConfig(
      f"report diff takes two work directories, got {len(words)}: "
      "python -m aigc_jax.report diff DIR1 DIR2"
    )
  found = compare.compare(*words)
  if flags.FLAGS.json:
    print(json.dumps(dataclasses.asdict(found), indent=2))
  else:
    print(compare.as_text(found))
  return int(found.parts_at is not None or not found.steps)


REPORTS = {"diff": diff}


def main(words: list[str]) -> int:
  """The command; the exit status."""
  if not words:
    raise BadConfig(f"name a report: {', '.join(REPORTS)}")
  return choose(words[0], REPORTS, "report")(words[1:])


if __name__ == "__main__":
  flags.DEFINE_bool("json", False, "print JSON instead of text")
  command.main(main, words=True)
