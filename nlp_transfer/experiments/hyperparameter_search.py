"""Search for better settings with Optuna: trials are judged on validation; the best settings are tested once."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from nlp_transfer.experiments.compare import run_all, show_results, write_results
from nlp_transfer.experiments.experiment import Experiment, open_experiment, output_folder, raw_settings
from nlp_transfer.experiments.plan import Plan, PlannedRun, make_plan
from nlp_transfer.experiments.results_table import notes
from nlp_transfer.experiments.runs import Outcome, Pruned
from nlp_transfer.experiments.search_results import importance_plot, judge, write_trials
from nlp_transfer.experiments.search_space import FACTOR, Space, default_space, defaults_in, examples, read_space, suggest, used
from nlp_transfer.experiments.summary_rows import SummaryRow, summarize
from nlp_transfer.run.document import merge
from nlp_transfer.run.resolve import SEARCH_SPACE, resolve
from nlp_transfer.settings.base_settings import Document
from nlp_transfer.settings.schema import RunConfig
from nlp_transfer.training.callbacks import Callback, Trainer
from nlp_transfer.utils.atomic_files import write_bytes
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import Problems, UserError, shorten

STUDY, DATABASE, BEST = "tune", "study.db", "best.yaml"
STARTUP_TRIALS = 5  # trials that are never pruned


@dataclass(frozen=True)
class Tuning:
    """A finished search: its folder, the best settings by dotted name, and the rows of the final comparison on test.

    `best` is empty if no trial was measurably better than the defaults on validation; `winner` has the settings of the best
    trial in any case.
    """

    output_dir: Path
    best: dict[str, Any]
    winner: dict[str, Any]
    rows: list[SummaryRow]
    metric: str
    failed: list[str] = field(default_factory=list)
    """Name and error of each run that crashed."""


class Pruning(Callback):
    """Reports each evaluation to the study, and ends the run if the pruner of the study says so.

    Args:
        storage: address of the storage of the study.
        trial_id: id of the trial in the storage.
        metric: the validation metric to report.
    """

    def __init__(self, storage: str, trial_id: int, metric: str) -> None:
        self.storage, self.trial_id, self.metric = storage, trial_id, metric
        self._trial: Any = None

    def on_evaluate(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Report the metric at the number of the evaluation.

        Raises:
            Pruned: the median of the earlier trials is better.
        """
        import optuna

        if self._trial is None:
            study = optuna.load_study(study_name=STUDY, storage=self.storage, pruner=_pruner())
            self._trial = optuna.trial.Trial(study, self.trial_id)
        number, value = len(trainer.position.history), metrics.get(self.metric, math.nan)
        if math.isfinite(value):
            self._trial.report(value, number)
        if self._trial.should_prune():
            raise Pruned(f"ended after evaluation {number}: {self.metric} {value:.4g} is worse than the median of the trials")


def tune(
    config: RunConfig | Document | str | Path | None = None,
    trials: int = 20,
    seeds: Sequence[int] = (0, 1, 2),
    space: Mapping[str, Any] | None = None,
    output_dir: str | Path | None = None,
    verbose: bool = False,
    **settings: Any,
) -> Tuning:
    """Search for settings that are better than the defaults on validation, and compare both on test.

    The first trial has the default settings. If the best trial is not measurably better on the validation rows, the defaults are
    recommended: its settings are compared on test, but `best.yaml` does not have them. An interrupted search is resumed: an
    unfinished trial is run again, and the resumed search draws the same trials as an undisturbed one.

    Args:
        config: as for `fine_tune`; `settings` override it. Its entry `tune` is the search space.
        trials: number of trials; a finished search can be continued with more.
        seeds: training seeds of the final comparison. The first one is that of the trials; it also determines all splits.
        space: search space. None: that of `config`, or a default for the strategy.
        output_dir: output folder. None means the `output_dir` of the settings, followed by `-tuning`.
        verbose: whether to show the output of the runs.

    Raises:
        UserError: a setting or the data is invalid, no trial succeeded, or `output_dir` contains a search with other settings.
    """
    try:
        import optuna
    except ImportError:
        raise UserError('tune: needs Optuna, which is not installed; to install it: pip install "nlp_transfer[tune]"') from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    raw = raw_settings(config, settings, "tune")
    given = raw.pop(SEARCH_SPACE, None)
    given = given if space is None else space
    folder = output_folder(raw, output_dir, "-tuning")
    if not isinstance(trials, int) or isinstance(trials, bool) or trials < 1:
        raise UserError(f"--trials: found {shorten(trials)}; allowed: a whole number from 1")
    plan, runs = make_plan(raw, [raw.get("strategy", "full")], seeds, None, None, command="tune")
    plan = replace(plan, variants=[replace(plan.variants[0], label="defaults")])
    run = runs[0]
    if missing := [split for split in ("validation", "test") if split not in run.config.data.splits]:
        raise UserError(
            f"tune: found no {missing[0]} split; validation selects the settings, and test measures them once; set "
            f"data.{missing[0]}, or data.{missing[0]}_share (such as 0.2)"
        )
    if run.config.data.split_seed is None:  # all seeds must have the same test rows, which no trial may train on
        plan.base["data"] = {**plan.base["data"], "split_seed": plan.seeds[0]}
    described = given if given is not None else default_space(run.strategy, raw.get("training") or {}, run.task.traits.classes)
    checked = read_space(described)
    _check_values(checked, plan)
    say("search space: " + "; ".join(f"{name} {value}" for name, value in described.items()))
    with open_experiment(
        plan,
        runs,
        folder,
        "validation",
        needs_validation=True,
        verbose=verbose,
        search={"space": dict(described), "seed": plan.seeds[0]},
    ) as experiment:
        experiment.run_count = trials + 2 * len(plan.seeds)
        study = optuna.create_study(
            storage=f"sqlite:///{folder / DATABASE}", study_name=STUDY, load_if_exists=True, pruner=_pruner(),
            direction="maximize" if run.task.scorer.higher_is_better(experiment.metric) else "minimize",
        )  # fmt: skip
        defaults = {"training": run.config.training.model_dump(), "strategy": plan.variants[0].document}
        if isinstance(defaults["strategy"], dict):
            defaults["strategy"] = run.strategy.document()
        _run_trials(study, trials, checked, plan, experiment, defaults_in(checked, defaults))
        done = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
        if not done:
            raise UserError(f"tune: no trial succeeded; the logs are in {folder / 'runs'}")
        winner = _best_settings(study.best_trial, folder)
        is_better, advice = judge(study, folder, run, experiment.metric)
        best = winner if is_better else {}
        write_bytes(folder / BEST, yaml.safe_dump(merge(_portable(raw), list(best.items()))[0], sort_keys=False).encode())
        say(f"best on validation: trial {study.best_trial.number}, {experiment.metric} {study.best_value:.4g}: {winner}", advice)
        variants = plan.variants
        if study.best_trial.user_attrs.get("settings") != {}:
            label = f"tuned (trial {study.best_trial.number})"
            variants = [*variants, replace(variants[0], label=label, settings=tuple(winner.items()))]
        final = replace(plan, variants=variants)
        experiment.split, experiment.run_count = "test", trials + final.run_count
        summary = summarize(final, run_all(final, runs * len(variants), experiment), run)
        summary = replace(summary, name="tuning", advice=advice)
        importances = importance_plot(study)
        lines = [
            f"{len(done)} trials finished, {len(study.trials) - len(done)} were ended early or failed; the recommended settings "
            f"are in {BEST}",
            *([] if importances else ["the importance of the settings is unknown: fewer than two different results to compare"]),
            *notes(summary, plan.seeds, False),
        ]
        write_trials(folder, study)
        heading = "Tuned settings" if len(variants) > 1 else "Search for better settings"
        write_results(folder, summary, plan.seeds, lines, heading=heading, further=importances)
    show_results(folder, summary, lines)
    return Tuning(folder, best, winner, summary.rows, summary.metric, experiment.failed)


def _pruner() -> Any:
    from optuna.pruners import MedianPruner

    return MedianPruner(n_startup_trials=STARTUP_TRIALS)


def _check_values(space: Space, plan: Plan) -> None:
    """Check every choice and the ends of every range."""
    problems = Problems("tune")
    document = plan.document(plan.all_runs()[0], Path("tuning"))
    for name, value in examples(space):
        try:
            # A setting may only have an effect together with another one of the space; `used` then checks its value.
            resolve(merge(document, list(used({name: value}, document["strategy"]).items()))[0], shared=True)
        except UserError as error:
            problems.absorb(error)
    problems.raise_if_any()


def _run_trials(
    study: Any, trials: int, space: Space, plan: Plan, experiment: Experiment, defaults: dict[str, Any] | None = None
) -> None:
    """Run trials until there are `trials` finished ones; those that were interrupted come first.

    Args:
        defaults: the default settings as a point of the space, which the sampler learns from. None: they are not in the space.
    """
    import optuna

    base = plan.document(PlannedRun(plan.variants[0], plan.shots[0], plan.seeds[0]), experiment.folder)
    # A test file is not read by the trials. A test split of train still is, so that no trial trains on its rows.
    base["data"] = {**base["data"], "test": None}
    experiment.server.read(base, plan.seeds[0], needs_validation=True)
    storage = f"sqlite:///{experiment.folder / DATABASE}"
    while True:
        finished = sum(trial.state.is_finished() for trial in study.trials)
        if finished >= trials:
            experiment.number = max(experiment.number, trials)
            return
        if not study.trials and defaults is not None:
            study.enqueue_trial(defaults)
        unfinished = [trial for trial in study.trials if not trial.state.is_finished()]
        running = [trial for trial in unfinished if trial.state == optuna.trial.TrialState.RUNNING]
        # A new sampler for each trial, so that a resumed search draws the same values as an undisturbed one.
        number = unfinished[0].number if unfinished else len(study.trials)
        study.sampler = optuna.samplers.TPESampler(seed=plan.seeds[0] * 1_000_003 + number)
        trial = optuna.trial.Trial(study, running[0]._trial_id) if running else study.ask()
        point = suggest(trial, space) if number > 0 or defaults is not None else {}
        values = {} if number == 0 else used(point, plan.variants[0].document)
        trial.set_user_attr("settings", values)
        experiment.number = trial.number
        rate = values.get(FACTOR, 1.0)
        overrides = [(name, value) for name, value in values.items() if name != FACTOR]
        document, _ = merge(base, overrides)
        document["output_dir"] = str(experiment.folder / "runs" / f"trial-{trial.number:04}")
        title = ", ".join(
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
        )
        callback = Pruning(storage, trial._trial_id, experiment.metric)
        outcome = experiment.execute(title or "the default settings", document, {}, rate, callbacks=[callback], with_test=False)
        _tell(study, trial, outcome, experiment.metric)


def _tell(study: Any, trial: Any, outcome: Outcome, metric: str) -> None:
    """Record the outcome of a trial in the study."""
    from optuna.trial import TrialState

    value = outcome.metric("validation", metric)
    if outcome.pruned:
        study.tell(trial, state=TrialState.PRUNED)
    elif value is None or not math.isfinite(value):
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, value)


def _best_settings(trial: Any, folder: Path) -> dict[str, Any]:
    """Return the settings of a trial by dotted name, with the learning rate that its run resolved."""
    best = dict(trial.user_attrs["settings"])
    if best.pop(FACTOR, None) is not None:  # the runs of the comparison have the same rate
        path = folder / "runs" / f"trial-{trial.number:04}" / "config.yaml"
        best["training.learning_rate"] = yaml.safe_load(path.read_text(encoding="utf-8"))["training"]["learning_rate"]
    return best


def _portable(raw: Document) -> Document:
    """Return the settings with paths as text; sources in memory cannot be part of a YAML file and are described."""
    data = raw.get("data") or {}
    plain = {name: value if _is_plain(value) else f"<{type(value).__name__}>" for name, value in data.items()}
    return {**raw, "data": plain, "output_dir": str(raw.get("output_dir", "runs/tuned"))}


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, float, list, dict, type(None)))
