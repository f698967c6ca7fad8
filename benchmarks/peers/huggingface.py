"""`transformers`: ViTMAEForPreTraining, and VisionEncoderDecoderModel with a BART decoder.

Both have the sizes of ours and random weights.  Attention is its `sdpa`; on a GPU the training step is
compiled.  Where the table is in bfloat16, training runs under autocast, and the search on bfloat16 weights,
which is the faster way.  What cannot be made equal:

- ViTMAE has a class token beside the patches, a projection between encoder and decoder, and predicts all
  patches before it drops the kept ones; its layers are pre-norm.
- Of the decoders that VisionEncoderDecoderModel takes, BART's is the one that is like ours (post-norm, ReLU,
  learned positions) and has `sdpa`.
"""

from collections.abc import Callable

import torch

from benchmarks import sizes
from benchmarks.measuring import Contestant, Setting
from coco_samples import ImageBatch
from image_transforms import normalize
from support import devices
from train_captioner import CaptionerConfig
from train_encoder import MaeConfig

NAME = "transformers"


def is_installed() -> bool:
    try:
        import transformers  # noqa: F401
    except ImportError:
        return False
    return True


def mae_step(setting: Setting, config: MaeConfig, batch: ImageBatch) -> Contestant:
    """Forward and backward pass and fused AdamW."""

    def build() -> Callable[[], object]:
        from transformers import ViTMAEConfig, ViTMAEForPreTraining

        encoder, decoder = config.encoder, config.decoder
        model = ViTMAEForPreTraining._from_config(
            ViTMAEConfig(
                image_size=config.image_size,
                patch_size=config.patch_size,
                mask_ratio=config.masking_ratio,
                hidden_size=encoder.hidden_size,
                num_hidden_layers=encoder.num_layers,
                num_attention_heads=encoder.num_heads,
                intermediate_size=encoder.feedforward_size,
                head_dim=encoder.key_size,  # of both stacks
                hidden_act="relu",
                decoder_hidden_size=decoder.hidden_size,
                decoder_num_hidden_layers=decoder.num_layers,
                decoder_num_attention_heads=decoder.num_heads,
                decoder_intermediate_size=decoder.feedforward_size,
            ),
            attn_implementation="sdpa",
        )
        model.to(setting.device).train()
        network = torch.compile(model) if setting.on_gpu else model
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-4, weight_decay=config.weight_decay, fused=True
        )
        images = normalize(batch.images)

        def step() -> float:
            with devices.autocast(setting.device, setting.precision):
                loss = network(images).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.item()

        return step

    return Contestant(NAME, build)


def beam_search(
    setting: Setting, config: CaptionerConfig, mae: MaeConfig, images: torch.Tensor, length: int, beams: int
) -> Contestant:
    """`generate`, with so many new tokens at least and at most."""

    def build() -> Callable[[], object]:
        from transformers import BartConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

        encoder, decoder = mae.encoder, config.decoder
        sizes_of_both = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
            ViTConfig(
                image_size=mae.image_size,
                patch_size=mae.patch_size,
                hidden_size=encoder.hidden_size,
                num_hidden_layers=encoder.num_layers,
                num_attention_heads=encoder.num_heads,
                intermediate_size=encoder.feedforward_size,
                hidden_act="relu",
            ),
            BartConfig(
                vocab_size=config.vocabulary_size,
                max_position_embeddings=config.context_length,
                d_model=decoder.hidden_size,
                decoder_layers=decoder.num_layers,
                decoder_attention_heads=decoder.num_heads,
                decoder_ffn_dim=decoder.feedforward_size,
                activation_function="relu",
                pad_token_id=sizes.PAD_ID,
                bos_token_id=sizes.START_ID,
                eos_token_id=sizes.END_ID,
                decoder_start_token_id=sizes.START_ID,
                forced_eos_token_id=None,
                is_encoder_decoder=False,
            ),
        )
        model = VisionEncoderDecoderModel._from_config(sizes_of_both, attn_implementation="sdpa")
        model.to(setting.device, setting.precision).eval()

        @torch.inference_mode()
        def run() -> list[list[int]]:
            found = model.generate(
                pixel_values=normalize(images).to(setting.precision),
                num_beams=beams,
                max_new_tokens=length,
                min_new_tokens=length,
                length_penalty=config.length_alpha,
                do_sample=False,
                use_cache=True,
                decoder_start_token_id=sizes.START_ID,
                pad_token_id=sizes.PAD_ID,
                eos_token_id=sizes.END_ID,
                bos_token_id=sizes.START_ID,
            )
            assert found.shape[1] == length + 1  # the start token counts there
            return found.tolist()

        return run

    return Contestant(NAME, build)
