"""Where a push is to go, and whether it may: all of it is asked before anything is sent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from nlp_transfer.hub.repository import COMMIT, MAIN, Info, Remote
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import UserError

WRITERS = ("contributor", "write", "admin")  # what a member of an organisation must be


@dataclass(frozen=True)
class Target:
    """Where a push is to go; `info` is None where the repository is to be made."""

    repo_id: str
    revision: str = MAIN
    create_pr: bool = False
    tag: str | None = None
    public: bool = False
    info: Info | None = None


def check_name(repo_id: str) -> None:
    """Raises a UserError for what cannot be the id of a repository, and in offline mode."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id!r}: is no name of a repository ({error}); allowed: USER/NAME") from None
    if repo_id.count("/") != 1:
        raise UserError(f"{repo_id!r}: is no name of a repository; allowed: USER/NAME or ORGANISATION/NAME")
    if constants.is_offline_mode():
        raise UserError(f"{repo_id}: nothing can be pushed in offline mode; unset HF_HUB_OFFLINE (now set), and try again")


def check_target(
    remote: Remote, public: bool = False, revision: str | None = None, create_pr: bool = False, tag: str | None = None
) -> Target:
    """Asks the hub whether the token may push there. Nothing is created or changed.

    Raises:
        UserError: the hub does not know the token; the namespace is another's, or the token may only read; the revision is
            no branch; the tag is set already; a pull request is to be made where there is no repository.
    """
    who = remote.whoami()
    repo_id, branch = remote.repo_id, revision or MAIN
    if COMMIT.fullmatch(branch):
        raise UserError(f"--revision: found {branch}, a commit; allowed: a branch")
    info = remote.info(branch)
    if branch.startswith("refs/") and (info is None or info.head is None):
        raise UserError(f"--revision: {repo_id} has no {branch}; allowed: a branch, or a pull request that is there")
    if create_pr and info is None:
        raise UserError(f"--create-pr: there is no repository {repo_id} that the token may see; allowed: one that exists")
    if create_pr and info is not None and info.head is None:
        raise UserError(f"--create-pr: {repo_id} has no branch {branch}; allowed: one that exists")
    _check_rights(who, repo_id, create_pr)
    if info is not None:
        refs = remote.refs()
        if any(one.name == branch for one in refs.tags):
            raise UserError(f"--revision: {branch} is a tag of {repo_id}; allowed: a branch")
        if tag and any(one.name == tag for one in refs.tags):
            raise UserError(f"--tag: {repo_id} has a tag {tag} already; allowed: another name, or remove it first")
        kind = "private" if info.private else "public"
        if public and info.private:
            say(f"warning: {repo_id} exists and is private, and stays so; --public is for a new repository")
        else:
            say(f"{repo_id} exists and is {kind}; that stays as it is")
    return Target(repo_id, branch, create_pr, tag, public, info)


def _check_rights(who: Mapping[str, Any], repo_id: str, create_pr: bool) -> None:
    """The account must be allowed to write there, and the token too."""
    name, namespace = str(who["name"]), repo_id.split("/")[0]
    roles = {str(one["name"]): one.get("roleInOrg") for one in who.get("orgs") or []}
    token = (who.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise UserError(
            f"{repo_id}: the token of {name} may only read; make one that may write in the settings of the account, and set it "
            "as HF_TOKEN or with `hf auth login`"
        )
    if create_pr:
        return  # whoever may read may propose
    if namespace != name and namespace not in roles:
        own = ", ".join([name, *roles])
        raise UserError(f"{repo_id}: {namespace} is not the token's; allowed: {own}; --create-pr proposes a change to another's")
    if namespace != name and roles[namespace] is not None and roles[namespace] not in WRITERS:
        raise UserError(f"{repo_id}: {name} may only read in {namespace}; ask there for the right to write")
    if token.get("role") == "fineGrained":
        scoped = (token.get("fineGrained") or {}).get("scoped") or []
        places = [one["entity"].get("name") for one in scoped if "repo.write" in (one.get("permissions") or [])]
        if namespace not in places and repo_id not in places:
            raise UserError(
                f"{repo_id}: the token may not write there (it may in {', '.join(map(str, places)) or 'no place'}); add the "
                "repository or its owner to the token's rights"
            )
