"""Check a run completely and estimate its duration and memory, without training it and without an output folder."""

from dataclasses import replace

from nlp_transfer.data.unused_settings import describe_unused
from nlp_transfer.run.folder import Resume, RunFolder
from nlp_transfer.run.resolve import resolve
from nlp_transfer.run.run import Run
from nlp_transfer.run.stages import build, encode, read
from nlp_transfer.run.step_timing import Estimate, Stopwatch
from nlp_transfer.run.strategy_choice import estimate_candidates
from nlp_transfer.settings.base_settings import Document
from nlp_transfer.settings.launch_config import check_launch
from nlp_transfer.strategies import Strategy, parts_of
from nlp_transfer.training.callbacks import note_on_callbacks
from nlp_transfer.training.interruption import Signals
from nlp_transfer.utils.console import Level, duration, number, say


def dry_run(document: Document, resume: Resume = "auto", allow_hub_metrics: bool = False) -> Estimate | None:
    """Do everything that precedes training, then a few optimizer steps; print the settings and an estimate.

    Nothing is written to `output_dir`. Trackers and the user's callbacks are not started.

    Args:
        document: settings of the run.
        resume: as in `fine_tune`.
        allow_hub_metrics: as in `fine_tune`.

    Returns:
        The estimate, or None if the strategy takes no optimizer steps or is chosen by trials.

    Raises:
        UserError: settings or data are invalid.
        TrainingError: the loss is not finite, or memory is insufficient.
    """
    check_launch()
    run, watch = resolve(document), Stopwatch()
    say(*describe_unused(run.unused.items()), *note_on_callbacks(run.callbacks))
    training = run.config.training.model_copy(update={"trackers": [], "callbacks": []})
    run = replace(run, config=run.config.model_copy(update={"training": training}), callbacks=[watch])
    with RunFolder(run.config.output_dir, resume) as folder, Signals():
        folder.check()
        run = read(run, allow_hub_metrics)
        if run.strategy.traits.choice is not None:
            estimate_candidates(run)
            say("dry run: all checks passed; trials would choose the strategy; nothing was written", level=Level.QUIET)
            return None
        run = build(encode(run), folder, dry=True)
        if not run.strategy.traits.takes_steps:
            say("dry run: all checks passed; the strategy takes no optimizer steps; nothing was written", level=Level.QUIET)
            return None
        estimate = watch.run(run.trainer)
        unfinished = folder.unfinished
    say(*_lines(run, watch, estimate, unfinished), level=Level.QUIET)
    return estimate


def _lines(run: Run, watch: Stopwatch, estimate: Estimate, unfinished: bool) -> list[str]:
    has_phases = any(type(part).next_phase is not Strategy.next_phase for part in parts_of(run.strategy).values())
    lines = [
        f"dry run: {len(watch.seconds)} optimizer steps, {number(estimate.step_seconds, 3)} seconds each, first loss "
        f"{number(estimate.loss)}",
        f"estimate: {duration(estimate.seconds)} for {estimate.steps:,} steps{' of the first phase' if has_phases else ''}, "
        f"without evaluations; {estimate.peak_memory_bytes / 2**30:.2f} GiB of memory so far (longer texts need more)",
    ]
    if unfinished:
        lines.append(f"{run.config.output_dir} holds an unfinished run, which train would resume")
    return [*lines, "all checks passed; nothing was written"]
