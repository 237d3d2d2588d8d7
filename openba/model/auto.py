"""Registers the model with transformers' Auto classes; importing this module is what does it.

Owns the registration alone: the classes are in the modules beside it.
"""

from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer

from openba.model.configuration_openba import OpenBAConfig
from openba.model.modeling_openba import OpenBAEncoderDecoder, OpenBAForConditionalGeneration
from openba.tokenizer.tokenization_openba import OpenBATokenizer

__all__ = ["OpenBAConfig", "OpenBAEncoderDecoder", "OpenBAForConditionalGeneration", "OpenBATokenizer"]

AutoConfig.register("openba", OpenBAConfig)
AutoModel.register(OpenBAConfig, OpenBAEncoderDecoder)
AutoModelForSeq2SeqLM.register(OpenBAConfig, OpenBAForConditionalGeneration)
AutoTokenizer.register(OpenBAConfig, slow_tokenizer_class=OpenBATokenizer)
