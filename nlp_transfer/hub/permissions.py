"""Checks before a push: the repository name, the permissions of the token, and the branch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import UserError

COMMIT = re.compile(r"[0-9a-f]{40}")
MAIN = "main"
WRITERS = ("contributor", "write", "admin")  # roles in an organization that may write


@dataclass(frozen=True)
class RepositoryState:
    """The visibility of a repository, and the commit of a branch (None if the branch does not exist)."""

    private: bool
    head: str | None


@dataclass(frozen=True)
class Target:
    """The destination of a push. `state` is None before `check_target`, and if the repository does not exist yet."""

    repo_id: str
    revision: str = MAIN
    create_pr: bool = False
    tag: str | None = None
    public: bool = False
    state: RepositoryState | None = None


def connect(repo_id: str, token: str | None = None) -> HfApi:
    """Create the client for pushing to a repository.

    Args:
        repo_id: USER/NAME.
        token: a token of the hub. None means HF_TOKEN, or the token of `hf auth login`.

    Raises:
        UserError: the name is invalid, there is no token, or huggingface_hub is in offline mode.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} is not a valid repository name ({error}); allowed: USER/NAME") from None
    if repo_id.count("/") != 1:
        raise UserError(f"{repo_id!r} is not a valid repository name; allowed: USER/NAME or ORGANIZATION/NAME")
    if constants.is_offline_mode():
        raise UserError(f"{repo_id}: pushing is not possible in offline mode; unset HF_HUB_OFFLINE, and try again")
    if not (token := token or get_token()):
        raise UserError(
            f"{repo_id}: there is no token for the push; set the environment variable HF_TOKEN, or log in with `hf auth login`"
        )
    return HfApi(token=token, library_name="nlp_transfer", library_version=version("nlp_transfer"))


def read_state(api: HfApi, repo_id: str, revision: str = MAIN) -> RepositoryState | None:
    """Return the state of a repository, or None if it does not exist or the token may not see it."""
    try:
        info = api.model_info(repo_id, revision=revision)
        return RepositoryState(bool(info.private), info.sha)
    except RevisionNotFoundError:
        return RepositoryState(bool(api.model_info(repo_id).private), None)
    except RepositoryNotFoundError:
        return None


def check_target(api: HfApi, target: Target) -> Target:
    """Check that the token may push to a repository, and return the target with its state. Nothing is created or changed.

    Raises:
        UserError: the token may not write to it, the revision is not a branch, the tag already exists, or a pull request is
            requested for a repository or branch that does not exist.
    """
    account, repo_id, branch, create_pr = api.whoami(), target.repo_id, target.revision, target.create_pr
    if COMMIT.fullmatch(branch):
        raise UserError(f"--revision: found {branch}, a commit; allowed: a branch")
    state = read_state(api, repo_id, branch)
    if branch.startswith("refs/") and (state is None or state.head is None):
        raise UserError(f"--revision: {repo_id} has no {branch}; allowed: a branch, or an existing pull request")
    if create_pr and state is None:
        raise UserError(f"--create-pr: there is no repository {repo_id} that the token may see; allowed: an existing one")
    if create_pr and state is not None and state.head is None:
        raise UserError(f"--create-pr: {repo_id} has no branch {branch}; allowed: an existing one")
    _check_rights(account, repo_id, create_pr)
    if state is not None:
        tags = {ref.name for ref in api.list_repo_refs(repo_id).tags}
        if branch in tags:
            raise UserError(f"--revision: {branch} is a tag of {repo_id}; allowed: a branch")
        if target.tag in tags:
            raise UserError(f"--tag: {repo_id} already has a tag {target.tag}; use another name, or remove the tag first")
        if target.public and state.private:
            say(f"warning: {repo_id} exists and stays private; --public applies to new repositories only")
        else:
            say(f"{repo_id} exists and stays {'private' if state.private else 'public'}")
    return replace(target, state=state)


def _check_rights(account: Mapping[str, Any], repo_id: str, create_pr: bool) -> None:
    """Check that the token may write to a repository."""
    name, namespace = str(account["name"]), repo_id.split("/")[0]
    roles = {str(member["name"]): member.get("roleInOrg") for member in account.get("orgs") or []}
    token = (account.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise UserError(
            f"{repo_id}: the token of {name} is read-only; create a token with write permission in the settings of the "
            "account, and set it as HF_TOKEN or with `hf auth login`"
        )
    if create_pr:
        return  # everyone who may read may open a pull request
    if namespace != name and namespace not in roles:
        raise UserError(
            f"{repo_id}: the token does not belong to {namespace}; allowed: {', '.join([name, *roles])}; --create-pr proposes a "
            "change to the repository of another user"
        )
    if namespace != name and roles[namespace] is not None and roles[namespace] not in WRITERS:
        raise UserError(f"{repo_id}: {name} may only read in {namespace}; ask its owners for write permission")
    if token.get("role") == "fineGrained":
        scopes = (token.get("fineGrained") or {}).get("scoped") or []
        writable = [scope["entity"].get("name") for scope in scopes if "repo.write" in (scope.get("permissions") or [])]
        if namespace not in writable and repo_id not in writable:
            raise UserError(
                f"{repo_id}: the token may not write there (it may write to: {', '.join(map(str, writable)) or 'none'}); add the "
                "repository or its owner to the permissions of the token"
            )
