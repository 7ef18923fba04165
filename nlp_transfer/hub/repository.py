"""A repository on a hub: what is asked of it and done to it, each call made again where it got no answer."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from nlp_transfer.hub.retries import HubAnswerError, NoAnswerError, again, bars_on_terminals, within
from nlp_transfer.utils.errors import UserError

Operations = Sequence[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete]
Tree = dict[str, RepoFile]
COMMIT = re.compile(r"[0-9a-f]{40}")
MAIN = "main"
GONE = 404


class MovedError(Exception):
    """Somebody else committed in between."""


@dataclass(frozen=True)
class Info:
    """What a repository is; `head` is the commit that the revision is at, None where there is no such revision."""

    private: bool
    head: str | None


class Remote:
    """A repository by its id. Without a token nothing can be asked: None takes HF_TOKEN, or the token of a login.

    Raises:
        UserError: there is no token.
    """

    def __init__(self, repo_id: str, token: str | None = None) -> None:
        self.repo_id = repo_id
        found = token or get_token()
        if not found:
            raise UserError(
                f"{repo_id}: there is no token to push with; allowed: the environment variable HF_TOKEN, or a login with "
                "`hf auth login`"
            )
        self._token = found
        self._api = HfApi(token=found, library_name="nlp_transfer", library_version=version("nlp_transfer"))

    @property
    def url(self) -> str:
        return f"{self._api.endpoint}/{self.repo_id}"

    def whoami(self) -> dict[str, Any]:
        """Whom the token belongs to. Raises a HubAnswerError where the hub does not know it."""
        found: dict[str, Any] = again(f"{self.repo_id}: asking whose token it is", self._api.whoami)
        return found

    def info(self, revision: str = MAIN) -> Info | None:
        """None where there is no such repository, or none that the token may see."""

        def ask(at: str | None) -> Any:
            return again(f"looking at {self.repo_id}", lambda: self._api.model_info(self.repo_id, revision=at))

        try:
            found = ask(revision)
        except HubAnswerError as answer:
            if isinstance(answer.error, RepositoryNotFoundError):
                return None
            if isinstance(answer.error, RevisionNotFoundError):
                return Info(bool(ask(None).private), None)
            raise
        return Info(bool(found.private), found.sha)

    def refs(self) -> Any:
        """Branches, tags and pull requests, each with `ref` and `target_commit`."""
        what = f"listing the branches of {self.repo_id}"
        return again(what, lambda: self._api.list_repo_refs(self.repo_id, include_pull_requests=True))

    def tree(self, commit: str) -> Tree:
        """The files of a commit, with sizes and hashes."""

        def ask() -> Tree:
            entries = self._api.list_repo_tree(self.repo_id, recursive=True, revision=commit)
            return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

        return again(f"listing the files of {self.repo_id}", ask)

    def check_card(self, content: str) -> None:
        """Raises a UserError with what the hub finds wrong in a model card."""
        try:
            again(f"{self.repo_id}: checking the model card", lambda: ModelCard(content).validate())
        except HubAnswerError as answer:
            if answer.status != 400:
                raise
            said = (answer.error.server_message or "").replace("\n", "; ")
            reason = said or "without a reason"
            raise UserError(
                f"README.md: the hub refuses the model card of {self.repo_id} ({reason}); correct its head"
            ) from answer

    def create(self, private: bool) -> bool:
        """Whether it was made for sure; where an answer was lost and the name is taken now, somebody else may have made it.

        Raises:
            HubAnswerError: 409 where the name is taken.
        """
        tries = 0

        def once() -> bool:
            nonlocal tries
            tries += 1
            try:
                self._api.create_repo(self.repo_id, private=private)
            except HfHubHTTPError as error:
                if tries == 1 or error.response.status_code != 409:
                    raise
                return False
            return True

        return again(f"creating {self.repo_id}", once)

    def delete(self) -> None:
        again(f"removing {self.repo_id}", lambda: self._api.delete_repo(self.repo_id, missing_ok=True))

    def create_branch(self, name: str) -> None:
        again(
            f"{self.repo_id}: creating the branch {name}",
            lambda: self._api.create_branch(self.repo_id, branch=name, exist_ok=True),
        )

    def delete_branch(self, name: str) -> None:
        try:
            again(f"{self.repo_id}: removing the branch {name}", lambda: self._api.delete_branch(self.repo_id, branch=name))
        except HubAnswerError as answer:
            if answer.status != GONE:
                raise

    def tag(self, name: str, commit: str) -> None:
        """Raises a UserError where the tag stands elsewhere already."""
        try:
            again(
                f"{self.repo_id}: setting the tag {name}", lambda: self._api.create_tag(self.repo_id, tag=name, revision=commit)
            )
        except HubAnswerError as answer:
            if answer.status != 409 or not any(one.name == name and one.target_commit == commit for one in self.refs().tags):
                raise

    def send(self, additions: Iterable[CommitOperationAdd], revision: str, create_pr: bool) -> None:
        """Large files, before the commit that names them. What was sent is not sent again."""
        files = list(additions)

        def once() -> None:
            try:
                self._api.preupload_lfs_files(
                    self.repo_id, files, revision=revision, create_pr=create_pr, free_memory=False, num_threads=2
                )
            except (RuntimeError, ConnectionError, TimeoutError) as error:  # hf_xet has connections and errors of its own
                if within(error, HfHubHTTPError) or within(error, NoAnswerError):
                    raise
                raise NoAnswerError(f"the upload failed ({error})") from error

        with bars_on_terminals():
            again(f"sending files to {self.repo_id}", once)

    def commit(self, operations: Operations, parent: str, revision: str, message: str, mark: str) -> str:
        """On a branch, or the branch of a pull request, that is at `parent`; gives the new commit.

        Args:
            mark: a word that no other commit's description has: by it a commit is found whose answer was lost.

        Raises:
            MovedError: somebody else has committed to the branch.
        """

        def once() -> str:
            made: str = self._commit(operations, parent, revision, message, mark).oid
            return made

        def arrived() -> str | None:
            now = self.info(revision)
            if now is not None and now.head == parent:
                return None
            if found := self._marked(revision, mark):
                return found
            raise MovedError(revision)

        try:
            return again(f"committing to {self.repo_id}", once, arrived)
        except HubAnswerError as answer:
            if answer.status not in (409, 412):
                raise
            if found := arrived():  # the answer to an earlier try was lost
                return found
            raise MovedError(revision) from answer

    def _marked(self, revision: str, mark: str) -> str | None:
        """The commit whose description holds the mark, where there is one."""
        what = f"listing the commits of {self.repo_id}"
        commits = again(what, lambda: self._api.list_repo_commits(self.repo_id, revision=revision))
        return next((one.commit_id for one in commits if mark in one.message), None)

    def propose(self, operations: Operations, parent: str, revision: str, message: str, mark: str) -> tuple[str, str]:
        """A pull request with one commit: its commit, and its name as a revision (`refs/pr/1`)."""
        before = {one.ref for one in self.refs().pull_requests}

        def once() -> tuple[str, str]:
            made: Any = self._commit(operations, parent, revision, message, mark, create_pr=True)
            return made.oid, str(made.pr_revision)

        def arrived() -> tuple[str, str] | None:
            new = [one for one in self.refs().pull_requests if one.ref not in before]
            return next(((one.target_commit, one.ref) for one in new if self._marked(one.ref, mark)), None)

        return again(f"opening a pull request for {self.repo_id}", once, arrived)

    def _commit(
        self, operations: Operations, parent: str, revision: str, message: str, mark: str, create_pr: bool = False
    ) -> Any:
        return self._api.create_commit(
            self.repo_id,
            operations,
            commit_message=message,
            commit_description=f"nlp_transfer {version('nlp_transfer')}, {mark}",
            revision=revision,
            parent_commit=parent,
            create_pr=create_pr,
        )
