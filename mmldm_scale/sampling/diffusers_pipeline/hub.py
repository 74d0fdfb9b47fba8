"""Uploads an exported folder to a repository of the Hugging Face Hub, with huggingface_hub and its own tokens."""

import re
from pathlib import Path

from mmldm_scale.common.errors import Outage, UserError

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
REASON_LENGTH = 200  # characters of a library's message that are repeated in an error


def check(repository: str) -> None:
    """Raise UserError if nothing can be uploaded to ``repository``, OWNER/NAME, as far as this machine knows."""
    import huggingface_hub

    if not REPOSITORY.fullmatch(repository):
        raise UserError(f"--push-to-hub: {repository!r:.100}: must be OWNER/NAME")
    if huggingface_hub.constants.is_offline_mode():
        raise UserError("--push-to-hub: HF_HUB_OFFLINE is set; unset it to upload")
    if not huggingface_hub.get_token():
        raise UserError("--push-to-hub: there is no token; run `hf auth login`, or set HF_TOKEN")


def upload(folder: Path, repository: str) -> str:
    """Upload the files of ``folder`` to ``repository``, which is made, private, if it does not exist; return its URL.

    Raises:
        Outage: the Hub cannot be reached or refuses; ``folder`` stays.
    """
    import huggingface_hub
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the HTTP library that it uses

    api = huggingface_hub.HfApi()
    try:
        url = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="mmldm export")
    except (OSError, ValueError, HTTPError) as error:  # huggingface_hub's own are of these
        reason = " ".join(str(error).split())[:REASON_LENGTH]
        raise Outage(f"--push-to-hub: {repository}: not uploaded: {reason}; {folder} has what was exported") from None
    return str(url)
