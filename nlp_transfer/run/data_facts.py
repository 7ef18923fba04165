"""Facts about the data of a run, for its report: rows, lengths, truncated texts, classes, and inputs with different labels."""

from typing import Any

import numpy as np

from nlp_transfer.data.splits import input_keys, input_texts
from nlp_transfer.run.run import Run
from nlp_transfer.tasks.common.task import token_limit

QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
MOST_CONFLICTS = 20  # examples of inputs with different labels


def data_facts(run: Run) -> dict[str, Any]:
    """Return the content of `data_facts.json`: what a report cannot find in the other files of the run."""
    splits = {
        name: {
            "rows": len(table), "truncated": table.truncated, "mean": float(table.lengths.mean()),
            "lengths": np.quantile(table.lengths, QUANTILES).tolist(),
        }
        for name, table in run.job.tables.items()
    }  # fmt: skip
    facts: dict[str, Any] = {"notes": list(run.data_notes), "splits": splits, "max_length": token_limit(run.task)}
    if "train" not in run.job.tables:
        return facts
    scorer, references = run.task.scorer, run.job.tables["train"].references
    expected = references.get(scorer.reference)
    if expected is not None and (counted := scorer.class_counts({"prediction": scorer.perfect(expected)}, references)):
        names, counts = counted
        facts["classes"] = dict(zip(names, counts[2].tolist(), strict=True))
    if scorer.form == "labels" and expected is not None:
        facts |= _conflicts(run, expected)
    return facts


def _conflicts(run: Run, expected: np.ndarray) -> dict[str, Any]:
    """Return the inputs that occur in the training rows with different labels."""
    rows = run.splits.train
    _, label_of = np.unique(expected, axis=0, return_inverse=True)
    _, key_of = np.unique(input_keys(run.task, rows), return_inverse=True)
    pairs = np.unique(np.stack([key_of.ravel(), label_of.ravel()], 1), axis=0)
    conflicting = np.flatnonzero(np.bincount(pairs[:, 0]) > 1)
    if not len(conflicting):
        return {}
    shown = conflicting[:MOST_CONFLICTS].tolist()
    labels: dict[int, list[str]] = {key: [] for key in shown}
    texts: dict[int, str] = {}
    typed = run.task.scorer.typed(expected)
    for row, text in enumerate(input_texts(run.task, rows)):
        if (key := int(key_of[row])) in labels:
            texts.setdefault(key, text.replace("\0", "|"))
            label = typed[row]
            labels[key].append(" + ".join(map(str, label)) if isinstance(label, list) else str(label))
    examples = [{"input": texts[key], "labels": ", ".join(dict.fromkeys(labels[key]))} for key in shown]
    return {"conflict_inputs": len(conflicting), "conflicts": examples}
