"""A transformer written by hand: attention, stacks, KV cache and beam search.

It knows nothing of images or captions.  Read in this order: attention, sublayers, encoder, kv_cache, decoder,
beam_search, sampling, consensus, encoder_decoder, static_decoding.
"""
