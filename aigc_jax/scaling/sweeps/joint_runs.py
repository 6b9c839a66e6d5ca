"""Points of a sweep that train as one program, each in its own directory.

Every point is a session of its own in a thread of its own, with its lock, its
data, its rows and its checkpoints; only their steps are taken together
(trainer/joint.py). What becomes of each is noted in a file beside the list.
"""

import dataclasses
import functools
import json
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

from aigc_jax import files, native, records, run, tree
from aigc_jax.errors import BadConfig, Refusal, Stopped
from aigc_jax.scaling.arms import leaves_of
from aigc_jax.trainer import joint
from aigc_jax.trainer.lock import Lock
from aigc_jax.trainer.stop import Stop
from aigc_jax.trainer.watchdog import Watchdog

# The keys in which points of one program may differ. Whether a number is 0 or
# None is more than a number: what it stands for is then not computed.
NUMBERS = (
  "seed", "optim/learning_rate", "optim/weight_decay", "optim/b1", "optim/b2",
  "optim/eps", "optim/clip", "optim/final_fraction", "model/init_std",
)  # fmt: skip
FORM = {"runs": [{"config": str, "workdir": str}]}
OUTCOME = {"status": int, "error": [str]}
OUTCOMES = {"outcomes": {str: OUTCOME}}
SECONDS = 3600.0  # that one run may wait for the others


def group_of(config: Mapping) -> str:
  """What is equal for the points that may train together."""
  leaves = leaves_of(config)
  return json.dumps(
    {
      key: bool(value)
      if tree.match(NUMBERS, key.replace(".", "/")) and key != "seed"
      else value
      for key, value in leaves.items()
      if key != "seed"
    },
    sort_keys=True,
  )


class Member(run.Session):
  """A session whose steps are taken where those of others are."""

  keeper = joint.OneAtATime
  meeting: joint.Meeting
  number: int

  def advance(self, r: run.Run) -> Callable:
    return self.meeting.advance(self.number, r)

  def open_data(self) -> dict[str, str]:
    prints = super().open_data()
    self.evaluators = {
      name: (every, functools.partial(_of_own, measure))
      for name, (every, measure) in self.evaluators.items()
    }
    return prints


def _of_own(measure: Callable, step: int, state) -> dict[str, float]:
  return measure(step, joint.own(state))


def outcomes_in(path: Path) -> dict[str, dict]:
  """{work directory: {"status", "error"}} of those that have ended."""
  noted = _noted(path)
  if not noted.is_file():
    return {}
  found = files.read_json(noted, error=BadConfig)
  return records.check(found, OUTCOMES, str(noted), BadConfig)["outcomes"]


def _noted(path: Path) -> Path:
  return path.with_name(f"{path.stem}.outcome.json")


def train_all(path: str) -> int:
  """Trains the runs in a file; 0, or the status of the first that failed.

  Raises BadConfig for several processes or devices.
  """
  listed = files.expanded(path)
  found = records.check(
    files.read_json(listed, error=BadConfig), FORM, path, BadConfig
  )["runs"]
  if jax.device_count() > 1:
    raise BadConfig(
      f"points train together on one device, and here are "
      f"{jax.device_count()}: leave --together out, or show one of them "
      "(CUDA_VISIBLE_DEVICES)"
    )
  configs = [run.read(run.configured(one["config"], [])) for one in found]
  folders = [files.expanded(one["workdir"]) for one in found]
  mesh = run.make_mesh(configs[0])
  native.quiet(mesh.devices.flat[0], jax.process_count())
  meeting = joint.Meeting(_program, len(found))
  crew = _Crew(mesh, meeting, listed)
  for folder in folders:
    folder.mkdir(parents=True, exist_ok=True)
  with Stop(folders[0]) as stop:
    threads = [
      threading.Thread(target=crew.work, args=(k, *one, stop), name=one[1].name)
      for k, one in enumerate(zip(configs, folders, strict=True))
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
  ended = [crew.outcomes[str(folder)]["status"] for folder in folders]
  failed = [s for s in ended if s not in (0, Stopped.code)]
  return (failed or [s for s in ended if s] or [0])[0]


def _program(runs: Sequence[run.Run], states, batches) -> Callable:
  """The steps of these runs as one program; the stack of states is donated."""
  one = runs[0].config["compute"]["steps_per_call"]
  many = [joint_step(r, one) for r in runs]
  return jax.jit(joint.batched(many, states, batches), donate_argnums=0)


def joint_step(r: run.Run, steps_per_call: int) -> Callable:
  """The step of a run. Raises BadConfig for several in a call."""
  if steps_per_call != 1:
    raise BadConfig(
      f"steps_per_call={steps_per_call}: points that train together take one "
      "step in a call, --config.compute.steps_per_call=1"
    )
  return r.step


@dataclasses.dataclass
class _Crew:
  """What all threads share: the place where they meet, and what they became."""

  mesh: jax.sharding.Mesh
  meeting: joint.Meeting
  path: Path
  outcomes: dict[str, dict] = dataclasses.field(default_factory=dict)
  noting: threading.Lock = dataclasses.field(default_factory=threading.Lock)
  said: set[str] = dataclasses.field(default_factory=set)

  def say(self, text: str) -> None:
    """A line that a run says, once of all of them."""
    with self.noting:
      if text in self.said:
        return
      self.said.add(text)
    print(text, flush=True)

  def work(self, k: int, config: run.Config, workdir: Path, stop) -> None:
    """One run, from its lock to its result, in turns; never raises."""
    with self.meeting.turn():
      self._work(k, config, workdir, stop)

  def _work(self, k: int, config: run.Config, workdir: Path, stop) -> None:
    try:
      self._train(k, config, workdir, stop)
      outcome = {"status": 0, "error": []}
    except Refusal as refusal:
      lines = str(refusal).splitlines()
      outcome = {"status": refusal.code, "error": lines}
    except BaseException:
      outcome = {"status": 1, "error": traceback.format_exc().splitlines()}
    self.meeting.leave(k)
    with self.noting:
      self.outcomes[str(workdir)] = outcome
      files.write_json(_noted(self.path), {"outcomes": self.outcomes})
    print(f"{workdir.name}: {outcome['status']}", *outcome["error"][-3:])

  def _train(self, k: int, config: run.Config, workdir: Path, stop) -> None:
    with (
      Lock(workdir) as lock,
      Watchdog(
        workdir, step_seconds=SECONDS, compile_seconds=SECONDS
      ) as watchdog,
      jax.set_mesh(self.mesh),
    ):
      session = Member(
        config, self.mesh, workdir,
        stop=stop, lock=lock, watchdog=watchdog, options=run.Options(),
        say=self.say, first=True,
      )  # fmt: skip
      session.meeting, session.number = self.meeting, k
      session.plan()
      session.open_data()
      session.train()
