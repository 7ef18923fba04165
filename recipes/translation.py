"""Any translation: your own files, or a data set of the hub.

    python recipes/translation.py
    python recipes/translation.py --data.train '{source: train.en, target: train.de}' --data.validation null \\
        --data.test '{source: test.en, target: test.de}' --task.prefix '' --output_dir runs/mine

As it stands: an existing translation model (Marian, 74 M parameters) goes on learning from Multi30k, captions of pictures, both
from the hub, which has to be reachable. Other ways, by the checkpoint:

    --model google-t5/t5-small --task.prefix 'translate English to German: '
    --model facebook/nllb-200-distilled-600M --task.source_language eng_Latn --task.target_language deu_Latn --strategy.name lora
    --model google-bert/bert-base-uncased --task.decoder google-bert/bert-base-german-cased   # an encoder-decoder
    --model google-bert/bert-base-cased --data.train wmt/wmt14:de-en --data.validation wmt/wmt14:de-en \\
        --data.test wmt/wmt14:de-en --training.batch_tokens 8192   # Rothe et al. 2020: about 30 BLEU, after days on several GPUs

Expect a test BLEU of about 40 (a guess from what such models reach; measure yours), after about 10 minutes on a recent GPU; both
are estimates.
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
