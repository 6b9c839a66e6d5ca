"""results.jsonl as the table of README.md: one row for each fault and way.

python -m experiments.reliability.table experiments/reliability/results.jsonl
"""

import json
import sys
from pathlib import Path


def table(path: Path) -> str:
  """A Markdown table; of what was measured several times, the slowest."""
  found: dict[tuple[str, str], dict] = {}
  times: dict[tuple[str, str], int] = {}
  for line in path.read_text().splitlines():
    row = json.loads(line)
    key = row["fault"], row["how"]
    times[key] = times.get(key, 0) + 1
    before = found.get(key)
    seconds = row["seconds_to_recover"] or 0.0
    if before is None or seconds > (before["seconds_to_recover"] or 0.0):
      found[key] = row
  lines = [
    "| fault | how injected | outcome | runs | seconds |",
    "|---|---|---|---|---|",
  ]
  for key, row in found.items():
    seconds = row["seconds_to_recover"]
    shown = "" if seconds is None else f"{seconds:.1f}"
    lines.append(
      f"| {row['fault']} | {row['how']} | {row['outcome']} | {times[key]} "
      f"| {shown} |"
    )
  return "\n".join(lines)


if __name__ == "__main__":
  print(table(Path(sys.argv[1])))
