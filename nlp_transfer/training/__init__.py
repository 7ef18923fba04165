"""The training loop on Accelerate, with its optimizer, checkpoints and schedule."""

from nlp_transfer.training.trainer import Trainer, TrainingError

__all__ = ["Trainer", "TrainingError"]
