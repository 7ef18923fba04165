"""Pushing a saved model to a hub: all of it or nothing.

Everything is checked first; a repository is made only then. All files go up in one commit, which names the commit that it was
made for, so that it is refused where somebody else came in between, and cannot happen twice. At the end the hub's own listing is
compared with the files by their hashes. Where something fails for good, what this push made is taken back.

Of files that the repository has and the folder has not, those are deleted, in the same commit, that this toolkit writes or
that a loader might take in place of the new weights: weights in any format, configurations, tokenizers, records. All else stays.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

from nlp_transfer.hub.client import HubError
from nlp_transfer.hub.package import Package, make_package
from nlp_transfer.hub.permissions import Target, check_name, check_target
from nlp_transfer.hub.repository import MAIN, MovedError, Operations, Remote, Tree
from nlp_transfer.hub.retries import HubAnswerError, one_try_each
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import UserError

RIVALS = 5  # how often somebody else may commit in between
BIG = 10_000_000  # bytes, from which on a file is named
FRESH = (".gitattributes",)  # all that a new repository holds


@dataclass(frozen=True)
class Pushed:
    """What became of a push."""

    repo_id: str
    url: str
    commit: str
    revision: str
    """A branch, or `refs/pr/N`."""
    private: bool
    changed: bool
    """False where the repository held all of it already, and no commit was made."""
    tag: str | None = None


class DamagedError(UserError):
    """A commit that does not hold what was sent. `tree` was there before it, at `parent`; `arrived` is what it holds."""

    def __init__(self, message: str, commit: str, parent: str, tree: Tree, arrived: Tree) -> None:
        super().__init__(message)
        self.commit, self.parent, self.tree, self.arrived = commit, parent, tree, arrived


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
    """Sends a saved model to a hub in one commit: weights, tokenizers, model card, and the records of its training.

    Args:
        model: a run folder, a model folder or an adapter folder.
        repo_id: USER/NAME. It is created, private unless `public`, where it is not there; else its visibility stays.
        revision: a branch, made from main where it is not there.
        create_pr: propose the commit as a pull request.
        tag: a new tag for the commit.
        adapter: of a run, its adapter in place of the merged model.
        token: default: HF_TOKEN, or that of `hf auth login`.
        message: of the commit.

    Raises:
        UserError: something does not allow the push, or the hub did not answer. The repository is as it was before (where
            it is not, the message says so).
    """
    check_name(repo_id)
    remote = Remote(repo_id, token)
    with one_try_each(f"pushing to {repo_id}"):
        target = check_target(remote, public, revision, create_pr, tag)
        package = make_package(model, repo_id, adapter)
        remote.check_card(package.card)
        before = _make_place(remote, target)
        try:
            message = message or f"Push {package.folder.name} with nlp_transfer"
            pushed = _send(remote, target, package, before, message, uuid4().hex)
        except BaseException as error:
            _take_back(remote, target, before, package, error)
            raise
        if tag:
            _set_tag(remote, tag, pushed)
    kind = "private" if pushed.private else "public"
    done = f"{remote.url} ({kind}), {pushed.revision} at {pushed.commit[:8]}"
    say(f"pushed to {done}" if pushed.changed else f"nothing is new: {done} holds all of it already, no commit was made")
    return pushed


def check_push(repo_id: str) -> None:
    """Whether the token may push to a repository, before there is something to push.

    Raises:
        UserError: as `push`.
    """
    check_name(repo_id)
    with one_try_each(f"asking whether {repo_id} may be pushed to"):
        check_target(Remote(repo_id))


def push_run(folder: Path, repo_id: str) -> Pushed:
    """Pushes a run that was just finished.

    Raises:
        UserError: the push failed; the run is finished all the same, and the message says how to push it later.
    """
    try:
        return push(folder, repo_id)
    except UserError as error:
        raise UserError(
            f"the run is finished and lies whole in {folder}, but it was not pushed: {error}\nTo push it later: "
            f"nlp-transfer push {shlex.quote(str(folder))} {repo_id}"
        ) from error


@dataclass(frozen=True)
class _Before:
    """How things stood before the push; `made` is what it made itself: repository, branch, or nothing."""

    made: str
    private: bool
    head: str
    tree: Tree


def _make_place(remote: Remote, target: Target) -> _Before:
    """The repository and the branch, made where they are not there."""
    made = ""
    if target.info is None:
        _create(remote, target)
        made = "repository"
    try:
        if target.revision != MAIN and (target.info is None or target.info.head is None):
            remote.create_branch(target.revision)
            made = made or "branch"
        info = remote.info(target.revision)
        if info is None or info.head is None:
            raise UserError(f"{target.repo_id}: {target.revision} was made and is not there; push again later")
        return _Before(made, info.private, info.head, remote.tree(info.head))
    except BaseException:
        if made:
            _remove(remote, target, made, [])
        raise


def _create(remote: Remote, target: Target) -> None:
    """A new repository. It is never mistaken for one that somebody else has made in between."""
    taken = f"{target.repo_id}: the name is taken by a repository that the token may not see; allowed: another name"
    try:
        if remote.create(not target.public):
            return
    except HubAnswerError as answer:
        if answer.status == 409:
            raise UserError(taken) from answer
        raise
    except HubError:
        found = remote.info()
        if found is not None and found.head is not None and set(remote.tree(found.head)) <= set(FRESH):
            _remove(remote, target, "repository", [])
        raise
    found = remote.info()
    if found is None or found.head is None:
        raise UserError(taken)
    if found.private is target.public or set(remote.tree(found.head)) - set(FRESH):
        raise UserError(f"{target.repo_id}: somebody else has made it just now; push again")


def _send(remote: Remote, target: Target, package: Package, before: _Before, message: str, mark: str) -> Pushed:
    """One commit, if one is needed, and the comparison with what is then there."""
    additions: dict[str, CommitOperationAdd] = {}
    head, tree, revision = before.head, before.tree, target.revision
    for attempt in range(RIVALS):
        changed, outdated = package.differences(tree), package.outdated(tree)
        if not changed and not outdated:
            return Pushed(target.repo_id, remote.url, head, revision, before.private, False, target.tag)
        for path in changed:
            additions.setdefault(path, CommitOperationAdd(path, package.files[path].place))
        _announce(package, changed, outdated, attempt > 0)
        files = [additions[path] for path in changed]
        remote.send(files, revision, target.create_pr)
        operations: Operations = [*files, *map(CommitOperationDelete, outdated)]
        try:
            if target.create_pr:
                commit, revision = remote.propose(operations, head, revision, message, mark)
            else:
                commit = remote.commit(operations, head, revision, message, mark)
        except MovedError:
            head, tree = _now(remote, target)
            continue
        arrived = remote.tree(commit)
        if wrong := package.differences(arrived) + package.outdated(arrived):
            where = f"{target.repo_id}, {commit[:8]}"
            raise DamagedError(f"{where}: the hub does not hold what was sent ({', '.join(wrong)}); push again", commit, head,
                               tree, arrived)  # fmt: skip
        return Pushed(target.repo_id, remote.url, commit, revision, before.private, True, target.tag)
    raise UserError(f"{target.repo_id}: others commit to {revision} all the time; push again later")


def _now(remote: Remote, target: Target) -> tuple[str, Tree]:
    info = remote.info(target.revision)
    if info is None or info.head is None:
        raise UserError(f"{target.repo_id}: {target.revision} was removed while this push was under way")
    return info.head, remote.tree(info.head)


def _announce(package: Package, changed: list[str], outdated: list[str], again: bool) -> None:
    if again:
        say("somebody else has committed in between; the push is made on top of that")
    big = [f"{path} ({package.files[path].size / 1e6:,.0f} MB)" for path in changed if package.files[path].size >= BIG]
    say(f"sending {len(changed)} files{', ' if big else ''}{', '.join(big)}")
    if outdated:
        say(f"deleting what belongs to the model before: {', '.join(outdated)}")


def _set_tag(remote: Remote, tag: str, pushed: Pushed) -> None:
    try:
        remote.tag(tag, pushed.commit)
    except UserError as error:
        raise UserError(
            f"--tag: the model was pushed to {pushed.repo_id} (commit {pushed.commit}), its tag {tag} was not set: {error}"
        ) from error


def _take_back(remote: Remote, target: Target, before: _Before, package: Package, error: BaseException) -> None:
    """After a failure for good: removes what this push made, and undoes a commit that arrived damaged."""
    where = f"{target.repo_id}, {target.revision}"
    if target.create_pr:
        request = " but for the pull request, which is to be closed" if isinstance(error, DamagedError) else ""
        say(f"{where}: is as it was{request}")
        return
    try:
        head, tree = _now(remote, target)
        if head == before.head and not before.made:
            return
        if not package.differences(tree) and not package.outdated(tree):
            say(f"{where}: the commit did arrive, and is whole ({head})")
        elif before.made:
            strangers = set(tree) - set(before.tree) - set(package.files)
            _remove(remote, target, before.made, sorted(strangers))
        elif isinstance(error, DamagedError) and head == error.commit:
            remote.commit(_undo(error), head, target.revision, f"Take back {head[:8]}, which arrived damaged", uuid4().hex)
            say(f"{where}: the commit was taken back; the files are as they were")
        elif isinstance(error, DamagedError):
            say(f"warning: {where}: others have committed on top of {error.commit}; before it was {error.parent}")
    except (UserError, MovedError) as other:
        made = f"; the {before.made} was made by this push, remove it by hand if it is empty" if before.made else ""
        say(f"warning: {where}: cannot be looked at after the failure ({other}); before the push it was {before.head}{made}")


def _undo(error: DamagedError) -> Operations:
    """What puts the files back to what they were before a commit."""
    paths = {path for path in {*error.tree, *error.arrived} if _blob(error.tree, path) != _blob(error.arrived, path)}
    return [
        CommitOperationCopy(path, path, src_revision=error.parent) if path in error.tree else CommitOperationDelete(path)
        for path in sorted(paths)
    ]


def _blob(tree: Tree, path: str) -> str | None:
    return tree[path].blob_id if path in tree else None


def _remove(remote: Remote, target: Target, made: str, strangers: list[str]) -> None:
    """Removes a repository or a branch that this push made, unless somebody else has put something there."""
    what = target.repo_id if made == "repository" else f"the branch {target.revision} of {target.repo_id}"
    if strangers:
        say(f"warning: {what} was made by this push, and stays: others have put {', '.join(strangers)} there")
        return
    try:
        remote.delete() if made == "repository" else remote.delete_branch(target.revision)
        say(f"{what} was made by this push, and was removed again")
    except UserError as other:
        say(f"warning: {what} was made by this push and is left empty: it could not be removed ({other}); remove it by hand")
