"""Full fine-tuning: every parameter moves.

Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers", 1810.04805; the rates for few rows follow
Mosbach et al. 2021, 2006.04884.
"""

from nlp_transfer.strategies import Strategy


class Full(Strategy):
    """No hook is changed."""
