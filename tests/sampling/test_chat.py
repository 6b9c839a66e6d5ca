"""Messages become what the model reads, and a template can do no more."""

import json

import pytest

from aigc_jax.data import tokenizers
from aigc_jax.errors import BadConfig, BadData
from aigc_jax.sampling import chat
from aigc_jax.sampling.text import prompt_ids
from tests.data import test_spelling as spelling
from tests.sweep import slow

pytest.importorskip("jinja2", reason="needs the extra [hf]")
TALK = [
  {"role": "system", "content": "Be kind. "},
  {"role": "user", "content": "h\xe9 <b>\n{{ bos_token }}"},
]
TEMPLATES = {
  "turns": (
    "{{ bos_token }}{%- for m in messages %}\n"
    "  {%- if loop.first and m.role == 'system' %}{{ m.content | trim }}\n"
    "  {%- else %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}\n"
    "  {%- endif %}\n{%- endfor %}\n"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
  ),
  "parts": (
    "{% set ns = namespace(n=0) %}{% for m in messages %}"
    "{% if ns.n > 3 %}{% break %}{% endif %}{% set ns.n = ns.n + 1 %}"
    "{% generation %}{{ m | tojson }}{% endgeneration %}{{ ns.n }}{% endfor %}"
    "{{ tools is none }}{{ unknown_token }}"
  ),
}
WORDS = dict(bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_gives_what_it_gives_in_transformers(name):
  module = pytest.importorskip(
    "transformers.utils.chat_template_utils", reason="needs [parity]"
  )
  (found,) = chat.render(TEMPLATES[name], WORDS, [TALK])
  theirs, _ = module.render_jinja_template(
    [TALK], chat_template=TEMPLATES[name], add_generation_prompt=True, **WORDS
  )
  assert found == theirs[0]


def test_what_a_template_writes_is_known_without_transformers():
  template = TEMPLATES["turns"]
  first, second = chat.render(template, WORDS, [TALK, TALK[1:]])
  user = "<|user|>h\xe9 <b>\n{{ bos_token }}</s><|assistant|>\n"
  assert first == "<s>Be kind." + user and second == "<s>" + user


FOREVER = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3


@pytest.mark.parametrize(
  "template,words",
  [
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe|access"),
    ("{{ messages.append(1) }}", "unsafe|SecurityError"),
    ("{% include '/etc/passwd' %}", "TypeError|no loader"),
    ("{{ raise_exception('users first') }}", "refuses.*users first"),
    ("{% for %}", "TemplateSyntaxError"),
    slow(("{{ 'a' * 10**8 }}", "more than|MemoryError")),
    ("{{ 'a' * 10**10 }}", "more than|MemoryError"),
    ("{{ messages[0].content.x.y }}", "UndefinedError"),
    slow((FOREVER, "not done after")),
    (" " * (chat.LARGEST + 1), "expected at most"),
  ],
)
def test_a_template_can_do_no_harm(template, words, monkeypatch):
  monkeypatch.setattr(chat, "SECONDS", 20.0 if template != FOREVER else 3.0)
  with pytest.raises(BadData, match=words):
    chat.render(template, {}, [TALK])


def of_folder(**files):
  """A tokenizer with these files beside it."""
  model = spelling.MADE("llama").files()["tokenizer.json"]
  names = {name.replace("__", "."): text for name, text in files.items()}
  beside = {name: text.encode() for name, text in names.items()}
  return tokenizers.HuggingFace(model, "</s>", "hf:x", beside)


def test_the_template_is_found_wherever_a_folder_has_it():
  said = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "a": 1}
  one = json.dumps(said | {"chat_template": "one"})
  several = json.dumps(
    said
    | {
      "chat_template": [
        {"name": "tool", "template": "x"},
        {"name": "default", "template": "two"},
      ]
    }
  )
  three = json.dumps({"chat_template": "three"})
  for expected, files in (
    ("one", dict(tokenizer_config__json=one)),
    ("two", dict(tokenizer_config__json=several)),
    ("three", dict(tokenizer_config__json=one, chat_template__json=three)),
    ("four", dict(tokenizer_config__json=one, chat_template__jinja="four")),
  ):
    found, words = chat.template_of(of_folder(**files))
    assert found == expected
    assert words == {"bos_token": "<s>", "eos_token": "</s>"}
  odd = json.dumps({"chat_template": ["x", 3, {"name": ["default"]}]})
  strange = of_folder(tokenizer_config__json=odd)
  for tokenizer in (of_folder(), strange, tokenizers.Bytes()):
    with pytest.raises(
      BadConfig, match="the tokenizer .* has no chat template: leave --chat"
    ):
      chat.template_of(tokenizer)


@pytest.mark.parametrize("kind", ["llama", "bytes", "lossless"])
def test_special_tokens_are_read_as_such_where_asked(kind):
  tokenizer = spelling.MADE(kind)
  word = next(
    w for w, i in tokenizer.special_words.items() if i == tokenizer.eot
  )
  text = f"a{word}{word}a"
  a = tokenizer.encode("a").tolist()
  assert tokenizer.eot not in prompt_ids(tokenizer, text)
  found = prompt_ids(tokenizer, text, special=True)
  eot = tokenizer.eot
  assert found == (*tokenizer.start, *a, eot, eot, *a)
  assert tokenizer.eot not in prompt_ids(tokenizer, text), "as before"


def test_what_begins_a_text_is_not_put_there_twice():
  tokenizer = of_folder()
  tokenizer.start = (1,)
  (a,) = tokenizer.encode("a").tolist()
  assert prompt_ids(tokenizer, "a") == (1, a)
  assert prompt_ids(tokenizer, "<s>a", special=True) == (1, a)
  assert prompt_ids(tokenizer, "a", special=True) == (1, a)
  assert prompt_ids(tokenizer, "a", special=True, begin=False) == (a,)
