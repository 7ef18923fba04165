"""Text classification on your own files or a dataset from the Hugging Face Hub.

    python recipes/text_classification.py
    python recipes/text_classification.py --data.train reviews.csv --data.validation null --data.test heldout.csv \\
        --task.text review --task.label stars --output_dir runs/reviews

Without arguments, BERT-base is fine-tuned on SST-2, both from the hub. Expect a validation accuracy of about 0.93 (Devlin et al.
2019 report 93.5 % on the hidden test set) after about 20 minutes on a recent GPU (an estimate).
"""

from nlp_transfer import DataConfig, RunConfig, TrainingConfig, recipe

config = RunConfig(
    model="google-bert/bert-base-uncased",
    data=DataConfig(
        train="nyu-mll/glue:sst2",
        validation="nyu-mll/glue:sst2",  # the labels of GLUE's test split are not public
    ),
    task={"name": "text_classification", "text": "sentence", "label": "label"},
    training=TrainingConfig(epochs=3),
    output_dir="runs/text_classification",
)

if __name__ == "__main__":
    recipe(config)
