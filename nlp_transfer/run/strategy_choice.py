"""Replace `strategy: auto` by one of its candidates: estimate their time, try them on held-out training rows, and decide."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from accelerate.utils import set_seed

from nlp_transfer.data.unused_settings import describe_unused
from nlp_transfer.report.choice_table import choice_table
from nlp_transfer.run.folder import RunFolder
from nlp_transfer.run.resolve import resolve
from nlp_transfer.run.run import Run
from nlp_transfer.run.strategy_race import Candidate, Race, decide
from nlp_transfer.run.strategy_trials import HeldOutFolds, Speed, measure, pooled
from nlp_transfer.saved_models.layout import STRATEGY_CHOICE
from nlp_transfer.strategies import strategy_from
from nlp_transfer.utils.atomic_files import write_json
from nlp_transfer.utils.console import duration, say, show_table
from nlp_transfer.utils.distributed import world_size
from nlp_transfer.utils.errors import Problems, UserError

TRIAL_SHARE = 0.25  # of the time allowed


@dataclass(frozen=True)
class StrategyChoice:
    """The choice between the candidates: the content of `strategy_choice.json`."""

    strategy: Any
    """Document of the chosen strategy."""
    reason: str
    metric: str = ""
    training_rows: int = 0
    """Rows that each trial was trained on, of `rows`; `held_out_rows` in `folds` folds were scored."""
    rows: int = 0
    held_out_rows: int = 0
    folds: int = 0
    seconds: float = 0.0
    """Duration of the choice, of `seconds_allowed` for choice and training."""
    seconds_allowed: float = 0.0
    model: str = ""
    candidates: list[Candidate] = field(default_factory=list)


def choose_strategy(run: Run, folder: RunFolder) -> Run:
    """Return the run with one of the candidates of its strategy, or unchanged if its strategy trains itself.

    The choice is written to `strategy_choice.json` in `folder`, and a resumed run reads it there: it is never made again.

    Raises:
        UserError: no candidate is possible, there are several processes, or the folder has a run with another strategy.
    """
    if run.strategy.traits.choice is None:
        return run
    if world_size() > 1:
        raise UserError(
            f"strategy.name: found auto with WORLD_SIZE={world_size()}; its trials need a single process; allowed: the name of a "
            "strategy"
        )
    possible, impossible = _possible(run)
    choice = _recorded(run, folder, possible)
    if choice is None:
        choice = _choose(run, possible, impossible)
        _show(choice)
        folder.reserve()
        write_json(folder.path / STRATEGY_CHOICE, asdict(choice))
    else:
        say(f"strategy: {label_of(choice.strategy)}, as chosen earlier ({folder.path / STRATEGY_CHOICE})")
    chosen = possible[label_of(choice.strategy)]
    say(*describe_unused(item for item in chosen.unused.items() if item[0] not in run.unused))
    set_seed(run.config.training.seed)  # the trials have drawn random numbers
    return replace(chosen, choice=asdict(choice))


def estimate_candidates(run: Run) -> None:
    """Print the estimated duration of each candidate."""
    possible, impossible = _possible(run)
    rows = len(run.splits.train)
    lines = [[label, duration(speed.seconds(rows))] for label, speed in _speeds(possible, HeldOutFolds(run)).items()]
    show_table("estimated training time of the candidates", ["strategy", "time"], lines)
    say(*(f"{candidate.label}: {candidate.note}" for candidate in impossible))


def label_of(document: Mapping[str, Any]) -> str:
    """Return the name of a strategy, with the settings that differ from its defaults."""
    strategy = strategy_from(document)
    changed = {name: value for name, value in strategy.model_dump().items() if value != type(strategy).model_fields[name].default}
    return document["name"] + (f" ({', '.join(f'{name} {value}' for name, value in changed.items())})" if changed else "")


def _possible(run: Run) -> tuple[dict[str, Run], list[Candidate]]:
    """Return a run for each candidate that its task and settings allow, by label, and the other candidates.

    Raises:
        UserError: no candidate is possible.
    """
    assert run.strategy.traits.choice is not None
    possible: dict[str, Run] = {}
    impossible: list[Candidate] = []
    problems = Problems("strategy.candidates")
    for document in run.strategy.traits.choice.candidates:
        label = label_of(document)
        try:
            resolved = resolve(run.config, strategy=dict(document), callbacks=run.callbacks)
        except UserError as error:
            problems.absorb(error)
            impossible.append(Candidate(label, document, note=f"not possible: {' '.join(str(error).split())}"))
            continue
        read = {
            name: getattr(run, name) for name in ("task", "checkpoint", "splits", "hub_metrics", "user_metrics", "data_notes")
        }
        possible[label] = replace(resolved, **read).with_validation_share(run.splits.validation_share)
    if not possible:
        problems.raise_if_any()
    return possible, impossible


def _recorded(run: Run, folder: RunFolder, possible: Mapping[str, Run]) -> StrategyChoice | None:
    """Return the choice that an interrupted run has made in the folder.

    Raises:
        UserError: the folder has an unfinished run whose strategy was not chosen from these candidates.
    """
    path = folder.path / STRATEGY_CHOICE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        choice = StrategyChoice(**{**record, "candidates": [Candidate(**each) for each in record["candidates"]]})
        known = label_of(choice.strategy) in possible
    except (OSError, ValueError, TypeError, KeyError):
        choice, known = None, False
    if choice is not None and known and (folder.unfinished or (choice.rows, choice.model) == (_rows(run), run.config.model)):
        return choice
    if folder.unfinished:
        found = "none" if choice is None else str(choice.strategy)
        raise UserError(
            f"strategy.name: found auto; {folder.path} has an unfinished run, and {path.name} in it has no choice from these "
            f"candidates (found {found}); allowed: the settings of that run, or another output_dir"
        )
    return None


def _rows(run: Run) -> int:
    return len(run.splits.train)


def _speeds(possible: Mapping[str, Run], folds: HeldOutFolds) -> dict[str, Speed]:
    return {label: measure(run, folds) for label, run in possible.items()}


def _choose(run: Run, possible: Mapping[str, Run], impossible: Sequence[Candidate]) -> StrategyChoice:
    """Decide, with trials if there are several candidates and enough rows and time."""
    choice = run.strategy.traits.choice
    assert choice is not None
    started = time.monotonic()

    def chosen(label: str, reason: str, **facts: Any) -> StrategyChoice:
        seconds = time.monotonic() - started
        return StrategyChoice(
            possible[label].strategy.document(), reason, rows=_rows(run), seconds=round(seconds, 3),
            seconds_allowed=choice.seconds, model=run.config.model, **facts,
        )  # fmt: skip

    first = next(iter(possible))
    if len(possible) == 1:
        return chosen(first, "it is the only candidate for this task and these settings", candidates=list(impossible))
    folds = HeldOutFolds(run)
    if not folds.are_possible:
        return chosen(first, "there are too few rows for a trial, and it is the first candidate", candidates=list(impossible))
    say(f"strategy: choosing between {', '.join(possible)}; trials take up to {duration(TRIAL_SHARE * choice.seconds)}")
    trials = Race(possible, folds, TRIAL_SHARE * choice.seconds)
    trials.measure()
    trials.drop_slow((1 - TRIAL_SHARE) * choice.seconds)
    trials.fit_sample()
    count = trials.run() if len(trials.left) > 1 else 0
    if not trials.left:
        reasons = "; ".join(f"{label}: {note}" for label, note in trials.notes.items())
        raise UserError(f"strategy.name: found auto; no candidate could be trained: {reasons}")
    final, best = trials.table(trials.left)
    rows = [
        replace(
            final.get(label)
            or trials.dropped.get(label)
            or Candidate(label, possible[label].strategy.document(), trials.seconds(label)),
            note=trials.notes.get(label, ""),
        )
        for label in possible
    ]
    label, reason = decide(final, best or trials.left[0], trials.metric, trials.notes)
    held_out = len(pooled(trials.parts[label])) if trials.parts[label] else 0
    return chosen(
        label, reason, metric=trials.metric, training_rows=trials.rows if count else 0, held_out_rows=held_out, folds=count,
        candidates=[*rows, *impossible],
    )  # fmt: skip


def _show(choice: StrategyChoice) -> None:
    """Print the table of the candidates, and the choice with its reason."""
    if choice.folds:
        show_table(*choice_table(asdict(choice)))
    else:
        say(*(f"{row.label}: {row.note}" for row in choice.candidates if row.note))
    say(f"strategy: {label_of(choice.strategy)}, chosen in {duration(choice.seconds)}: {choice.reason}")
