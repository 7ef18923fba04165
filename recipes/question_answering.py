"""Extractive question answering on SQuAD, or on your own files.

    python recipes/question_answering.py
    python recipes/question_answering.py --data.train train-v2.0.json --data.validation null --data.test dev-v2.0.json \\
        --output_dir runs/squad2
    python recipes/question_answering.py --data.train mine.csv --data.validation null --data.test null --data.test_share 0.1 \\
        --data.group context --task.answers answer --task.answer_start position \\
        --output_dir runs/mine

Without arguments, BERT-base is fine-tuned on SQuAD 1.1 from the hub. Every answer is a span of the context. Question and context
may have 384 tokens; longer contexts are read in windows.

Expect a test F1 of about 88 after about 60 minutes on a recent GPU. Both numbers are estimates.
"""

from nlp_transfer import DataConfig, RunConfig, TrainingConfig, recipe

config = RunConfig(
    model="google-bert/bert-base-uncased",
    data=DataConfig(train="rajpurkar/squad", validation_share=0.02, test="rajpurkar/squad#validation", group="title"),
    task={"name": "question_answering", "max_length": 384, "stride": 128},
    training=TrainingConfig(epochs=2, batch_size=16, learning_rate=3e-5),
    output_dir="runs/squad",
)

if __name__ == "__main__":
    recipe(config)
