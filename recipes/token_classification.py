"""Named entity recognition on your own files or a dataset from the Hugging Face Hub.

    python recipes/token_classification.py
    python recipes/token_classification.py --data.train train.conll --data.validation null --data.test test.conll \\
        --task.tags tags --output_dir runs/entities
    python recipes/token_classification.py --data.train texts.jsonl --data.validation null --data.test null \\
        --task.text text --task.spans spans --output_dir runs/entities

Without arguments, BERT-base is fine-tuned on CoNLL-2003, both from the hub. Expect a test F1 of about 0.91 (Devlin et al. 2019
report 92.4 % with document context) after about 10 minutes on a recent GPU (an estimate).
"""

from nlp_transfer import DataConfig, RunConfig, TrainingConfig, recipe

config = RunConfig(
    model="google-bert/bert-base-cased",
    data=DataConfig(train="tomaarsen/conll2003", validation="tomaarsen/conll2003", test="tomaarsen/conll2003"),
    task={"name": "token_classification", "tokens": "tokens", "tags": "ner_tags"},
    training=TrainingConfig(epochs=3),
    output_dir="runs/token_classification",
)

if __name__ == "__main__":
    recipe(config)
