"""The same embeddings and logits as transformers, of images with texts.

Needs the extra [parity]: pip install -e '.[parity]'.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

REASON = "needs torch and transformers: pip install -e '.[parity]'"
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)

from aigc_jax import export, hf, run, sharding  # noqa: E402
from aigc_jax.data.tokenizers import load_tokenizer  # noqa: E402
from aigc_jax.errors import BadConfig, BadData  # noqa: E402
from aigc_jax.models import MODELS  # noqa: E402
from aigc_jax.run.origin import check_frozen_origins  # noqa: E402
from tests import kinds  # noqa: E402
from tests.sweep import sweep  # noqa: E402

CLOSE = dict(rtol=1e-4, atol=2e-5)
SEEN = dict(
  hidden_size=24, intermediate_size=44, num_hidden_layers=2,
  num_attention_heads=3, image_size=12, patch_size=4,
)  # fmt: skip
READ = dict(
  hidden_size=32, intermediate_size=52, num_hidden_layers=3,
  num_attention_heads=4, max_position_embeddings=19, vocab_size=263,
  pad_token_id=1, bos_token_id=0,
)  # fmt: skip


def theirs_of(name: str):
  t = transformers
  if name == "siglip":
    read = READ | dict(projection_size=24, eos_token_id=256)
    return t.SiglipModel(t.SiglipConfig(text_config=read, vision_config=SEEN))
  end = {"clip": 256, "clip legacy": 2}[name]
  config = t.CLIPConfig(
    text_config=READ | dict(eos_token_id=end), vision_config=SEEN,
    projection_dim=20,
  )  # fmt: skip
  return t.CLIPModel(config)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """name -> (their model, ours, our parameters, the folder), made once."""

  @functools.cache
  def make(name):
    torch.manual_seed(0)
    theirs = theirs_of(name).eval()
    with torch.no_grad():  # away from zeros and ones
      for x in theirs.parameters():
        x.add_(0.1 * torch.randn(x.shape))
    folder = tmp_path_factory.mktemp("model")
    theirs.save_pretrained(folder)
    found = hf.load(folder)
    ours = MODELS["clip"](**found.kwargs)
    shapes = jax.eval_shape(ours.init, jax.random.key(0), ours.example())
    params = hf.read_params(found, nn.unbox(shapes)["params"])
    return theirs, ours, params, found

  return make


def batch_of(name: str) -> dict:
  draw = np.random.default_rng(0)
  tokens = draw.integers(3, 256, (3, 19)).astype(np.int32)
  end = {"clip legacy": 262}.get(name, 256)
  for row, at in zip(tokens, (4, 18, 11), strict=True):
    row[at:] = end
  images = draw.normal(size=(3, 12, 12, 3)).astype(np.float32)
  return dict(images=jnp.asarray(images), tokens=jnp.asarray(tokens))


def said(theirs, batch) -> tuple[np.ndarray, ...]:
  """(image embeddings, text embeddings, logits) of a model of theirs."""
  pixels = np.asarray(batch["images"]).transpose(0, 3, 1, 2)
  with torch.no_grad():
    found = theirs(
      input_ids=torch.tensor(np.array(batch["tokens"]), dtype=torch.long),
      pixel_values=torch.as_tensor(pixels.copy()),
    )
  parts = (found.image_embeds, found.text_embeds, found.logits_per_image)
  return tuple(x.numpy() for x in parts)


NAMES = ("clip", "clip legacy", "siglip")


@pytest.mark.slow
@pytest.mark.parametrize("name", sweep(NAMES, "siglip"))
def test_embeddings_and_logits_are_those_of_transformers(made, name):
  theirs, ours, params, _ = made(name)
  batch = batch_of(name)
  found = ours.apply({"params": params}, batch)
  parts = (found.images_BZ, found.texts_BZ, found.logits())
  for a, b in zip(parts, said(theirs, batch), strict=True):
    np.testing.assert_allclose(a, b, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_tower_says_at_each_token_what_that_of_transformers_does(made, name):
  theirs, ours, params, _ = made(name)
  tokens = batch_of(name)["tokens"]
  with torch.no_grad():
    read = theirs.text_model(torch.tensor(np.array(tokens), dtype=torch.long))
  found = ours.apply({"params": params}, tokens, method="read_texts")
  np.testing.assert_allclose(found, read.last_hidden_state.numpy(), **CLOSE)


@pytest.mark.slow
def test_a_folder_may_be_the_frozen_tower_of_what_draws(made):
  _, _, params, found = made("clip")
  where = f"hf:{found.folder}"
  told = dict(classes=0, vocab=257, text_length=12, text_end=256)
  features = told | dict(
    text_layers=0, text_dim=32, text_heads=None, text_mlp_dim=None
  )
  parts = dict(
    text=dict(kind="clip", **found.kwargs), denoiser=kinds.DIT | features
  )
  model = dict(kind="prompted", **told, parts=parts)
  config = dict(
    model=model, frozen=dict(text=where), init_from=None,
    data=dict(tokenizer="bytes"),
  )  # fmt: skip
  check_frozen_origins(config)
  built = MODELS["prompted"](**{k: model[k] for k in model if k != "kind"})
  mesh = sharding.mesh_of(jax.devices()[0])
  whole = run.abstract_params(built, mesh)
  read = run.read_frozen(config, built, mesh, whole)
  jax.tree.map(np.testing.assert_array_equal, read["text"], params)
  parts["text"]["text_causal"] = False
  with pytest.raises(BadConfig, match=r"parts\.text\.text_causal"):
    check_frozen_origins(config)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_folder_is_read_and_written_back_the_same(made, name, tmp_path):
  theirs, _, params, found = made(name)
  data = dict(
    kind="captions", image_size=12, channels=3, crop=1.0, mean=[0.5] * 3,
    std=[0.5] * 3,
  )  # fmt: skip
  told = export.export(
    params, found.kwargs, load_tokenizer("bytes"), tmp_path / "ours",
    kind="clip", length=19, config=dict(data=data), say=lambda text: None,
  )  # fmt: skip
  assert told["difference"] < 1e-4 and told["family"] == name
  again, info = type(theirs).from_pretrained(
    tmp_path / "ours", output_loading_info=True
  )
  assert not info["missing_keys"] and not info["unexpected_keys"]
  batch = batch_of(name)
  for a, b in zip(said(theirs, batch), said(again.eval(), batch), strict=True):
    np.testing.assert_array_equal(a, b)
  processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "ours")
  assert list(processor.image_mean) == [0.5] * 3


def test_other_ends_and_towers_that_differ_are_refused(made, tmp_path):
  kwargs = made("clip")[3].kwargs
  with pytest.raises(BadConfig, match="text_end=2"):
    hf.choose_family(kwargs | dict(text_end=2), kind="clip")
  with pytest.raises(BadConfig, match="model.text_causal=False"):
    hf.choose_family(kwargs | dict(text_causal=False), kind="clip")
  theirs = made("clip")[0]
  theirs.save_pretrained(tmp_path)
  path = tmp_path / "config.json"
  config = json.loads(path.read_text())
  config["text_config"]["hidden_act"] = "gelu"
  path.write_text(json.dumps(config))
  with pytest.raises(BadData, match="hidden_act and layer_norm_eps"):
    hf.load(tmp_path)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_the_families_are_told_apart(name):
  keywords = dict(kinds.KINDS[name].model)
  keywords.pop("kind")
  assert hf.choose_family(keywords, kind="clip").model_type == name
