"""Translation on your own files or a dataset from the Hugging Face Hub.

    python recipes/translation.py
    python recipes/translation.py --data.train '{source: train.en, target: train.de}' --data.validation null \\
        --data.test '{source: test.en, target: test.de}' --task.prefix '' --output_dir runs/mine

Without arguments, a translation model (Marian, 74 M parameters) is fine-tuned on Multi30k, a dataset of image captions, both
from the hub. Other models:

    --model google-t5/t5-small --task.prefix 'translate English to German: '
    --model facebook/nllb-200-distilled-600M --task.source_language eng_Latn --task.target_language deu_Latn --strategy.name lora
    --model google-bert/bert-base-uncased --task.decoder google-bert/bert-base-german-cased   # a new encoder-decoder
    --model google-bert/bert-base-cased --data.train wmt/wmt14:de-en --data.validation wmt/wmt14:de-en \\
        --data.test wmt/wmt14:de-en --training.batch_tokens 8192   # Rothe et al. 2020: about 30 BLEU, after days on several GPUs

Expect a test BLEU of about 40 after about 10 minutes on a recent GPU. Both numbers are estimates.
"""

from nlp_transfer import DataConfig, RunConfig, TrainingConfig, recipe

config = RunConfig(
    model="Helsinki-NLP/opus-mt-en-de",
    data=DataConfig(train="bentrevett/multi30k", validation="bentrevett/multi30k", test="bentrevett/multi30k"),
    task={"name": "translation", "source": "en", "target": "de", "target_language": "de"},
    training=TrainingConfig(epochs=3, learning_rate=5e-5, schedule="inverse_sqrt", warmup=500),
    output_dir="runs/translation",
)

if __name__ == "__main__":
    recipe(config)
