"""Names of the files and folders in the output folder of a run."""

from nlp_transfer.data.bad_rows import SKIPPED_ROWS

ENCODER = "encoder"  # in the folder of a model with a head of this package: its encoder alone
PREDICTIONS = "predictions"
OUT_OF_FOLD = "out_of_fold.parquet"  # in the folder of a cross-validation
DATA_FACTS = "data_facts.json"
REPORT = "report.html"
STRATEGY_CHOICE = "strategy_choice.json"
RUN_FILES = (
    "config.yaml", "result.json", "log.jsonl", "model", "adapter", PREDICTIONS, "checkpoints", "biases.safetensors", "tasks",
    "shared", SKIPPED_ROWS, DATA_FACTS, REPORT, STRATEGY_CHOICE,
)  # fmt: skip
