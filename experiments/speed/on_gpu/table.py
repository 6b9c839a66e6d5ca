"""What was found, in lines for people."""

from collections.abc import Iterable


def table(found: dict) -> str:
  """One block a part; what failed stands out."""
  lines: list[str] = []
  for name, part in found.items():
    head = f"== {name}"
    if "seconds" in part:
      head += f" ({part['seconds']} s)"
    lines.append(head)
    if "ended" in part:
      lines.append(f"  ENDED: {part['ended']}")
      lines += [f"    {line}" for line in part.get("where", ())[-6:]]
    peak = _peak(found)
    for key, value in part.items():
      if key not in ("seconds", "ended", "where"):
        lines += [f"  {key}: {text}" for text in _told(value, peak)]
  return "\n".join(lines)


def _peak(found: dict) -> float:
  """The best product that was measured, FLOP/s; 0 where none was."""
  card = found.get("card", {})
  rates = [v["matmul"] for k, v in card.items() if k.startswith("ceilings")]
  return max(rates, default=0.0)


def _told(value, peak: float) -> Iterable[str]:
  if not isinstance(value, dict):
    yield str(value)
  elif "matmul" in value:
    copy = value["copy"] / 1e9
    yield f"{value['matmul'] / 1e12:.0f} TFLOP/s, {copy:.0f} GB/s"
  elif value.get("ok") is False or "failed" in value:
    yield "FAILED"
    for key, text in value.items():
      if key in ("raised", "failed", "errors", "bounds", "kernel"):
        yield f"  {key} {str(text)[-700:]}"
  elif "ok" in value:
    yield _check(value)
  elif "ms" in value:
    yield from _step(value, peak)
  elif "tokens/s" in value:
    yield f"{value['tokens/s']:,.0f} tokens/s"
  else:
    yield str(value)[:300]


def _check(value: dict) -> str:
  text = "ok"
  if "errors" in value:
    errors = (f"{k} {e:.1e}" for k, e in value["errors"].items())
    text += f" ({', '.join(errors)})"
  for key in ("kernel", "twice the same bits", "calls"):
    if key in value:
      text += f"; {key} {value[key]}"
  return text


def _step(value: dict, peak: float) -> Iterable[str]:
  rate = value["flops"] / value["ms"] * 1e3
  parts = [
    f"{value['ms']:.1f} ms ({min(value['windows']):.1f} to "
    f"{max(value['windows']):.1f})",
    f"{value['units'] / value['ms'] * 1e3:,.0f} tokens/s",
  ]
  if value.get("mfu of 1 FLOP/s"):
    parts.append(f"MFU {rate * value['mfu of 1 FLOP/s']:.1%}")
  if peak:
    parts.append(f"{rate / peak:.1%} of the ceiling")
  parts.append(f"{value['peak_bytes'] / 2**30:.1f} GiB")
  parts.append(f"compiled in {value['compile_seconds']:.0f} s")
  parts.append(f"loss {value['first loss']:.2f} to {value['loss']:.2f}")
  yield ", ".join(parts)
  kinds = value.get("time", {}).get("by kind")
  if kinds:
    yield "  " + ", ".join(f"{k} {n:.0%}" for k, n in kinds.items())
