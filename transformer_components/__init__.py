"""A transformer written by hand: attention, stacks, KV cache and beam search.

It knows nothing of images or captions.  Read in this order: attention, sublayers, encoder, kv_cache, decoder,
beam_search, sampling, encoder_decoder, static_decoding.
"""

from transformer_components.attention import MultiHeadAttention, causal_mask, scaled_dot_product_attention
from transformer_components.beam_search import BeamSearchOptions, Hypothesis, beam_search
from transformer_components.decoder import DecoderLayer, TransformerDecoder
from transformer_components.encoder import EncoderLayer, TransformerEncoder
from transformer_components.encoder_decoder import TransformerEncoderDecoder, evaluating
from transformer_components.kv_cache import DecoderCache, LayerCache
from transformer_components.sampling import draw, sample
from transformer_components.static_decoding import StaticCache, StaticDecoding
from transformer_components.sublayers import (
    DropPath,
    FeedForward,
    Linear,
    Residual,
    StackConfig,
    initialize,
    set_drop_path,
    sinusoids,
)

__all__ = [
    "BeamSearchOptions",
    "DecoderCache",
    "DecoderLayer",
    "DropPath",
    "EncoderLayer",
    "FeedForward",
    "Hypothesis",
    "LayerCache",
    "Linear",
    "MultiHeadAttention",
    "Residual",
    "StackConfig",
    "StaticCache",
    "StaticDecoding",
    "TransformerDecoder",
    "TransformerEncoder",
    "TransformerEncoderDecoder",
    "beam_search",
    "causal_mask",
    "draw",
    "evaluating",
    "initialize",
    "sample",
    "scaled_dot_product_attention",
    "set_drop_path",
    "sinusoids",
]
