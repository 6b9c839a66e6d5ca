"""Installs aigc_jax: `pip install -e .` (extras: extras_require below)."""

from setuptools import find_packages, setup

# What the commands that a run names at its end need, so in the core.
# jinja2: chat templates; older versions let them out of the sandbox.
HF = ["tokenizers>=0.20", "jinja2>=3.1.6"]
PLOTS = ["matplotlib>=3.8"]
PARQUET = ["pyarrow>=15"]
IMAGES = ["pillow>=11.2"]
SOUND = ["soundfile>=0.12"]

setup(
  name="aigc_jax",
  version="0.1.0",
  description="Scaled pretraining of generative models in JAX",
  packages=find_packages(include=["aigc_jax", "aigc_jax.*"]),
  python_requires=">=3.11",
  install_requires=[
    "absl-py>=2.1",
    "flax>=0.12",
    "grain>=0.2.15",
    "importlib_resources",  # tensorflow-datasets uses it without saying so
    "jax>=0.10.2",
    "ml-collections>=1.0",
    "numpy>=2.0",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.11.30",
    "rich>=13",
    "scipy>=1.11",
    "sentencepiece>=0.2",
    "tensorboardX>=2.6",
    "tensorboard>=2.18",
    "tensorflow-datasets>=4.9.9",
    *HF,
    *PLOTS,
  ],
  # The harness's command by its own two names, with our models added to it.
  # pip installs what a package needs before the package itself, so that ours
  # are written last; where the harness comes later, install this one again or
  # use python -m aigc_jax.lm_eval, which is the same.
  entry_points={
    "console_scripts": [
      "lm_eval = aigc_jax.lm_eval:main_of_the_harness",
      "lm-eval = aigc_jax.lm_eval:main_of_the_harness",
    ]
  },
  extras_require={
    "gpu": ["jax[cuda13]"],
    "tpu": ["jax[tpu]"],
    "hf": HF,
    "plots": PLOTS,
    "parquet": PARQUET,
    "images": IMAGES,
    "sound": SOUND,
    "wandb": ["wandb"],
    "scores": [
      "sacrebleu>=2.3",
      "rouge-score>=0.1.2",
      "nltk>=3.9",
      "jiwer>=4",
    ],
    "lm_eval": ["lm_eval>=0.4.9"],
    "parity": ["torch>=2.4", "transformers>=4.56"] + HF,
    "test": [
      "pytest>=8",
      "pytest-xdist>=3.5",
      "hypothesis>=6",
      "ruff>=0.12",
      "safetensors>=0.5",
    ]
    + HF
    + PARQUET
    + IMAGES
    + SOUND
    + PLOTS,
  },
)
