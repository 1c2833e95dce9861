"""A conversion's working folder: what is done so far, kept so that a kill at any moment loses a minute, not more.

`job.json` is the only thing that counts. Every other file is written whole before job.json speaks of it, under a name
that tells its stage and layer, so an interrupted write leaves the last state that job.json describes intact.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from polybit.errors import JobError
from polybit.format.files import atomic_write_json
from polybit.quantizer.kept import corrupt, read_json, read_tensors, write_json, write_tensors

VERSION = 3
STAGES = ("forward", "backward", "measure", "quantize", "head", "tune", "write", "test")  # not all in every job
CHECKPOINT_SECONDS = 20.0


class OtherVersion(JobError):
    """A job of another version of this package."""


@dataclass(frozen=True)
class Progress:
    """Where a job is."""

    stage: str = STAGES[0]
    layer: int = 0  # layers of this stage that are done
    model: int = 0  # models that are done, where a job makes several


@dataclass
class Job:
    """`identity` says which model and options the job is about; a job with another identity is never continued."""

    folder: Path
    identity: Mapping[str, Any]
    progress: Progress = field(default_factory=Progress)
    saved_at: float = field(default_factory=time.monotonic)

    # ---- beginning and continuing

    @classmethod
    def exists(cls, folder: Path) -> bool:
        return (folder / "job.json").exists()

    @classmethod
    def check(cls, folder: Path) -> None:
        """JobError: its job.json is damaged, or another program's."""
        _read(folder / "job.json")

    @classmethod
    def resume(cls, folder: Path, identity: Mapping[str, Any]) -> "Job":
        """JobError: corrupt, or about something else."""
        path = folder / "job.json"
        progress, found = _read(path)
        for key, wanted in identity.items():
            if found.get(key) != wanted:
                raise JobError(
                    f"{path} belongs to a job with {key} {found.get(key)!r}, not {wanted!r}; finish it as begun, "
                    "take another folder, or start over with --no-resume (resume=False)"
                )
        return cls(folder, identity, progress)

    def save(self, progress: Progress) -> None:
        """From here on a resumed job starts at `progress`."""
        self.progress = progress
        state = {"version": VERSION, "identity": dict(self.identity), "progress": asdict(progress)}
        atomic_write_json(self.folder / "job.json", state)
        self.saved_at = time.monotonic()

    # ---- what the stages keep

    def keep_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        write_tensors(self.folder / f"{name}.safetensors", tensors)

    def kept_tensors(self, name: str) -> dict[str, Tensor]:
        """JobError where they are not there or damaged."""
        return read_tensors(self.folder / f"{name}.safetensors")

    def keep_json(self, name: str, value: Any) -> None:
        write_json(self.folder / f"{name}.json", value)

    def kept_json(self, name: str) -> Any:
        """JobError where it is not there or damaged."""
        return read_json(self.folder / f"{name}.json")

    # ---- running through the layers

    def through_layers(
        self, stage: str, count: int, start: Callable[[], Tensor], step: Callable[[int, Tensor], Tensor]
    ) -> Tensor:
        """Run `step` on the states of every layer that is not done yet, saving them now and then; the last states.

        `start` makes the states before layer 0, one tensor, of what shape is the stage's affair.
        """
        first = self.progress.layer if self.progress.stage == stage else 0
        states = start() if first == 0 else self.kept_tensors(_states_name(stage, first))["states"]
        for layer in range(first, count):
            states = step(layer, states)
            done = layer + 1
            if done == count or time.monotonic() - self.saved_at > CHECKPOINT_SECONDS:
                self.keep_tensors(_states_name(stage, done), {"states": states})
                self.save(replace(self.progress, stage=stage, layer=done))
                self._drop_states_except(stage, done)
        return states

    def last_states(self, stage: str, count: int) -> Tensor:
        """The states after all layers of a finished stage."""
        return self.kept_tensors(_states_name(stage, count))["states"]

    def _drop_states_except(self, stage: str, layer: int) -> None:
        kept = f"{_states_name(stage, layer)}.safetensors"
        for path in self.folder.glob("states-*.safetensors"):
            if path.name != kept:
                path.unlink()

    def drop(self, name: str) -> None:
        """Forget a folder of kept tensors. What counts must not need them any more."""
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def next_stage(self) -> None:
        self.save(replace(self.progress, stage=STAGES[STAGES.index(self.progress.stage) + 1], layer=0))

    def next_model(self) -> None:
        """Another is quantized with what was learnt for the first."""
        self.save(Progress("quantize", model=self.progress.model + 1))

    def delete(self) -> None:
        (self.folder / "job.json").unlink()  # first: what is left of a killed deletion is no job any more
        shutil.rmtree(self.folder, ignore_errors=True)  # Windows keeps the lock for whoever holds it


def _read(path: Path) -> tuple[Progress, dict[str, Any]]:
    """Progress and identity as job.json tells them. JobError: it is damaged, or OtherVersion."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        progress, version, identity = Progress(**state["progress"]), state["version"], dict(state["identity"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise corrupt(path) from None
    if "stage" not in state["progress"] or progress.stage not in STAGES:
        raise corrupt(path)
    if not _are_counts(progress.layer, progress.model, version):
        raise corrupt(path)
    if version != VERSION:
        raise OtherVersion(
            f"{path} is a job of another version of polybit (its kind is {version}, this version's {VERSION}); "
            "finish it with that one, or start over with --no-resume (resume=False)"
        )
    return progress, identity


def _are_counts(*values: object) -> bool:
    return all(isinstance(value, int) and value >= 0 for value in values)


def _states_name(stage: str, layer: int) -> str:
    return f"states-{stage}-{layer:05}"
