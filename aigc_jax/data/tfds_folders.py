"""What a folder of TFDS may say before TFDS itself reads it.

TFDS imports the module of every class that features.json names, so a folder
from somewhere would choose code that runs here. Its two JSON files are read
strictly first, and name nothing but the feature classes of TFDS itself that
decode with NumPy or Pillow (audio and video start other programs). File names
lead nowhere else, and every file is a regular one.
"""

import re
from pathlib import Path

from aigc_jax import files
from aigc_jax.errors import BadConfig, BadData

INFO = "dataset_info.json"
FEATURES = "features.json"
LIMIT = 16 << 20
_CORE = "tensorflow_datasets.core.features."
CLASSES = frozenset(
  _CORE + name
  for name in (
    "bounding_boxes.BBoxFeature", "class_label_feature.ClassLabel",
    "dataset_feature.Dataset", "features_dict.FeaturesDict",
    "image_feature.Image", "labeled_image.LabeledImage", "scalar.Scalar",
    "sequence_feature.Sequence", "tensor_feature.Tensor", "text_feature.Text",
    "translation_feature.Translation",
    "translation_feature.TranslationVariableLanguages",
  )
)  # fmt: skip
# By these keys TFDS looks a class up; protobuf reads either spelling.
NAMING = ("pythonclassname", "type")
TEMPLATE = re.compile(r"([A-Za-z0-9_.-]|\{[A-Z_]+\})+")
SPLIT = re.compile(r"\w[\w.-]*")
NAME = re.compile(r"\w+(/[\w+.-]+)?(:[\d*]+\.[\d*]+\.[\d*]+)?")


def check_name(name: str) -> None:
  """Raises BadConfig unless a name is one of TFDS' own catalogue.

  A namespace, as in huggingface:squad, stands for code from elsewhere.
  """
  if not NAME.fullmatch(name):
    raise BadConfig(
      f"tfds {name!r}: expected name[/config][:version] of the TFDS catalogue, "
      "or the folder of a prepared dataset"
    )


def check_folder(folder: str | Path) -> None:
  """Raises BadData for a folder that TFDS should not read."""
  folder = Path(folder)
  info = files.read_json(folder / INFO, LIMIT)
  features = files.read_json(folder / FEATURES, LIMIT)
  for path, content in ((INFO, info), (FEATURES, features)):
    _check_classes(folder / path, content)
  splits = info.get("splits", [])
  if not isinstance(splits, list):
    raise BadData(f"{folder / INFO}: splits: expected a list")
  for split in splits:
    _check_split(folder / INFO, split)
  for path in sorted(folder.iterdir()):
    if not path.is_dir() or path.is_symlink():
      files.regular(path)


def _check_classes(path: Path, content) -> None:
  """Every class that is named anywhere in it is one of CLASSES."""
  waiting = [content]
  while waiting:
    value = waiting.pop()
    if isinstance(value, list):
      waiting += value
    elif isinstance(value, dict):
      waiting += value.values()
      for key, name in value.items():
        naming = key.replace("_", "").lower() in NAMING
        if naming and isinstance(name, str) and name not in CLASSES:
          raise BadData(
            f"{path} names the class {name[:120]!r}, and reading it would run "
            "its code. Known are the feature classes of TFDS without audio and "
            "video: write the texts as JSON lines or Parquet (data.path)"
          )


def _check_split(path: Path, split) -> None:
  """A split is of files in the folder itself."""
  if not isinstance(split, dict):
    raise BadData(f"{path}: a split that is no object")
  template = split.get("filepathTemplate", split.get("filepath_template", "x"))
  for pattern, value in ((SPLIT, split.get("name")), (TEMPLATE, template)):
    if not isinstance(value, str) or not pattern.fullmatch(value):
      raise BadData(
        f"{path}: a split with the name or template {str(value)[:80]!r}, which "
        "may lead out of the folder"
      )
