"""Training with Accelerate: loop, optimizer, learning rate schedule, and checkpoints."""

from nlp_transfer.training.trainer import Trainer, TrainingError

__all__ = ["Trainer", "TrainingError"]
