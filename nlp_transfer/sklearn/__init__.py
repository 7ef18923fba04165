"""scikit-learn estimators that fine-tune and apply text models.

They take texts as `X`: a list, array or Series of texts, a table with one column of texts, or one with two columns for pairs.
"""

from nlp_transfer.sklearn.classifiers import MultiLabelTextClassifier, TextClassifier
from nlp_transfer.sklearn.encoder import TextEncoder
from nlp_transfer.sklearn.regressor import TextRegressor

__all__ = ["MultiLabelTextClassifier", "TextClassifier", "TextEncoder", "TextRegressor"]
