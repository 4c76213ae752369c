"""Networks of Hugging Face's transformers, where that is installed: code that others wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nispa import Learner
from nispa.errors import ConfigError, GraphError
from tests.compacted import assert_compact_tells
from tests.extent import optional

hub: Any = optional("transformers")

WORDS, SIDE, CLASSES = 12, 32, 6
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
PATCHES = {**SIZES, "image_size": SIDE, "patch_size": 8, "num_labels": CLASSES}
TEXT = {
    **SIZES, "vocab_size": 50, "max_position_embeddings": 32, "num_labels": CLASSES,
    "pad_token_id": 0,
}  # fmt: skip
SHARED_KEYS = {**TEXT, "num_key_value_heads": 2}
STAGES = {"depths": [1, 1], "num_labels": CLASSES}

IMAGES: dict[str, dict[str, Any]] = {
    "ViT": PATCHES,
    "Beit": PATCHES,
    "Dinov2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
               "image_size": SIDE, "patch_size": 8, "num_labels": CLASSES},
    "ResNet": {**STAGES, "embedding_size": 8, "hidden_sizes": [16, 32]},
    "ConvNext": {**STAGES, "num_stages": 2, "hidden_sizes": [8, 16]},
    "ConvNextV2": {**STAGES, "num_stages": 2, "hidden_sizes": [8, 16]},
    "RegNet": {**STAGES, "embedding_size": 8, "hidden_sizes": [16, 32], "groups_width": 8},
    "PoolFormer": {**STAGES, "hidden_sizes": [8, 16], "num_encoder_blocks": 2,
                   "patch_sizes": [7, 3], "strides": [4, 2], "padding": [2, 1]},
    "Swin": {**STAGES, "image_size": SIDE, "patch_size": 2, "embed_dim": 16, "num_heads": [2, 4],
             "window_size": 4},
    "Swinv2": {**STAGES, "image_size": SIDE, "patch_size": 2, "embed_dim": 16,
               "num_heads": [2, 4], "window_size": 4},
    "Pvt": {**STAGES, "image_size": SIDE, "num_encoder_blocks": 2, "hidden_sizes": [16, 32],
            "sequence_reduction_ratios": [2, 1], "patch_sizes": [4, 2], "strides": [4, 2],
            "num_attention_heads": [2, 4], "mlp_ratios": [2, 2]},
}  # fmt: skip
TEXTS: dict[str, dict[str, Any]] = {
    "Bert": TEXT,
    "DebertaV2": TEXT,
    "GPT2": {"vocab_size": 50, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4,
             "num_labels": CLASSES, "pad_token_id": 0},
    "Llama": SHARED_KEYS,
    "Qwen3": {**SHARED_KEYS, "head_dim": 8},
    "Nemotron": {**TEXT, "num_key_value_heads": 4},
}  # fmt: skip


class OfWords(nn.Module):
    """A classifier of texts, called with numbers of words as a learner hands them on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, words: Tensor) -> Tensor:
        """Logits of texts."""
        logits: Tensor = self.model(input_ids=words.long().clamp(0, 49)).logits
        return logits


class T5(OfWords):
    """T5's encoder, whose two embeddings are one parameter, and a head."""

    def __init__(self) -> None:
        settings = {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2}
        super().__init__(hub.T5EncoderModel(hub.T5Config(**settings, num_heads=4)))
        self.head = nn.Linear(32, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        """Logits of texts."""
        found = self.model(input_ids=words.long().clamp(0, 49)).last_hidden_state
        logits: Tensor = self.head(found.mean(1))
        return logits


def network(name: str) -> nn.Module:
    """A small network, the same at each call."""
    torch.manual_seed(0)
    if name == "T5":
        return T5()
    kind = "ImageClassification" if name in IMAGES else "SequenceClassification"
    settings = getattr(hub, f"{name}Config")(**(IMAGES | TEXTS)[name])
    made: nn.Module = getattr(hub, f"{name}For{kind}")(settings)
    return made if name in IMAGES else OfWords(made)


def samples(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images or texts of four classes."""
    labels, draw = np.arange(48) % 4, np.random.default_rng(0)
    if name in IMAGES:
        noise = draw.normal(size=(48, 3, SIDE, SIDE))
        return (noise + labels[:, None, None, None]).astype("float32"), labels
    return draw.integers(1, 50, (48, WORDS)).astype("float32"), labels


@pytest.mark.parametrize("name", [*IMAGES, *TEXTS, "T5"])
@pytest.mark.filterwarnings("ignore")
def test_old_logits_stay(name: str) -> None:
    inputs, labels = samples(name)
    learner = Learner(
        model=network(name), input_shape=inputs.shape[1:], classes=CLASSES, density=0.5,
        max_phases=3, settle_epochs=0, settle_fresh=False, epochs_per_phase=1, batch_size=32,
    )  # fmt: skip
    learner.learn(inputs[labels < 2], labels[labels < 2])
    told = learner.scores(inputs, 0)
    learner.learn(inputs[labels > 1], labels[labels > 1])
    assert np.array_equal(learner.scores(inputs, 0), told)
    assert_compact_tells(learner, inputs, told)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "experts": (
        lambda: OfWords(
            hub.MixtralForSequenceClassification(
                hub.MixtralConfig(**SHARED_KEYS, num_local_experts=4)
            )
        ),
        r"softmax in '.*gate' takes the softmax over units",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_what_mixes_all_units_is_refused(name: str) -> None:
    build, wrong = REFUSED[name]
    shape = (3, SIDE, SIDE) if name != "experts" else (WORDS,)
    with pytest.raises((ConfigError, GraphError), match=wrong):
        Learner(model=build(), input_shape=shape, classes=CLASSES)
