"""What a folder says about its special tokens is kept, and obeyed."""

import json
import pathlib
import shutil
import types

import pytest

from aigc_jax import data, export, run
from aigc_jax.data import sentences, special, tokenizers
from aigc_jax.errors import BadConfig, BadData
from aigc_jax.evaluators.likelihood import Scorer
from aigc_jax.hf import llama, vocabulary
from aigc_jax.presets import skeleton
from aigc_jax.run import record
from aigc_jax.run.origin import check_saved
from aigc_jax.sampling.logits import Sampling
from aigc_jax.sampling.text import generate
from aigc_jax.trainer import changes

library = pytest.importorskip("tokenizers", reason="needs the extra [hf]")
GOLDEN = pathlib.Path(__file__).parents[1] / "hf" / "golden" / "llama"
TEXT = ["def f(a, aa, ab):\n    return a == aa  # the word\n" * 9]
WORDS = [chr(97 + i) for i in range(16)]


@pytest.fixture
def folder(tmp_path):
  """A tiny Llama with a word for each of its 17 ids."""
  path = tmp_path / "model"
  shutil.copytree(GOLDEN, path)
  words = {word: i for i, word in enumerate([*WORDS, "</s>"])}
  made = library.Tokenizer(library.models.WordLevel(words, "a"))
  made.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
  made.add_special_tokens(["</s>"])
  made.save(str(path / "tokenizer.json"))
  return path


def say(folder, name, **values):
  (folder / name).write_text(json.dumps(values))


def found(folder):
  return data.load_tokenizer(f"hf:{folder}")


def written(folder):
  """(tokens, how they ended) of a greedy continuation."""
  loaded = run.load(f"hf:{folder}", unroll=0)
  engine = loaded.engine(Sampling(), seed=0, group=8)
  (one,) = generate(
    engine, loaded.tokenizer, ["b c d"], max_tokens=12, num_samples=1,
    stops=(), batch=1, steps=8,
  )  # fmt: skip
  return one.tokens, one.finish


@pytest.mark.slow
@pytest.mark.parametrize("many", [False, True])
def test_decoding_ends_where_the_folder_says(folder, many):
  say(folder, "generation_config.json", eos_token_id=16)
  tokens, _ = written(folder)
  end = next(i for i in tokens[2:] if i != 16)
  never = [i for i in range(16) if i not in tokens]
  ends = [never[0], end, never[1]] if many else end
  say(folder, "generation_config.json", eos_token_id=ends)
  assert written(folder) == (tokens[: tokens.index(end) + 1], "eot")


def test_the_generation_config_speaks_before_the_config(folder):
  say(folder, "config.json", eos_token_id=[3, 4], bos_token_id=5)
  assert special.stops(found(folder)) == (16, 3, 4)
  say(folder, "generation_config.json", eos_token_id=7, pad_token_id=None)
  tokenizer = found(folder)
  assert special.stops(tokenizer) == (16, 7)
  assert tokenizer.special == dict(
    bos_token_id=5, eos_token_id=7, pad_token_id=None
  )


@pytest.mark.parametrize(
  "name, values",
  [
    ("tokenizer_config.json", dict(eos_token="</s>", mask_token="b")),
    ("special_tokens_map.json", dict(cls_token="c")),
    ("generation_config.json", dict(eos_token_id=[4, 5])),
  ],
)
def test_a_run_knows_what_hides_and_ends_its_texts(folder, name, values):
  """The ids of its texts do not tell, and its batches and scores go by it."""
  say(folder, "tokenizer_config.json", eos_token="</s>")
  before = found(folder)
  say(folder, name, **values)
  now = found(folder)
  assert now.fingerprint == before.fingerprint

  def prints(tokenizer):
    stream = types.SimpleNamespace(fingerprint="data", tokenizer=tokenizer)
    return record.fingerprints(stream, {})

  config = {"model": skeleton().model.to_dict()}
  meta = config | {"tokenizer_fingerprint": now.fingerprint}
  content = {"step": 3, "meta": meta}
  check_saved("DIR", config, now, content)  # of before it was noted
  meta["heldout_fingerprints"] = prints(before)
  with pytest.raises(BadConfig, match="data.special: "):
    changes.data_changes(meta, prints(now), {}, False, "step 3")
  with pytest.raises(BadConfig, match="DIR/tokenizer says other special"):
    check_saved("DIR", config, now, content)
  meta["heldout_fingerprints"] = prints(now)
  say(folder, name, **values, model_max_length=9, temperature=2.0)
  other = found(folder)  # in what no batch and no score goes by
  assert not changes.data_changes(meta, prints(other), {}, False, "step 3")
  check_saved("DIR", config, other, content)


def test_ids_that_the_vocabulary_lacks_end_nothing(folder):
  """transformers gives a GPT-2 of any size the end of text of the large one."""
  say(folder, "config.json", eos_token_id=50256, bos_token_id=-1)
  assert special.stops(found(folder)) == (16,)
  assert found(folder).special == dict(bos_token_id=16, eos_token_id=16)
  say(folder, "config.json", eos_token_id=50256, bos_token_id=2)
  assert found(folder).special == dict(bos_token_id=2, eos_token_id=16)


@pytest.mark.parametrize("bad", ["2", 2.5, True, [1, "2"], [[1]], {}, 2**31])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_an_id_that_is_none_is_refused_by_name(folder, name, bad):
  say(folder, name, eos_token_id=bad)
  with pytest.raises(BadData, match=f"{name}: eos_token_id=.*whole number"):
    found(folder)


def test_what_was_said_is_kept_in_a_saved_tokenizer(folder, tmp_path):
  say(folder, "tokenizer_config.json", eos_token="</s>", pad_token="a")
  say(folder, "generation_config.json", eos_token_id=[16, 3], top_k=5)
  (folder / "chat_template.jinja").write_text("{{ 'é' }}")
  tokenizer = found(folder)
  data.save(tokenizer, tmp_path / "saved")
  again = data.load(tmp_path / "saved")
  assert again.files() == tokenizer.files()
  assert again.special == tokenizer.special
  assert again.files()["chat_template.jinja"].decode() == "{{ 'é' }}"


def test_what_was_said_beside_it_is_no_part_of_the_fingerprint(folder):
  before = found(folder).fingerprint
  say(folder, "generation_config.json", eos_token_id=3)
  (folder / "chat_template.jinja").write_text("x")
  assert found(folder).fingerprint == before


def test_code_and_other_files_are_not_copied(folder):
  say(
    folder, "tokenizer_config.json", eos_token="</s>", name_or_path="/etc",
    auto_map={"AutoTokenizer": ["code.Tokenizer", None]},
    tokenizer_file="/etc/passwd",
  )  # fmt: skip
  (folder / "code.py").write_text("raise SystemExit")
  files = found(folder).files()
  assert set(files) == {
    "tokenizer.json",
    "tokenizer_config.json",
    "config.json",
  }
  assert json.loads(files["tokenizer_config.json"]) == {"eos_token": "</s>"}


@pytest.mark.parametrize(
  "name,content,words",
  [
    ("tokenizer_config.json", b'{"tokenizer_class": "../x"}', "tokenizer_cla"),
    ("tokenizer_config.json", b'{"tokenizer_class": ["x"]}', "tokenizer_class"),
    ("tokenizer_config.json", b'{"a": NaN}', "NaN is not JSON"),
    ("special_tokens_map.json", b'{"a": 1, "a": 2}', "twice"),
    ("generation_config.json", b"[]", "expected a JSON object"),
    ("chat_template.jinja", b"\xff", "not UTF-8"),
    ("chat_template.jinja", b" " * (17 << 20), "at most"),
    ("chat_template.json", b" " * (17 << 20), "at most"),
  ],
)
def test_files_made_to_harm_are_refused(folder, name, content, words):
  (folder / name).write_bytes(content)
  with pytest.raises(BadData, match=words):
    found(folder)


def test_links_out_of_the_folder_are_refused(folder):
  (folder / "chat_template.jinja").symlink_to("/etc/hostname")
  with pytest.raises(BadData, match="outside its folder"):
    found(folder)


@pytest.mark.parametrize("spec", ["bytes", "trained"])
def test_tokenizers_of_ours_end_at_their_end_of_text(spec):
  tokenizer = tokenizers.Bytes()
  if spec == "trained":
    tokenizer = sentences.train(TEXT, 310, "t")
  assert special.stops(tokenizer) == (tokenizer.eot,)
  assert tokenizer.special == dict(
    bos_token_id=tokenizer.eot, eos_token_id=tokenizer.eot
  )


def test_a_template_of_any_depth_stays_as_small_as_it_came(folder):
  deep = "[" * 200 + "[" + "0," * 50_000 + "0]" + "]" * 200
  text = f'{{"chat_template": {deep}}}'
  (folder / "tokenizer_config.json").write_text(text)
  kept = special.read(folder)["tokenizer_config.json"]
  assert len(kept) < 2 * len(text)


def test_half_a_character_is_kept_as_it_came(folder):
  (folder / "tokenizer_config.json").write_text('{"pad_token": "\\ud800"}')
  assert special.read(folder)["tokenizer_config.json"].decode("ascii")


def test_an_export_names_no_ids_that_the_vocabulary_lacks(folder):
  say(folder, "generation_config.json", eos_token_id=50256, top_k=5)
  loaded = run.load(f"hf:{folder}", unroll=0)
  made = vocabulary.files(loaded.tokenizer, 16, llama.LLAMA)
  told = json.loads(made["generation_config.json"])
  assert told["eos_token_id"] == 2, "that of config.json, which exists"
  assert told["top_k"] == 5


def with_word(folder, word, special):
  """Adds an 18th id, which the 17 rows of the model's table do not have."""
  path = str(folder / "tokenizer.json")
  made = library.Tokenizer.from_file(path)
  made.add_tokens([library.AddedToken(word, special=special)])
  made.save(path)
  return folder


def reading(folder):
  """What a config says of its data."""
  given = skeleton().data.to_dict()
  return given | dict(tokenizer=f"hf:{folder}", tokenizer_vocab=0)


@pytest.mark.slow
def test_special_ids_beyond_the_table_are_no_hindrance(folder, tmp_path):
  """As of Gemma 3 without images: its last id is never made by text."""
  with_word(folder, "<image>", special=True)
  tokenizer = found(folder)
  assert (tokenizer.vocab, tokenizer.text_vocab) == (18, 17)
  assert 17 not in tokenizer.encode("b <image> c")
  out = tmp_path / "out"
  export.export_run(
    f"hf:{folder}", str(out), step=None, dtype="float32", shard_bytes=10**9
  )
  assert found(out).vocab == 18 and run.load(f"hf:{out}").model.vocab == 17
  model = run.load(f"hf:{folder}").config["model"]
  config = dict(
    model=model, data=reading(folder), init_from=f"hf:{folder}", frozen={}
  )
  run.check_inputs(config)
  run.check_origin(config, tokenizer)
  narrow = config | dict(model=model | dict(vocab=16))
  with pytest.raises(BadConfig, match="--config.model.vocab=17"):
    run.check_inputs(narrow)


def test_a_text_with_an_id_beyond_the_table_is_refused_by_name(folder):
  with_word(folder, "<more>", special=False)
  loaded = run.load(f"hf:{folder}", unroll=0)
  assert loaded.tokenizer.text_vocab == 18 > loaded.model.vocab
  engine = loaded.engine(Sampling(), seed=0, group=8)
  named = r"id 17 \('<more>'\).*up to 16"
  with pytest.raises(BadData, match=named):
    generate(
      engine, loaded.tokenizer, ["b", "c <more>"], max_tokens=2, num_samples=1,
      stops=(), batch=1, steps=8,
    )  # fmt: skip
  scorer = Scorer(
    loaded.model, loaded.params, loaded.tokenizer, length=8, batch=1
  )
  for score in (scorer.rolling, lambda text: scorer.pairs([("b", text)])):
    with pytest.raises(BadData, match=named):
      score(" c <more>")
  with pytest.raises(BadConfig, match="makes 18 ids"):
    run.check_inputs(dict(model=loaded.config["model"], data=reading(folder)))
