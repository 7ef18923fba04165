"""The visible loop on Accelerate, optimisers, checkpoints."""

from nlp_transfer.training.loop import Trainer, TrainingFailed

__all__ = ["Trainer", "TrainingFailed"]
