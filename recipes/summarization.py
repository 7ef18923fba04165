"""Summarization on your own table or a dataset from the Hugging Face Hub.

    python recipes/summarization.py
    python recipes/summarization.py --data.train mine.csv --data.validation null --data.test test.csv --task.text body \\
        --task.summary headline --output_dir runs/mine

Without arguments, BART (139 M parameters) is fine-tuned on SAMSum, short dialogues with summaries, both from the hub. ROUGE needs
`pip install rouge-score`. Other models:

    --model google-t5/t5-small --task.prefix 'summarize: '
    --model facebook/mbart-large-cc25 --task.source_language de_DE --task.target_language de_DE --strategy.name lora
    --model google-bert/bert-base-uncased --task.target_tokenizer source   # a new encoder-decoder

Expect a test ROUGE-1 of about 50 after about 30 minutes on a recent GPU. Both numbers are estimates.
"""

from nlp_transfer import DataConfig, RunConfig, TrainingConfig, recipe

config = RunConfig(
    model="facebook/bart-base",
    data=DataConfig(train="knkarthick/samsum", validation="knkarthick/samsum", test="knkarthick/samsum"),
    task={"name": "summarization", "text": "dialogue", "summary": "summary", "beams": 4},
    training=TrainingConfig(epochs=3, learning_rate=5e-5, batch_size=16),
    output_dir="runs/summarization",
)

if __name__ == "__main__":
    recipe(config)
