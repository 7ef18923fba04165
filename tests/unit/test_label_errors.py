"""Confident learning: the same list as cleanlab, and what the command reads, prints and writes."""

import numpy as np
import pytest

from nlp_transfer.evaluation.label_errors import RankBy, find_label_errors


def noisy(rows: int, classes: int, flipped: float, sharpness: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return probabilities of a plausible model, given labels and which of these are wrong."""
    generator = np.random.default_rng(seed)
    true = np.minimum(generator.geometric(1.5 / classes, rows) - 1, classes - 1)  # classes of different sizes
    logits = generator.normal(0, 1, (rows, classes)) + sharpness * np.eye(classes)[true]
    wrong = generator.random(rows) < flipped
    labels = np.where(wrong, (true + generator.integers(1, classes, rows)) % classes, true)
    exponentials = np.exp(logits)
    return exponentials / exponentials.sum(1, keepdims=True), labels, wrong


@pytest.mark.parametrize("rank_by", ["self_confidence", "normalized_margin"])
@pytest.mark.parametrize(
    ("rows", "classes", "flipped", "sharpness"),
    [(500, 2, 0.05, 2), (800, 5, 0.1, 3), (3000, 40, 0.05, 5), (200, 30, 0.2, 1), (60, 12, 0.3, 0.5), (40, 25, 0.0, 8)],
)
def test_the_list_is_cleanlabs(rows: int, classes: int, flipped: float, sharpness: float, rank_by: RankBy) -> None:
    """Also with classes of one row or none, and with a model that is hardly better than chance."""
    cleanlab = pytest.importorskip("cleanlab.filter")
    for seed in range(5):
        probabilities, labels, _ = noisy(rows, classes, flipped, sharpness, seed)
        with np.testing.suppress_warnings() as warnings:
            warnings.filter(UserWarning)
            expected = cleanlab.find_label_issues(
                labels, probabilities, filter_by="prune_by_noise_rate", return_indices_ranked_by=rank_by, n_jobs=1
            )
        found = find_label_errors(probabilities, labels, rank_by)
        assert found.rows.tolist() == expected.tolist()
        assert (found.suggested == probabilities.argmax(1)[found.rows]).all()
        assert (np.diff(found.scores) >= 0).all()
