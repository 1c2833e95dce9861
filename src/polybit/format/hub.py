"""Models by their id on the Hugging Face Hub: downloaded once, then folders like any other; and folders put there.

The Hub's client is imported where it is needed, because a model that is here already should not wait for it.
"""

import re
import textwrap
from pathlib import Path

from polybit.errors import ConfigError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")
WEIGHTS = ("*.safetensors",)  # never pickled ones
DESCRIPTION = ("*.json", "*.jinja", "LICENSE*", "README.md")  # never code


def failures() -> tuple[type[Exception], ...]:
    """What the Hub's client raises: its own errors, and whatever the HTTP library raises that it is built on."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    return (*HfHubHTTPError.__bases__, HFValidationError, OSError)


def local_folder(name: Path | str, weights: bool = True) -> Path:
    """The folder `name`, or where the Hub's model of that id (`owner/name`, `owner/name@revision`) was downloaded to.

    Without `weights` only what describes the model is fetched. Raises ConfigError where it is neither.
    """
    if name == "":
        raise ConfigError("the model's name is empty; give a model's folder or its id on the Hub")
    try:
        folder = Path(name).expanduser()
        if folder.exists() or not HUB_ID.fullmatch(str(name)):
            return folder
    except (TypeError, ValueError, OSError, RuntimeError) as error:  # not text, too long, in nobody's home
        found = f"{name!r:.80} is no path ({error!s:.80})"
        raise ConfigError(f"{found}; give a model's folder or its id on the Hub") from None
    return _downloaded(str(name), [*DESCRIPTION, *(WEIGHTS if weights else ())])


def _downloaded(name: str, wanted: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError

    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=wanted))
    except GatedRepoError:
        raise ConfigError(
            f"{repository} is only given to those who accepted its terms: do that on https://huggingface.co/{repository}"
            ", then log in with: hf auth login"
        ) from None
    except failures() as error:
        raise ConfigError(
            f"{name} is no folder here, and the Hub did not give it ({shortened(error)}); check the name and the "
            "connection"
        ) from None


def hub_id_of(folder: Path) -> str | None:
    """The id of the model that `folder` was downloaded as; None for folders of other origin."""
    for part in folder.parts:
        kind, *names = part.split("--")
        if kind == "models" and len(names) == 2:
            return "/".join(names)
    return None


def check_upload(repository: str) -> None:
    """ConfigError, hours before an upload would fail: it is no repository's name, or nobody is logged in."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    if not HUB_ID.fullmatch(repository) or "@" in repository:
        raise ConfigError(f"{repository!r} is no repository on the Hub, expected its owner and its name: OWNER/NAME")
    try:
        HfApi().whoami()
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        raise ConfigError(
            f"the Hub does not know who wants to write to {repository} ({shortened(error)}); log in with: hf auth login"
        ) from None


def upload(folder: Path, repository: str, public: bool, message: str) -> str:
    """Put a folder's files into a repository, which is made if there is none -> its address. ConfigError: refused."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        address = api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=message, ignore_patterns=[".*", "**/.*"]
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ConfigError(
            f"{folder} is complete, but the Hub did not take it ({shortened(error)}); "
            f"try again with: hf upload {repository} {folder}"
        ) from None
    return str(address)


def shortened(error: Exception) -> str:
    """The beginning of what it says, as one line."""
    return textwrap.shorten(str(error), 200, placeholder=" ...")
