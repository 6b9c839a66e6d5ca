"""python experiments/bert/picture.py results.jsonl curve.png"""

import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def main(results: str, out: str) -> None:
  with open(results) as lines:
    rows = [json.loads(line) for line in lines]
  curve = [row for row in rows if row["name"] == "encoder"]
  figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
  for axis, key, title in zip(
    axes, ("bits", "accuracy"),
    ("bits per hidden token", "share of hidden tokens said right"),
    strict=True,
  ):  # fmt: skip
    axis.plot(
      [row["tokens"] / 1e6 for row in curve], [row[key] for row in curve],
      marker="o", color="#1b6ca8", label="encoder",
    )  # fmt: skip
    styles = {"unigram": ":", "bigram": "--", "both sides": "-."}
    for row in rows:
      if row["name"] in styles:
        axis.axhline(
          row[key], color="0.4", linestyle=styles[row["name"]], lw=1,
          label=row["name"],
        )  # fmt: skip
    axis.set_xlabel("million tokens seen")
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
  axes[0].legend(frameon=False, fontsize=8)
  figure.savefig(out, dpi=150)


if __name__ == "__main__":
  main(*sys.argv[1:])
