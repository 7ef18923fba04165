"""The visible loop on Accelerate, optimisers, checkpoints."""

from nlp_transfer.training.loop import Trainer, TrainingError

__all__ = ["Trainer", "TrainingError"]
