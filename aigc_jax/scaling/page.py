"""One self-contained page: tables, curves, differences, where it comes from.

Pictures are SVG within the page; it asks for nothing from anywhere.
"""

import base64
import dataclasses
import html
import io
from collections.abc import Sequence

from aigc_jax import run
from aigc_jax.errors import BadConfig
from aigc_jax.scaling import curves, pictures, table
from aigc_jax.scaling.ablation import Ablation
from aigc_jax.scaling.arms import Arm, differing, leaves_of
from aigc_jax.scaling.runs import Record
from aigc_jax.terminal import counted

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #111; background: #fff;
  max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem;
  border-bottom: 1px solid #ccc; } h3 { font-size: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .7rem .25rem 0;
  border-bottom: 1px solid #ddd; vertical-align: top; }
th { border-bottom: 2px solid #555; }
td:not(:first-child):not(:last-child) { white-space: nowrap; }
td:first-child { min-width: 9rem; } td:last-child { min-width: 10rem; }
td:nth-last-child(2):not(:nth-child(-n+9)) { white-space: normal;
  min-width: 7rem; }
img { max-width: 100%; height: auto; display: block; margin: .6rem 0; }
.small { color: #444; font-size: .86rem; max-width: 60rem; }
.refused { border-left: 4px solid #D55E00; padding: .2rem .8rem; }
@media print { body { margin: 0; max-width: none; font-size: 10px; }
  h2, h3 { break-after: avoid; } img, tr { break-inside: avoid; }
  .wide { overflow: visible; } table { font-size: 7.5px; }
  th, td { padding-right: .35rem; }
  td:not(:first-child):not(:last-child) { white-space: normal; }
  td { min-width: 0 !important; } }
"""


def page(
  title: str,
  arms: Sequence[Arm],
  found: Ablation | BadConfig,
  metrics: Sequence[str],
  style: curves.Style,
) -> str:
  """The whole page. found: the ablation, or why there is none.

  metrics: a picture each, of the arms as lines.
  """
  runs = [r for arm in arms for r in arm.runs]
  parts = [f"<h1>{html.escape(title)}</h1>", _opening(arms, runs)]
  if isinstance(found, Ablation):
    parts += ["<h2>Results</h2>", table.as_html(found)]
    alt = f"{found.metric} of each arm, and differences from {found.baseline}"
    parts.append(image(table.forest_picture(found), alt))
  else:
    parts += [
      "<h2>Results</h2>",
      f"<p class='refused'>{html.escape(str(found))}</p>",
    ]
  parts.append("<h2>Curves</h2>")
  for metric in metrics:
    parts.append(_curve(arms, metric, style))
  parts += ["<h2>What differs</h2>", _differences(runs)]
  parts += ["<h2>Where it comes from</h2>", _provenance(runs)]
  return document(title, "\n".join(parts))


def document(title: str, body: str) -> str:
  """HTML that needs no other file."""
  return (
    "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
    "<meta name='viewport' content='width=device-width, initial-scale=1'>"
    f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>"
    f"<body>\n{body}\n</body></html>\n"
  )


def image(figure, alt: str) -> str:
  """A figure as an SVG image within the page; closes it."""
  pyplot = pictures.plots()
  file = io.BytesIO()
  # Letters as shapes: the reader's fonts change no width. The salt makes the
  # same figure the same bytes.
  with pyplot.rc_context({"svg.fonttype": "path", "svg.hashsalt": "aigc"}):
    figure.savefig(file, format="svg", metadata={"Date": None})
  pyplot.close(figure)
  data = base64.b64encode(file.getvalue()).decode()
  alt = html.escape(alt, quote=True)
  return f'<img alt="{alt}" src="data:image/svg+xml;base64,{data}">'


def _opening(arms: Sequence[Arm], runs: Sequence[Record]) -> str:
  states: dict[str, int] = {}
  for r in runs:
    states[r.status] = states.get(r.status, 0) + 1
  listed = ", ".join(f"{n} {state}" for state, n in states.items())
  whole = f"{counted(len(runs), 'run')} in {counted(len(arms), 'arm')}"
  return f"<p>{whole}: {listed}.</p>"


def _curve(arms: Sequence[Arm], metric: str, style: curves.Style) -> str:
  having = [
    curves.Line(arm.name, tuple(r for r in arm.runs if metric in r.metrics))
    for arm in arms
  ]
  having = [line for line in having if line.runs]
  try:
    if not having:
      raise BadConfig(f"no run has {metric}")
    untitled = dataclasses.replace(style, title=metric)
    figure = curves.picture(having, metrics=[metric], style=untitled)
  except BadConfig as refusal:
    return f"<p class='refused'>{html.escape(f'{metric}: {refusal}')}</p>"
  return image(figure, f"{metric} against {style.against}")


def _differences(runs: Sequence[Record]) -> str:
  runs = [r for r in runs if not r.waits]
  leaves = [
    leaves_of(config) for config in run.filled([r.config for r in runs])
  ]
  keys = differing(leaves)
  if any(r.seed != runs[0].seed for r in runs):
    keys = ["seed", *keys]
  if not keys:
    return "<p>The configs say the same of all runs.</p>"
  rows = [
    [r.name, *(str(one.get(key, table.NONE)) for key in keys)]
    for r, one in zip(runs, leaves, strict=True)
  ]
  return table.html_table(["run", *keys], rows)


def _provenance(runs: Sequence[Record]) -> str:
  header = [
    "run", "status", "steps", "seed", "started", "commit", "data", "held out",
    "tokenizer", "jax", "device",
  ]  # fmt: skip
  rows = []
  for r in runs:
    about = r.about
    code = about.get("code") or {}
    commit = _short(code.get("commit") or code.get("sha256"))
    dirty = " + changes" if code.get("dirty") else ""
    held = about.get("heldout_fingerprints") or {}
    jax = about.get("jax") or {}
    rows.append(
      [
        r.name,
        r.status,
        f"{r.last_step:,} of {r.planned:,}" if r.planned else str(r.last_step),
        str(r.seed),
        str(about.get("started", table.NONE)),
        commit + dirty,
        _short(about.get("data_fingerprint")),
        ", ".join(
          f"{name.removeprefix('evaluate.')}: {_short(print_)}"
          for name, print_ in held.items()
          if name.startswith("evaluate.")
        )
        or table.NONE,
        _short(about.get("tokenizer_fingerprint")),
        str((about.get("packages") or {}).get("jax", table.NONE)),
        f"{jax.get('devices', '')} {jax.get('device_kind', '')}".strip()
        or table.NONE,
      ]
    )
  return table.html_table(header, rows)


def _short(text) -> str:
  return table.NONE if not text else str(text)[:12]
