"""A configurable classification head for any encoder, with a new model type for transformers.

No class of transformers has such a head. If a model with this head were saved under an existing model type, transformers would
silently load it with random weights.
transformers refuses the new type until `import nlp_transfer` registers it with the Auto classes and `pipeline`.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from nlp_transfer.models.head_registration import MODEL_TYPE
from nlp_transfer.settings.base_settings import Count, Settings, Share
from nlp_transfer.settings.validation import validate
from nlp_transfer.utils.errors import Problems, UserError, shorten


class HeadConfig(Settings):
    """A head made of pooling, hidden layers with GELU and dropout, and an output layer."""

    hidden: Annotated[list[Annotated[Count, Field(le=8192)]], Field(max_length=8)] = []
    """Sizes of the hidden layers, each at most 8,192. Empty: a single linear layer."""
    dropout: Share | None = None
    """Dropout before each linear layer of the head. null: `training.dropout` if it is set, else 0.1."""
    pooling: Literal["cls", "mean", "max"] = "mean"
    """Pooling of token vectors: the first token's vector, or the mean or maximum over all tokens except padding."""
    layers: Literal["last", "mix"] = "last"
    """Layers that are pooled: the last one, or a learned weighted average of all (Peters et al. 2018, 1802.05365)."""
    normalize: bool = False
    """Scale the pooled vector to length 1, so that only its direction counts."""


class EncoderHeadConfig(PretrainedConfig):
    """A configuration that contains the encoder's configuration as a dict, and the fields of the head."""

    model_type = MODEL_TYPE

    encoder: dict[str, Any] | None = None
    pooling: str = "mean"
    hidden: list[int] | None = None
    head_dropout: float = 0.1
    layers: str = "last"
    normalize: bool = False

    def __init__(self, **kwargs: Any) -> None:
        # transformers creates a configuration without arguments (encoder=None) to compare others with the defaults.
        names = ("encoder", "pooling", "hidden", "head_dropout", "layers", "normalize")
        fields = {name: kwargs.pop(name, getattr(type(self), name)) for name in names}
        super().__init__(**kwargs)
        self._check(fields)
        for name, value in fields.items():
            setattr(self, name, value)

    @staticmethod
    def _check(fields: dict[str, Any]) -> None:
        """Raise a UserError (which is a ValueError) if a configuration file has invalid fields."""
        head = {"dropout" if name == "head_dropout" else name: value for name, value in fields.items() if name != "encoder"}
        problems = Problems()
        validate(HeadConfig, head | {"hidden": fields["hidden"] or []}, problems, "config.json")
        encoder = fields["encoder"]
        families = set(CONFIG_MAPPING) - {MODEL_TYPE}
        if encoder is not None and not (isinstance(encoder, dict) and encoder.get("model_type") in families):
            problems.add(f"config.json.encoder: found {shorten(encoder)}; allowed: the configuration of an encoder")
        problems.raise_if_any()

    def has_shape(self, head: HeadConfig) -> bool:
        """Return whether the stored head has these settings. Its dropout may differ, because that only affects training."""
        stored = (self.pooling, self.hidden or [], self.layers, self.normalize)
        return stored == (head.pooling, head.hidden, head.layers, head.normalize)

    def encoder_config(self) -> PretrainedConfig:
        """Return the encoder's configuration as an instance of its family's class."""
        fields = dict(self.encoder or {})
        if not fields:
            raise UserError("model: config.json has no `encoder` (the encoder's configuration)")
        return AutoConfig.for_model(fields.pop("model_type"), **fields)


def pool(states: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pool token states into one vector for each row.

    Args:
        states: of shape (rows, tokens, width).
        mask: of shape (rows, tokens), 0 for padding.
        pooling: `cls`, `mean` or `max`.

    Returns:
        Vectors of shape (rows, width).
    """
    if pooling == "cls":
        return states[:, 0]
    real = mask[..., None].to(states.dtype)
    if pooling == "mean":
        return (states * real).sum(1) / real.sum(1).clamp(min=1)
    return states.masked_fill(real == 0, torch.finfo(states.dtype).min).amax(1)


def without_pooler(encoder: PreTrainedModel) -> PreTrainedModel:
    """Replace the encoder's built-in pooler, which would be saved but never trained, by an identity.

    It is not set to None, because SqueezeBERT calls its pooler in any case.
    """
    any_encoder: Any = encoder
    if getattr(any_encoder, "pooler", None) is not None:
        any_encoder.pooler = nn.Identity()
    return encoder


class LayerMix(nn.Module):
    """A learned weighted average over layers, from shape (rows, layers, width) to shape (rows, width)."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the weighted average over layers."""
        return (self.weight.softmax(0)[:, None] * vectors).sum(1)


@dataclass
class EncoderHeadOutput(SequenceClassifierOutput):
    """`logits` of shape (rows, labels), and `embedding`, the classifier's input, of shape (rows, width)."""

    embedding: torch.Tensor | None = None


class EncoderHeadForSequenceClassification(PreTrainedModel):
    """Encoder -> pooling -> hidden layers -> logits of shape (rows, labels)."""

    config_class = EncoderHeadConfig
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: EncoderHeadConfig) -> None:
        super().__init__(config)
        self.encoder = without_pooler(AutoModel.from_config(config.encoder_config(), trust_remote_code=False))
        sizes = [self.encoder.config.hidden_size, *(config.hidden or []), config.num_labels]
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise(sizes)):
            layers += [nn.GELU()] if i else []
            layers += [nn.Dropout(config.head_dropout), nn.Linear(inputs, outputs)]
        self.classifier = nn.Sequential(*layers)
        if config.layers == "mix":  # the embeddings count as a layer; all weights are equal at first
            self.mix = LayerMix(self.encoder.config.num_hidden_layers + 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pooled: torch.Tensor | None = None,
        **inputs: Any,
    ) -> EncoderHeadOutput:
        """Compute logits. The task computes the loss, so there is no argument for labels.

        Args:
            input_ids, attention_mask: int64 of shape (rows, tokens).
            pooled: cached output of `pooled_states`. If it is given, no token ids are needed.
        """
        inputs.pop("return_dict", None)
        vectors = self.pooled_states(input_ids, attention_mask, **inputs) if pooled is None else pooled
        if self.config.layers == "mix":
            vectors = self.mix(vectors)
        embedding = F.normalize(vectors, dim=-1) if self.config.normalize else vectors
        return EncoderHeadOutput(logits=self.classifier(embedding), embedding=embedding)

    def pooled_states(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **inputs: Any
    ) -> torch.Tensor:
        """Return pooled states of shape (rows, width).

        With `layers: mix`, the shape is (rows, layers + 1, width), and the pooled embeddings come before those of the layers.
        """
        mix = self.config.layers == "mix"
        inputs.pop("output_hidden_states", None)  # peft passes it
        outputs = self.encoder(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=mix, **inputs)
        states = outputs.last_hidden_state
        mask = attention_mask if attention_mask is not None else torch.ones(states.shape[:2], device=states.device)
        pooling = self.config.pooling
        if mix:
            layers = outputs.hidden_states
            if len(layers) != len(self.mix.weight) or any(layer.shape != states.shape for layer in layers):
                raise UserError(
                    f"task.head.layers: found mix; {self.encoder.config.model_type} encoders do not return the states of every "
                    "token after every layer; allowed: last"
                )
            return torch.stack([pool(layer, mask, pooling) for layer in layers], 1)
        return pool(states, mask, pooling)


def attach_head(
    encoder: PreTrainedModel, head: HeadConfig, dropout: float | None = None, **overrides: Any
) -> EncoderHeadForSequenceClassification:
    """Put a new head on a loaded encoder.

    Args:
        dropout: dropout rate of the head if `head.dropout` is None. If both are None, the rate is 0.1.
        overrides: further fields of the configuration (`id2label`, `problem_type` ...).

    Raises:
        UserError: the encoder does not return a vector for each token.
    """
    if not hasattr(encoder.config, "hidden_size"):
        raise UserError(
            f"task.head: a {encoder.config.model_type} encoder returns no token vectors that a head could pool; allowed: "
            "family, with a strategy (such as full) that works with the family's head"
        )
    rate = next((rate for rate in (head.dropout, dropout) if rate is not None), EncoderHeadConfig.head_dropout)
    fields = {key: value for key, value in encoder.config.to_dict().items() if key != "_name_or_path"}  # can be a local path
    config = EncoderHeadConfig(
        encoder=fields, pooling=head.pooling, hidden=list(head.hidden), head_dropout=rate, layers=head.layers,
        normalize=head.normalize,
        pad_token_id=getattr(encoder.config, "pad_token_id", None), **overrides,
    )  # fmt: skip
    model = EncoderHeadForSequenceClassification(config)
    model.encoder = without_pooler(encoder)
    model.new_parameters = frozenset(  # type: ignore[assignment]
        {name for name, _ in model.named_parameters() if not name.startswith("encoder.")}
        | {f"encoder.{name}" for name in getattr(encoder, "new_parameters", ()) if not name.startswith("pooler.")}
    )
    return model


AutoConfig.register(MODEL_TYPE, EncoderHeadConfig, exist_ok=True)
AutoModelForSequenceClassification.register(EncoderHeadConfig, EncoderHeadForSequenceClassification, exist_ok=True)
