"""Classes that transformers' own test mixins run on: OpenBA's, and T5's for comparison.

Run by `transformers_suite.py` in a process in which `tests` is the package of a checkout of transformers.
"""

from __future__ import annotations

import os
import unittest
from typing import Any

import torch
from tests.generation.test_utils import GenerationTesterMixin
from tests.models.t5 import test_modeling_t5 as t5_tests
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, ids_tensor
from tests.test_tokenization_common import TokenizerTesterMixin
from transformers import T5ForConditionalGeneration, T5Model, T5Tokenizer
from transformers.models.auto import modeling_auto as auto_names

import openba.model.auto  # noqa: F401, registers the classes
from openba import OpenBAConfig, OpenBAEncoderDecoder, OpenBAForConditionalGeneration
from openba.tokenizer.tokenization_openba import OpenBATokenizer

# The mixins look here for which classes have a loss; the classes of the library itself stand there.
auto_names.MODEL_MAPPING_NAMES["openba"] = OpenBAEncoderDecoder.__name__
auto_names.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES["openba"] = OpenBAForConditionalGeneration.__name__

TOKENIZERS = os.environ["OPENBA_SUITE_TOKENIZERS"]
"""Folder with a tokenizer of each class, of one SentencePiece model."""


class OpenBAModelTester:
    """A small model and its inputs, of the sizes that T5's tester takes."""

    def __init__(self, parent: unittest.TestCase) -> None:
        self.parent = parent
        self.batch_size = 13
        self.encoder_seq_length = 7
        self.decoder_seq_length = 7
        self.seq_length = 7
        self.is_training = True
        self.vocab_size = 99
        self.hidden_size = 32
        # Deeper test models are refused by the mixins, for their time.
        self.num_hidden_layers = 2
        self.num_attention_heads = 4

    def get_config(self) -> OpenBAConfig:
        """Return the configuration of the paper's shape."""
        return OpenBAConfig(
            vocab_size=self.vocab_size, hidden_size=self.hidden_size, kv_channels=8, num_heads=4,
            ffn_hidden_size=48, ffn_multiple=8, num_layers=2, num_decoder_layers=2, norm="rmsnorm",
            sandwich_norm=True, scale_embedding=True, max_seq_length=1024, decoder_max_seq_length=1024,
        )  # fmt: skip

    def prepare_config_and_inputs_for_common(self) -> tuple[OpenBAConfig, dict[str, Any]]:
        """Return a configuration and a batch; a row has a token at least, which OpenBA insists on."""
        shape = [self.batch_size, self.seq_length]
        input_ids = ids_tensor(shape, self.vocab_size).clamp(2)
        # A source ends with the end token, as T5's tester has it.
        input_ids[:, -1] = 1
        attention_mask = ids_tensor(shape, vocab_size=2)
        # The first token is real. The last one is left to chance: where it is padding, the mixins take
        # masks with padding on the left, as generation needs them.
        attention_mask[:, 0] = 1
        decoder_attention_mask = ids_tensor(shape, vocab_size=2)
        decoder_attention_mask[:, 0] = 1
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "decoder_input_ids": ids_tensor(shape, self.vocab_size),
            "decoder_attention_mask": decoder_attention_mask,
        }
        return self.get_config(), inputs


class OpenBAModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    """The mixins over both of OpenBA's classes."""

    all_model_classes = (OpenBAEncoderDecoder, OpenBAForConditionalGeneration)
    is_encoder_decoder = True

    def setUp(self) -> None:
        """Make the tester anew for each test."""
        torch.manual_seed(0)
        self.model_tester = OpenBAModelTester(self)
        self.config_tester = ConfigTester(self, config_class=OpenBAConfig, hidden_size=37)


class T5ModelTest(t5_tests.T5ModelTest):
    """T5's own test class, over the two classes that OpenBA has too."""

    all_model_classes = (T5Model, T5ForConditionalGeneration)

    def setUp(self) -> None:
        """Make the tester anew for each test."""
        torch.manual_seed(0)
        super().setUp()


class OpenBATokenizerTest(TokenizerTesterMixin, unittest.TestCase):
    """The mixin over OpenBA's tokenizer."""

    tokenizer_class = OpenBATokenizer
    from_pretrained_id = os.path.join(TOKENIZERS, "openba")
    test_sentencepiece = True


class T5TokenizerTest(TokenizerTesterMixin, unittest.TestCase):
    """The mixin over T5's."""

    tokenizer_class = T5Tokenizer
    from_pretrained_id = os.path.join(TOKENIZERS, "t5")
    test_sentencepiece = True


# Its integration tests take weights from the hub; only the class above is to be collected.
del TokenizerTesterMixin, ModelTesterMixin, GenerationTesterMixin
