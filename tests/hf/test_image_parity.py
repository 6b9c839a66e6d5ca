"""The same logits and running statistics as transformers, for images.

Needs the extra [parity]: pip install -e '.[parity]'.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

REASON = "needs torch and transformers: pip install -e '.[parity]'"
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)

from aigc_jax import export, hf, tree  # noqa: E402
from aigc_jax.errors import BadConfig  # noqa: E402
from aigc_jax.hf import folder as folders  # noqa: E402
from aigc_jax.hf import kinds  # noqa: E402
from aigc_jax.hf.resnet import RESNET  # noqa: E402
from aigc_jax.hf.settings import Settings  # noqa: E402
from aigc_jax.hf.table import check, leaves, renamed  # noqa: E402
from aigc_jax.hf.vit import VIT  # noqa: E402
from aigc_jax.layers.report import REPORTS, STATS  # noqa: E402
from aigc_jax.models.resnet import resnet  # noqa: E402
from aigc_jax.models.vit import vit  # noqa: E402
from tests.sweep import sweep  # noqa: E402

CLOSE = dict(rtol=1e-4, atol=1e-4)
SIZE = 12
CASES = {
  "vit": (VIT, vit, transformers.ViTForImageClassification,
    transformers.ViTConfig(
      hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
      intermediate_size=44, image_size=SIZE, patch_size=4, num_labels=5,
    )),
  "resnet": (RESNET, resnet, transformers.ResNetForImageClassification,
    transformers.ResNetConfig(
      embedding_size=6, hidden_sizes=[16, 24], depths=[1, 2], num_labels=7,
    )),
  "resnet basic": (RESNET, resnet, transformers.ResNetForImageClassification,
    transformers.ResNetConfig(
      embedding_size=6, hidden_sizes=[6, 10], depths=[2, 1], num_labels=7,
      layer_type="basic",
    )),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """name -> (their model, ours, our variables), each made once."""

  @functools.cache
  def make(name):
    family, build, architecture, config = CASES[name]
    torch.manual_seed(0)
    theirs = architecture(config)
    with torch.no_grad():  # away from zeros and ones
      for key, x in theirs.state_dict().items():
        if x.dtype.is_floating_point:
          noise = 0.1 * torch.randn(x.shape)
          x.add_(noise.abs() if key.endswith("running_var") else noise)
    folder = tmp_path_factory.mktemp("model")
    theirs.save_pretrained(folder)
    said = json.loads((folder / "config.json").read_text())
    kwargs = family.settings(Settings(said, name)) | dict(image_size=SIZE)
    ours = build(**kwargs, dtype="float32")
    return theirs, ours, read(family, ours, folder)

  return make


def read(family, ours, folder):
  """Our variables from a folder of theirs: every tensor, and no other."""
  tensors = renamed(family, folders.weights(folder))
  example = jax.eval_shape(ours.init, jax.random.key(0), ours.example())
  shapes = {
    path.removeprefix("params/"): x.shape
    for path, x in tree.flat(nn.unbox(example)).items()
  }
  table = leaves(family, shapes)
  check("folder", table, tensors)
  out = {}
  for path, leaf in table.items():
    whole = tuple(slice(0, n) for n in leaf.shape)
    value = jnp.asarray(leaf.read(tensors, whole, np.float32))
    out[path if path.startswith("stats/") else f"params/{path}"] = value
  return traverse_util.unflatten_dict(out, sep="/")


def some_images(rows: int) -> np.ndarray:
  shape = (rows, SIZE, SIZE, 3)
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def pixels(images_BYXC: np.ndarray):
  return torch.as_tensor(images_BYXC.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("name", sweep(CASES, "vit"))
def test_logits_are_those_of_transformers(made, name):
  theirs, ours, variables = made(name)
  images = some_images(4)
  with torch.no_grad():
    wanted = theirs.eval()(pixels(images)).logits.numpy()
  found = ours.apply(variables, {"images": images}).logits()
  np.testing.assert_allclose(found, wanted, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "resnet basic"])
def test_a_step_moves_running_statistics_as_torch_does(made, name):
  theirs, ours, variables = made(name)
  images = some_images(6)
  before = {k: x.clone() for k, x in theirs.state_dict().items()}
  with torch.no_grad():
    wanted = theirs.train()(pixels(images)).logits.numpy()
  after = {k: x.numpy().copy() for k, x in theirs.state_dict().items()}
  theirs.load_state_dict(before)
  scores, made_too = ours.apply(
    variables, {"images": images}, mutable=[REPORTS]
  )
  np.testing.assert_allclose(scores.logits(), wanted, **CLOSE)
  rows = {row.path: row.name for row in CASES[name][0].rows}
  is_moments = lambda x: hasattr(x, "move")  # noqa: E731
  reports = traverse_util.flatten_dict(
    made_too[REPORTS], sep="/", is_leaf=lambda _, x: is_moments(x)
  )
  stats = traverse_util.flatten_dict(variables[STATS], sep="/")
  assert len(reports) * 2 == len(stats)
  for path, value in reports.items():
    layer = path.removesuffix("/moments")
    old = {key: stats[f"{layer}/{key}"] for key in ("mean", "var")}
    for key, new in value.move(old).items():
      theirs_new = after[rows[f"stats/{layer}/{key}"]]
      np.testing.assert_allclose(new, theirs_new, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "resnet basic"])
def test_a_folder_is_read_and_written_back_the_same(made, name, tmp_path):
  theirs, ours, variables = made(name)
  config = CASES[name][3]
  theirs.save_pretrained(tmp_path / "theirs")
  found = hf.load(tmp_path / "theirs")
  own = {"image_size": SIZE}  # a config of theirs may not say it
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), kinds.joined(variables)
  )
  params = hf.read_params(found, abstract)
  jax.tree.map(np.testing.assert_array_equal, params, kinds.joined(variables))
  # Whoever wants the parameters alone gets them.
  alone = hf.read_params(found, kinds.parted(abstract)["params"])
  assert STATS not in alone
  out = tmp_path / "ours"
  data = dict(
    kind="images", image_size=SIZE, crop=0.9, mean=[0.5] * 3, std=[0.5] * 3
  )
  # As in a config of before those keywords were there.
  default = kinds.defaults(found.family.kind)
  said = {k: v for k, v in found.kwargs.items() if k not in default}
  assert len(said) < len(found.kwargs) or name != "vit"
  told = export.export(
    params, said | own, None, out, kind=found.family.kind, length=0,
    config=dict(data=data), say=lambda text: None,
  )  # fmt: skip
  assert told["difference"] < 1e-4
  again, info = type(theirs).from_pretrained(out, output_loading_info=True)
  lost = [k for k in info["missing_keys"] if "num_batches_tracked" not in k]
  assert not lost and not info["unexpected_keys"]
  assert again.config.num_labels == config.num_labels
  images = some_images(3)
  with torch.no_grad():
    a, b = (m.eval()(pixels(images)).logits.numpy() for m in (theirs, again))
  np.testing.assert_array_equal(a, b)
  processor = transformers.AutoImageProcessor.from_pretrained(out)
  assert list(processor.image_mean) == [0.5] * 3


def test_a_small_stem_is_no_resnet_of_theirs():
  kwargs = RESNET.settings(Settings(CASES["resnet"][3].to_dict(), "c"))
  with pytest.raises(BadConfig, match="model.stem='small'"):
    hf.choose_family(kwargs | dict(stem="small"), kind="resnet")
