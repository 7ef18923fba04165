"""Pushing a saved model to a hub in one atomic commit.

All checks come first. Then one commit adds the files and deletes those of an earlier model. The commit names its parent, so the
hub refuses it if somebody else has committed in the meantime. Afterwards the sizes and hashes on the hub are compared with those
of the local files. If they differ, an error names the commit, which is not reverted.

huggingface_hub retries uploads and listings up to five times, and logs a warning for each retry. The commit is not retried. If it
fails, pushing again does not upload large files again.
"""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from nlp_transfer.hub.client import asking
from nlp_transfer.hub.package import Package, make_package
from nlp_transfer.hub.permissions import MAIN, RepositoryState, Target, check_target, connect, read_state
from nlp_transfer.utils.console import console, say
from nlp_transfer.utils.errors import UserError

LARGE_FILE = 10_000_000  # bytes; a message names larger files before they are sent
INITIAL_FILES = {".gitattributes"}  # the content of a new repository


@dataclass(frozen=True)
class Pushed:
    """The result of a push.

    Attributes:
        repo_id: USER/NAME.
        url: address of the repository.
        commit: hash of the commit with the model.
        revision: the branch of the commit, or `refs/pr/N` for a pull request.
        private: whether the repository is private.
        changed: False if the repository already had all files, so no commit was made.
        tag: tag of the commit.
    """

    repo_id: str
    url: str
    commit: str
    revision: str
    private: bool
    changed: bool
    tag: str | None = None


def push(
    model: str | Path,
    repo_id: str,
    *,
    public: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    tag: str | None = None,
    adapter: bool = False,
    token: str | None = None,
    message: str | None = None,
) -> Pushed:
    """Push a saved model to a hub in one commit: weights, tokenizers, model card, and the records of its training.

    Args:
        model: a run folder, a model folder or an adapter folder.
        repo_id: USER/NAME. A new repository is private unless `public`; an existing one keeps its visibility.
        public: make a new repository public.
        revision: the branch to push to. It is created from main if it does not exist.
        create_pr: propose the commit as a pull request.
        tag: a new tag for the commit.
        adapter: push the adapter of a run instead of the merged model.
        token: a token of the hub. None means HF_TOKEN, or the token of `hf auth login`.
        message: the commit message.

    Raises:
        UserError: a check failed, the hub did not respond, somebody else committed in the meantime, or the files on the hub
            differ from those that were sent. The message describes the state of the repository and what to do.
    """
    api, purpose = connect(repo_id, token), f"pushing to {repo_id}"
    with asking(purpose):
        target = check_target(api, Target(repo_id, revision or MAIN, create_pr, tag, public))
    with make_package(model, repo_id, adapter) as package:
        with asking(purpose):
            _check_card(package, repo_id)
        pushed = _commit(api, target, package, message or f"Push {package.folder.name} with nlp_transfer")
        if pushed.changed:
            _check_commit(api, package, pushed)
    if tag:
        _set_tag(api, tag, pushed)
    place = f"{pushed.url} ({'private' if pushed.private else 'public'}), {pushed.revision} at {pushed.commit[:8]}"
    say(f"pushed to {place}" if pushed.changed else f"no commit was made: {place} already contains all files")
    return pushed


def check_push(repo_id: str) -> None:
    """Check before training that the token may push to a repository.

    Raises:
        UserError: the token may not push there, or the hub did not respond.
    """
    api = connect(repo_id)
    with asking(f"checking whether {repo_id} may be pushed to"):
        check_target(api, Target(repo_id))


def push_run(folder: Path, repo_id: str) -> Pushed:
    """Push a run that has just finished.

    Raises:
        UserError: the push failed. The run itself is complete, and the message says how to push it later.
    """
    try:
        return push(folder, repo_id)
    except UserError as error:
        raise UserError(
            f"the run is finished and complete in {folder}, but it was not pushed: {error}\nTo push it later: nlp-transfer push "
            f"{shlex.quote(str(folder))} {repo_id}"
        ) from error


def _check_card(package: Package, repo_id: str) -> None:
    """Validate the metadata of the model card on the hub."""
    try:
        ModelCard(package.card).validate()
    except UserError:
        raise
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"README.md: the hub refuses the model card of {repo_id} ({reason}); correct its metadata") from error


def _commit(api: HfApi, target: Target, package: Package, message: str) -> Pushed:
    """Create the repository or the branch if it does not exist, and commit all changes at once.

    Raises:
        UserError: the commit failed. The message describes the state of the repository.
    """
    repo_id, revision, head = target.repo_id, target.revision, None
    try:
        with asking(f"pushing to {repo_id}"):
            state = _create(api, target)
            head = str(state.head)
            tree = _list_files(api, repo_id, head)
            changed, outdated = package.differences(tree), package.outdated(tree)
            if not changed and not outdated:
                return Pushed(repo_id, _address(api, repo_id), head, revision, state.private, False, target.tag)
            _announce(package, changed, outdated)
            additions = [CommitOperationAdd(name, package.files[name]) for name in changed]
            with _progress_bars_on_terminals():
                commit = api.create_commit(
                    repo_id,
                    [*additions, *map(CommitOperationDelete, outdated)],
                    commit_message=message,
                    revision=revision,
                    create_pr=target.create_pr,
                    parent_commit=head,
                    num_threads=2,
                )
        revision = commit.pr_revision or revision
        return Pushed(repo_id, _address(api, repo_id), commit.oid, revision, state.private, True, target.tag)
    except UserError as error:
        pushed, description = _after_failure(api, target, package, head)
        if pushed is None:
            raise UserError(f"{error}\n{description}") from error
        say(f"warning: {error}; {description}")
        return pushed


def _create(api: HfApi, target: Target) -> RepositoryState:
    """Create the repository or the branch if it does not exist, and return its state."""
    repo_id, revision = target.repo_id, target.revision
    if target.state is None:
        api.create_repo(repo_id, private=not target.public, exist_ok=True)
    if revision != MAIN and (target.state is None or target.state.head is None):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    state = read_state(api, repo_id, revision)
    if state is None:
        raise UserError(f"{repo_id}: the name is taken by a repository that the token may not see; use another name")
    if state.head is None:
        raise UserError(f"{repo_id} has no branch {revision}, although the hub has just created it; push again later")
    if target.state is None and state.private is target.public:
        kind = "private" if state.private else "public"
        raise UserError(f"{repo_id}: somebody else has just created it, and it is {kind}")
    return state


def _after_failure(api: HfApi, target: Target, package: Package, head: str | None) -> tuple[Pushed | None, str]:
    """Find out what a failed push has changed.

    Args:
        head: commit of the branch before the push; None if the push failed before this commit was known.

    Returns:
        The result, and a text that describes the state of the repository. The result is None unless the commit arrived and only
        the response was lost.
    """
    repo_id, revision, url = target.repo_id, target.revision, _address(api, target.repo_id)
    try:
        with asking(f"reading the state of {repo_id}"):
            state = read_state(api, repo_id, revision)
            tree = _list_files(api, repo_id, state.head or MAIN) if state else {}
    except UserError as error:
        return None, f"{url}, {revision}: the state is unknown ({error}); check it before you push again"
    if state is None:
        return None, f"{repo_id} does not exist; nothing was created"
    if target.create_pr:
        return None, f"{repo_id}, {revision} is unchanged; if {url}/discussions lists a pull request of this push, close it"
    if head and state.head and state.head != head:
        if not package.differences(tree) and not package.outdated(tree):
            pushed = Pushed(repo_id, url, state.head, revision, state.private, True, target.tag)
            return pushed, f"the commit {state.head} arrived nevertheless"
        return None, (
            f"{repo_id}, {revision} has moved from {head} to {state.head} during the push, so the commit was not accepted; check "
            f"{url}/commit/{state.head}, and push again"
        )
    if target.state is None or (target.state.head is None and state.head):
        place, command = f"the branch {revision} of {repo_id}", f"hf repos branch delete {repo_id} {revision}"
        if target.state is None:
            place, command = repo_id, f"hf repos delete {repo_id}"
        others = target.state is None and not set(tree) <= INITIAL_FILES
        advice = "it contains files of somebody else" if others else f"if you do not push again, remove it with `{command}`"
        return None, f"{place} did not exist before this push, and contains none of its files now; {advice}"
    return None, f"{repo_id}, {revision} is unchanged ({state.head or 'there is no such branch'}); push again later"


def _check_commit(api: HfApi, package: Package, pushed: Pushed) -> None:
    """Compare the files of a commit with those that were sent, by size and hash.

    Raises:
        UserError: the files differ, or the commit could not be listed.
    """
    address = f"{pushed.url}/commit/{pushed.commit}"
    try:
        with asking(f"checking the files of {pushed.repo_id}"):
            tree = _list_files(api, pushed.repo_id, pushed.commit)
    except UserError as error:
        raise UserError(f"the commit {address} was made, but could not be checked: {error}\nPush again to check it") from error
    if damaged := package.differences(tree) + package.outdated(tree):
        raise UserError(
            f"the commit {address} differs from what was sent ({', '.join(damaged)}), and is now in {pushed.revision}; push "
            "again to replace these files, or revert the commit"
        )


def _set_tag(api: HfApi, tag: str, pushed: Pushed) -> None:
    try:
        with asking(f"setting the tag {tag} of {pushed.repo_id}"):
            api.create_tag(pushed.repo_id, tag=tag, revision=pushed.commit)
    except UserError as error:
        raise UserError(
            f"--tag: the model was pushed to {pushed.repo_id} (commit {pushed.commit}), but the tag {tag} was not set: {error}\n"
            f"To set it: push again with --tag {tag}"
        ) from error


def _list_files(api: HfApi, repo_id: str, commit: str) -> dict[str, RepoFile]:
    """Return the files of a commit, with sizes and hashes, by name."""
    entries = api.list_repo_tree(repo_id, recursive=True, revision=commit)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _address(api: HfApi, repo_id: str) -> str:
    return f"{api.endpoint}/{repo_id}"


def _announce(package: Package, changed: list[str], outdated: list[str]) -> None:
    sizes = {name: package.files[name].stat().st_size for name in changed}
    large = [f"{name} ({size / 1e6:,.0f} MB)" for name, size in sizes.items() if size >= LARGE_FILE]
    say(f"sending {len(changed)} files{', among them ' if large else ''}{', '.join(large)}")
    if outdated:
        say(f"deleting files of an earlier model: {', '.join(outdated)}")


@contextmanager
def _progress_bars_on_terminals() -> Iterator[None]:
    """Hide the upload progress bars of huggingface_hub within the context unless standard error is a terminal."""
    hide = not (console.is_terminal or are_progress_bars_disabled())
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()
