"""What runs drew and wrote while they were trained, over the steps, one page.

Read is DIR/samples: files STEP.NAME.png and STEP.txt, as evaluators write them.
The pictures are in the page, which asks for nothing from anywhere.
"""

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path

from aigc_jax import files
from aigc_jax.errors import BadConfig, BadData
from aigc_jax.scaling.page import document
from aigc_jax.scaling.runs import Record

NAME = re.compile(r"(\d{1,12})(?:\.([\w-]{1,80}))?\.(png|txt)")
MOST = 60  # of one name; of more, as many that lie evenly
LARGEST = 32 << 20  # bytes of a file
MAGIC = b"\x89PNG\r\n\x1a\n"
STYLE = """<style>
.steps { display: flex; flex-wrap: wrap; gap: 1.2rem; align-items: flex-start; }
figure { margin: 0; max-width: 100%; }
figcaption { font-size: .86rem; color: #444; max-width: 24rem; }
figure img { image-rendering: pixelated; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; max-width: 42rem;
  max-height: 24rem; overflow-y: auto; border: 1px solid #ddd; padding: .6rem; }
</style>"""


def page(title: str, runs: Sequence[Record]) -> str:
  """The whole page. Raises BadConfig where no run has samples."""
  sections = [_section(run) for run in runs]
  if not any(sections):
    raise BadConfig(
      f"no samples of {', '.join(run.name for run in runs)}: an entry of "
      "evaluate with kind='images' or 'samples' writes them while a run is "
      "trained"
    )
  none = [run.name for run, has in zip(runs, sections, strict=True) if not has]
  if none:
    sections.append(f"<p>Without samples: {html.escape(', '.join(none))}.</p>")
  return document(
    title, "\n".join([STYLE, f"<h1>{html.escape(title)}</h1>", *sections])
  )


def _section(run: Record) -> str:
  """What one run has to show; nothing where it has nothing."""
  shown = found_in(run.path / "samples")
  if not shown:
    return ""
  parts = [f"<h2>{html.escape(run.name)}</h2>"]
  for name, by_step in shown.items():
    some = evenly(sorted(by_step), MOST)
    parts.append(f"<h3>{html.escape(name)}</h3>")
    if len(some) < len(by_step):
      parts.append(f"<p class='small'>{len(some)} of {len(by_step)} steps.</p>")
    figures = [_figure(run, name, step, by_step[step]) for step in some]
    parts.append(f"<div class='steps'>{''.join(figures)}</div>")
  return "\n".join(parts)


def found_in(folder: Path) -> dict[str, dict[int, Path]]:
  """{name: {step: file}} of a folder of samples; other files are left alone."""
  found: dict[str, dict[int, Path]] = {}
  if folder.is_dir() and not folder.is_symlink():  # nothing of elsewhere
    for path in sorted(folder.iterdir()):
      known = NAME.fullmatch(path.name)
      if known:
        name = known[2] or ("text" if known[3] == "txt" else "images")
        found.setdefault(name, {})[int(known[1])] = path
  return found


def evenly(steps: Sequence[int], most: int) -> list[int]:
  """At most so many of them, the first and the last among these."""
  if len(steps) <= most:
    return list(steps)
  last = len(steps) - 1
  return [steps[round(i * last / (most - 1))] for i in range(most)]


def _figure(run: Record, name: str, step: int, path: Path) -> str:
  try:
    content = files.content(path, LARGEST)
    if path.suffix == ".png":
      shown = _image(content, path, f"{name} at step {step}")
    else:
      shown = f"<pre>{html.escape(content.decode('utf-8', 'replace'))}</pre>"
  except (BadData, OSError) as refusal:  # the page shows what there is
    shown = f"<p class='refused'>{html.escape(str(refusal))}</p>"
  caption = html.escape(_caption(run, step))
  return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>\n"


def _image(content: bytes, path: Path, alt: str) -> str:
  if not content.startswith(MAGIC):
    raise BadData(f"{path}: no PNG file")
  data = base64.b64encode(content).decode()
  alt = html.escape(alt, quote=True)
  return f'<img alt="{alt}" src="data:image/png;base64,{data}">'


def _caption(run: Record, step: int) -> str:
  """The step, and what was measured there."""
  words = [f"step {step:,}"]
  for row in run.rows:
    if row.get("step") == step:
      words += [
        f"{key.removeprefix('eval/')} {value:.4g}"
        for key, value in row.items()
        if key.startswith("eval/") and isinstance(value, int | float)
      ]
  return ", ".join(words)
