"""The results of a finished hyperparameter search: whether its best trial is better than the defaults, a table, and a plot."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nlp_transfer.evaluation.intervals import StrategyScores, compare_strategies
from nlp_transfer.evaluation.resampling import ResampledMetric
from nlp_transfer.experiments.advice import SIGNIFICANT, show_p
from nlp_transfer.experiments.runs import read_outcome
from nlp_transfer.run.run import Run
from nlp_transfer.utils.atomic_files import write_bytes


def judge(study: Any, folder: Path, run: Run, metric: str) -> tuple[bool, str]:
    """Return whether the best trial is measurably better than the defaults on the validation rows, and the advice.

    The best trial was selected, so the p-value of the paired test is multiplied by the number of finished trials (Bonferroni).
    """
    from optuna.trial import TrialState

    done, number = study.get_trials(states=[TrialState.COMPLETE]), study.best_trial.number
    if number == 0:
        return False, f"Keep the defaults: {_best_other(study, done, metric)}"
    outcomes = {each: read_outcome(folder / "runs" / f"trial-{each:04}") for each in (0, number)}
    splits = {each: outcome.scored("validation") for each, outcome in outcomes.items() if outcome and outcome.result}
    if len(splits) < 2:
        return True, f"Take trial {number}: the run with the default settings failed."
    resampled = ResampledMetric(run.task.scorer, metric, list(splits.values()))
    scores = {each: StrategyScores(resampled, {0: split}, shared=True) for each, split in splits.items()}
    gain = compare_strategies(scores[number], scores[0], rows_only=True)
    p = 1.0 if gain is None or gain.p is None else min(1.0, gain.p * len(done))
    values = f"{metric} {scores[number].values[0]:.4g} on validation, {scores[0].values[0]:.4g} with the defaults"
    if p < SIGNIFICANT:
        return (
            True,
            f"Take trial {number}: {values}, which is more than chance (p {show_p(p)}, corrected for {len(done)} trials).",
        )
    return False, (
        f"Keep the defaults: trial {number} is the best ({values}), but the best of {len(done)} trials is that much better by "
        f"chance (p {show_p(p)}, corrected for {len(done)} trials)."
    )


def _best_other(study: Any, done: Sequence[Any], metric: str) -> str:
    """Say that the search found nothing better than the defaults, with their metric and that of the best other trial."""
    default = f"their {metric} on validation is {study.best_trial.value:.4g}"
    others = [trial for trial in done if trial.number != 0]
    if not others:
        return f"{default}, and no trial with other settings finished."
    best = (min if study.direction.name == "MINIMIZE" else max)(others, key=lambda trial: trial.value)
    return (
        f"the search found nothing better. {default[0].upper()}{default[1:]}; the best of {len(others)} finished trials with "
        f"other settings, trial {best.number}, has {best.value:.4g}."
    )


def write_trials(folder: Path, study: Any) -> None:
    """Write `trials.csv`: number, state, validation metric, seconds and settings of each trial."""
    lines = [
        {"trial": trial.number, "state": trial.state.name.lower(), "value": trial.value, **trial.user_attrs.get("settings", {})}
        for trial in study.trials
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(name for line in lines for name in line))
    writer.writeheader()
    writer.writerows(lines)
    write_bytes(folder / "trials.csv", text.getvalue().encode())


def importance_plot(study: Any) -> list[tuple[str, Any]]:
    """Return the plot of the importances of the settings, with its heading; nothing if there are too few trials."""
    import optuna

    drawn = optuna.create_study(direction=study.direction.name.lower())
    drawn.add_trials([trial for trial in study.trials if trial.params])  # the trial with the default settings has none
    try:
        importances = optuna.importance.get_param_importances(
            drawn, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
        )
    except (RuntimeError, ValueError):  # fewer than two trials, or all metrics are equal
        return []
    from nlp_transfer.report.plots import bar_plot, plot_style, to_svg

    if not importances:
        return []
    title = "share of the variance of the validation metric (fANOVA)"
    with plot_style():
        return [("Importance of the settings", to_svg(bar_plot(importances, title), title))]
