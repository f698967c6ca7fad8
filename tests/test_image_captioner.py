"""The models: patches, masks, the autoencoder, the captioner and what it generates."""

import dataclasses
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from image_captioner import (
    AutoEncoderShape,
    CaptionDecoder,
    CaptionerShape,
    ImageAutoEncoder,
    ImageDecoder,
    ImageEncoder,
    PatchEmbedding,
    build_captioner,
    grid_positions,
    masked_pixels,
    normalize_patches,
    patchify,
    random_masking,
    select_patches,
    unnormalize_patches,
    unpatchify,
    visible_patches,
)
from training.sampling import hashed_noise
from transformer_components.beam_search import BeamSearchOptions, beam_search
from transformer_components.sublayers import StackConfig

SIZE, PATCH, PATCHES = 24, 8, 9
ENCODER = StackConfig(2, 2, 16, 8, 8, 32)
DECODER = StackConfig(2, 2, 12, 5, 6, 24)
PAD, START, END = 0, 1, 2
VOCABULARY, CONTEXT = 17, 10


def draw_images(count: int, size: int = SIZE) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def draw_masks(count: int, ratio: float = 0.67) -> tuple[torch.Tensor, torch.Tensor]:
    return random_masking(torch.arange(count) + 100, PATCHES, ratio)


def shape(
    encoder: StackConfig = ENCODER,
    decoder: StackConfig = DECODER,
    image_size: int = SIZE,
    patch_size: int = PATCH,
) -> AutoEncoderShape:
    return AutoEncoderShape(image_size=image_size, patch_size=patch_size, encoder=encoder, decoder=decoder)


def autoencoder(encoder: StackConfig = ENCODER, decoder: StackConfig = DECODER) -> ImageAutoEncoder:
    torch.manual_seed(0)
    return ImageAutoEncoder(shape(encoder, decoder))


def caption_shape(decoder: StackConfig = DECODER, tie_embeddings: bool = False) -> CaptionerShape:
    return CaptionerShape(
        vocabulary_size=VOCABULARY,
        context_length=CONTEXT,
        decoder=decoder,
        tie_embeddings=tie_embeddings,
    )


def captioner(**options):
    torch.manual_seed(0)
    return build_captioner(shape(), caption_shape(**options))


def generate(model, images, num_beams: int = 3, max_length: int = CONTEXT, n_best: int = 1):
    options = BeamSearchOptions(max_length, num_beams, n_best=n_best)
    return model.generate(images, options, START, END, forbidden_tokens=[PAD, START])


# Patches


def test_patches_go_left_to_right_and_top_down():
    images = torch.arange(2 * 3 * 16 * 24).view(2, 3, 16, 24)
    patches = patchify(images, 8)
    assert patches.shape == (2, 6, 8 * 8 * 3)
    for number in range(6):
        row, column = divmod(number, 3)
        slices = images[:, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
        assert torch.equal(patches[:, number].view(2, 8, 8, 3), slices.permute(0, 2, 3, 1))


def test_unpatchify_undoes_patchify():
    images = draw_images(3)
    assert torch.equal(unpatchify(patchify(images, PATCH), PATCH), images)


def test_select_patches_equals_a_loop():
    patches, positions = torch.randn(2, 5, 7), torch.tensor([[4, 0, 2], [1, 3, 0]])
    expected = [[patches[b, p] for p in row] for b, row in enumerate(positions.tolist())]
    assert torch.equal(select_patches(patches, positions), torch.stack([torch.stack(r) for r in expected]))


def test_normalized_patches_can_be_undone():
    """Without the way back, reconstructions look awful, the most asked question about such models."""
    patches = 5 * torch.randn(2, 4, 192) + 3
    normalized, mean, deviation = normalize_patches(patches)
    assert normalized.mean(2).abs().max() < 1e-5
    torch.testing.assert_close(normalized.var(2), torch.ones(2, 4))
    torch.testing.assert_close(unnormalize_patches(normalized, mean, deviation), patches)
    flat, _, _ = normalize_patches(torch.full((1, 1, 192), 0.7))
    assert flat.abs().max() < 1e-2


def test_positions_start_different_everywhere_and_alike_next_door():
    positions = grid_positions(49, 32)
    distances = torch.cdist(positions, positions)
    assert positions.shape == (49, 32)
    assert distances.fill_diagonal_(9.0).min() > 0.1
    assert distances[24, 25] < distances[24, 27]
    assert distances[24, 31] < distances[24, 45]


# Masks


@pytest.mark.parametrize(("num_patches", "ratio", "num_masked"), [(196, 0.75, 147), (9, 0.5, 4)])
def test_kept_and_masked_are_a_permutation(num_patches, ratio, num_masked):
    """Trap: masked positions were drawn with replacement, and 22 % of the "masked" patches were visible.

    The model then learned to copy, and its loss, on patches that it had seen, looked better than it was.
    """
    kept, masked = random_masking(torch.arange(50), num_patches, ratio)
    assert masked.shape == (50, num_masked)
    assert kept.shape == (50, num_patches - num_masked)
    everything = torch.cat([kept, masked], dim=1).sort(dim=1).values
    assert torch.equal(everything, torch.arange(num_patches).expand(50, -1))


def test_a_mask_is_a_function_of_its_seed_alone():
    seeds = torch.tensor([3, 2**62, 5, 3])
    kept, _ = random_masking(seeds, 196, 0.75)
    assert torch.equal(kept[0], kept[3])
    assert not torch.equal(kept[0], kept[2])
    alone, _ = random_masking(seeds[1:2], 196, 0.75)
    assert torch.equal(alone[0], kept[1])


def test_every_patch_is_masked_equally_often():
    _, masked = random_masking(torch.arange(4000), PATCHES, 0.67)
    shares = masked.flatten().bincount(minlength=PATCHES) / 4000
    assert (shares - 6 / 9).abs().max() < 0.04  # 5 standard deviations


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 0.01, 0.99])
def test_a_mask_of_nothing_or_everything_is_refused(ratio):
    with pytest.raises(ValueError, match=re.escape(f"masking_ratio: {ratio} of 9 patches masks none")):
        random_masking(torch.arange(2), PATCHES, ratio)


# The autoencoder


def test_only_kept_patches_are_projected_and_only_masked_become_pixels():
    model, seen = autoencoder(), {}
    embedding, to_pixels = model.encoder.patch_embedding.projection, model.decoder.to_pixels
    embedding.register_forward_hook(lambda _, inputs, __: seen.update(kept=inputs[0].shape))
    to_pixels.register_forward_hook(lambda _, inputs, __: seen.update(masked=inputs[0].shape))
    kept, masked = draw_masks(2)
    assert model(draw_images(2), kept, masked).shape == (2, 6, PATCH * PATCH * 3)
    assert seen == {"kept": (2, 3, PATCH * PATCH * 3), "masked": (2, 6, 12)}


def test_kept_embeddings_are_those_of_all_patches():
    embedding = PatchEmbedding(shape())
    kept, _ = draw_masks(2)
    images = draw_images(2)
    torch.testing.assert_close(embedding(images, kept), select_patches(embedding(images), kept))


def test_masked_pixels_cannot_be_seen():
    """The encoding of the kept patches is exactly the same, whatever the masked ones show."""
    model = autoencoder().double()
    kept, masked = draw_masks(2)
    images = draw_images(2).double()
    patches = patchify(images, PATCH)
    patches.scatter_(1, masked[:, :, None].expand(-1, -1, 192), 99.0)
    changed = unpatchify(patches, PATCH)
    assert torch.equal(model.encoder(images, kept), model.encoder(changed, kept))
    assert torch.equal(model(images, kept), model(changed, kept))
    assert not torch.isclose(model.encoder(images), model.encoder(changed)).all(dim=-1).any()


@pytest.mark.parametrize(("rate", "seen"), [(0.5, 5), (0.75, 2), (0.99, 1), (0.01, 9)])
def test_patch_dropout_shows_a_random_share_by_the_seeds_alone(rate, seen):
    seeds = torch.arange(300) * 7919
    shown = visible_patches(seeds, PATCHES, rate)
    assert shown.shape == (300, seen)
    assert all(len(set(row)) == seen for row in shown.tolist())  # none of them twice
    shares = torch.bincount(shown.flatten(), minlength=PATCHES) / 300
    torch.testing.assert_close(shares, torch.full((PATCHES,), seen / PATCHES), rtol=0, atol=0.12)  # 4 errors
    assert torch.equal(visible_patches(seeds[7:8], PATCHES, rate), shown[7:8])


def test_which_patches_are_shown_says_nothing_about_what_else_the_seeds_draw():
    """The stage that learns from samples draws these by the same seeds: u < 1/2 tells nothing of a patch."""
    seeds = torch.arange(4000)
    shown = torch.zeros(4000, PATCHES).scatter_(1, visible_patches(seeds, PATCHES, 0.5), 1.0)
    others = (hashed_noise(seeds, PATCHES) > 0).float()
    correlation = torch.corrcoef(torch.cat([shown, others], dim=1).T)[:PATCHES, PATCHES:]
    assert correlation.abs().max() < 0.08  # 5 errors


def test_no_patch_dropout_is_no_choice():
    assert visible_patches(torch.arange(3), PATCHES, 0.0) is None


@pytest.mark.parametrize("encoder_size", [12, 16])
def test_decoder_input_equals_a_loop(encoder_size):
    """Mask token everywhere, kept patches scattered over it, then the positions of all."""
    decoder, seen = ImageDecoder(shape(dataclasses.replace(ENCODER, hidden_size=encoder_size))), []
    nn.init.normal_(decoder.mask_token)
    decoder.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    kept, masked = draw_masks(2)
    encoded = torch.randn(2, 3, encoder_size)
    output = decoder(encoded, kept, masked)
    expected = decoder.mask_token.repeat(2, PATCHES, 1)
    for b in range(2):
        for k, position in enumerate(kept[b].tolist()):
            expected[b, position] = decoder.projection(encoded)[b, k]
    torch.testing.assert_close(seen[0], expected + decoder.positions)
    torch.testing.assert_close(output, select_patches(decoder(encoded, kept), masked))


def test_order_of_kept_patches_does_not_matter():
    model = autoencoder().double()
    kept, masked = draw_masks(2)
    images = draw_images(2).double()
    torch.testing.assert_close(model(images, kept, masked), model(images, kept.flip(1), masked))


def test_targets_are_the_pixels_of_the_masked_patches():
    images = draw_images(1)
    targets = masked_pixels(images, torch.tensor([[5, 0]]), PATCH)
    assert torch.equal(targets[0, 0].view(8, 8, 3), images[0, :, 8:16, 16:24].permute(1, 2, 0))
    assert torch.equal(targets[0, 1].view(8, 8, 3), images[0, :, :8, :8].permute(1, 2, 0))


def test_autoencoder_overfits_one_batch():
    config = StackConfig(2, 2, 48, 16, 16, 64)
    model, images = autoencoder(config, config), draw_images(2)
    kept, masked = draw_masks(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = F.mse_loss(model(images, kept, masked), masked_pixels(images, masked, PATCH))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05  # from 1, the variance of the pixels


def test_every_weight_of_the_autoencoder_gets_a_gradient():
    model = autoencoder()
    kept, masked = draw_masks(2)
    model(draw_images(2), kept, masked).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# The captioner


@pytest.mark.parametrize("chunks", [[1] * CONTEXT, [3, 1, 6]])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_logits_with_cache_equal_logits_without(chunks, pre_norm):
    config = dataclasses.replace(DECODER, pre_norm=pre_norm)
    decoder = CaptionDecoder(caption_shape(config), 16).double()
    memory = torch.randn(3, PATCHES, 16, dtype=torch.float64)
    tokens = torch.randint(VOCABULARY, (3, CONTEXT))
    with torch.no_grad():
        cache, position, parts = decoder.new_cache(memory), 0, []
        for chunk in tokens.split(chunks, dim=1):
            parts.append(decoder(chunk, None, cache, position=position))
            position += chunk.shape[1]
        torch.testing.assert_close(torch.cat(parts, dim=1), decoder(tokens, memory), rtol=0, atol=1e-12)


def test_a_changed_future_token_leaves_the_past_logits_exactly_alone():
    model = captioner().double()
    images, tokens = draw_images(2).double(), torch.randint(3, VOCABULARY, (2, 8))
    changed = tokens.clone()
    changed[:, 4:] = END
    before, after = model(images, tokens), model(images, changed)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.isclose(before[:, 4], after[:, 4]).all()


def test_a_position_past_the_context_is_a_clear_error():
    decoder = captioner().decoder
    memory = torch.randn(1, PATCHES, 16)
    with pytest.raises(ValueError, match="positions 0 to 10 exceed the context of 10"):
        decoder(torch.zeros(1, 11, dtype=torch.long), memory)
    with torch.no_grad():
        cache = decoder.new_cache(memory)
        decoder(torch.zeros(1, 9, dtype=torch.long), None, cache)
        with pytest.raises(ValueError, match="holds 9 tokens, but these are said to start at 8"):
            decoder(torch.zeros(1, 1, dtype=torch.long), None, cache, position=8)
        with pytest.raises(ValueError, match="positions 9 to 10 exceed the context of 10"):
            decoder(torch.zeros(1, 2, dtype=torch.long), None, cache)


def test_captioner_overfits_one_batch_and_says_it_back():
    model, images = captioner(decoder=dataclasses.replace(DECODER, hidden_size=32)), draw_images(3)
    captions = torch.tensor(
        [[START, 3, 4, 5, END, PAD], [START, 3, 6, END, PAD, PAD], [START, 9, 8, 7, 6, END]]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        logits = model(images, captions[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), captions[:, 1:].flatten(), ignore_index=PAD)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    for num_beams in (1, 4):
        found = [hypotheses[0].tokens for hypotheses in generate(model, images, num_beams)]
        assert found == [[3, 4, 5, END], [3, 6, END], [9, 8, 7, 6, END]]


@pytest.mark.parametrize("num_beams", [1, 2, 5])
def test_generate_equals_a_search_without_cache(num_beams):
    """The oracle runs every beam's whole caption through the plain forward pass at each step."""
    model, images = captioner().double(), draw_images(6).double()
    for parameter in model.parameters():  # a lively model: images leave the batch at different times
        nn.init.normal_(parameter, std=0.7)
    nn.init.constant_(model.decoder.to_vocabulary.bias[END], 2.0)
    state = {"images": torch.arange(6), "prefixes": torch.zeros(6, 0, dtype=torch.long)}

    def step(tokens, rows):
        flat = rows.flatten()
        state["images"] = state["images"][flat]
        state["prefixes"] = torch.cat([state["prefixes"][flat], tokens.view(-1, 1)], dim=1)
        logits = model(images[state["images"]], state["prefixes"])[:, -1]
        return logits.view(*tokens.shape, -1)

    options = BeamSearchOptions(CONTEXT, num_beams, n_best=num_beams)
    with torch.no_grad():
        expected = beam_search(step, 6, options, START, END, [PAD, START])
    found = generate(model, images, num_beams, n_best=num_beams)
    assert len({len(hypotheses[0].tokens) for hypotheses in found}) > 1
    for ours, theirs in zip(found, expected):
        assert [h.tokens for h in ours] == [h.tokens for h in theirs]
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=1e-10)


def test_batched_images_are_captioned_as_single_ones():
    model, images = captioner().double(), draw_images(5).double()
    together = generate(model, images)
    for image, hypotheses in zip(images, together):
        (alone,) = generate(model, image[None])
        assert alone[0].tokens == hypotheses[0].tokens


def test_one_image_one_beam_and_no_gradient():
    """Trap: `generate` crashed at batch 1 × 1 beam and tracked gradients."""
    model, tracked = captioner(), []
    for module in model.modules():
        module.register_forward_hook(lambda _, __, output: tracked.append(output.requires_grad))
    ((hypothesis,),) = generate(model, draw_images(1), num_beams=1)
    assert 1 <= len(hypothesis.tokens) <= CONTEXT
    assert not any(tracked)


def test_generate_drops_nothing_out_and_leaves_every_mode_as_it_was():
    """Inference in training mode gives other captions at every run; and a frozen encoder stays in eval."""
    model = captioner(decoder=dataclasses.replace(DECODER, dropout=0.5))
    model.train()
    model.encoder.eval()
    before = {name: module.training for name, module in model.named_modules()}
    images = draw_images(3)
    first = generate(model, images)
    assert generate(model, images) == first
    assert {name: module.training for name, module in model.named_modules()} == before
    assert model.decoder.training
    assert not model.encoder.training


def test_generate_encodes_once_and_takes_a_memory():
    model, images, calls = captioner(), draw_images(3), []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    expected = generate(model, images)
    assert len(calls) == 1
    memory = model.encoder(images)
    options = BeamSearchOptions(CONTEXT, 3)
    assert model.generate(None, options, START, END, [PAD, START], memory=memory) == expected
    with pytest.raises(ValueError, match="either source or memory"):
        model.generate(images, options, START, END, memory=memory)


def test_more_tokens_than_the_context_are_refused_before_the_first_step():
    with pytest.raises(ValueError, match="max_length 11 is more than the decoder's context of 10"):
        generate(captioner(), draw_images(1), max_length=CONTEXT + 1)


def test_cross_weights_say_where_each_token_looked():
    model, weights = captioner(), []
    tokens = torch.randint(3, VOCABULARY, (2, 6))
    logits = model(draw_images(2), tokens, cross_weights=weights)
    assert [w.shape for w in weights] == [(2, 2, 6, PATCHES)] * 2
    torch.testing.assert_close(logits, model(draw_images(2), tokens))


def test_tied_embeddings_are_one_weight():
    tied, untied = captioner(tie_embeddings=True), captioner()
    assert tied.decoder.to_vocabulary.weight is tied.decoder.token_embedding.weight
    assert untied.decoder.to_vocabulary.weight is not untied.decoder.token_embedding.weight
    tied.load_state_dict(tied.state_dict())
    assert tied(draw_images(1), torch.tensor([[START]])).std() < 2


def test_parts_go_by_the_names_that_unfreezing_needs():
    model = captioner()
    parts = [model.encoder.patch_embedding, *model.encoder.transformer.layers, model.decoder]
    named = {id(parameter) for part in parts for parameter in part.parameters()}
    assert named == {id(parameter) for parameter in model.parameters()}


# Mixed precision


def test_everything_runs_in_mixed_precision():
    """In autocast parts of the sum come in bfloat16, others in float32; scatter and cache want one type."""
    autoencoders = [autoencoder(), autoencoder(decoder=ENCODER)]  # with and without a projection between
    kept, masked = draw_masks(2)
    model, images, tokens = captioner(), draw_images(2), torch.randint(3, VOCABULARY, (2, 6))
    with torch.autocast("cpu", torch.bfloat16):
        predictions = [each(images, kept, masked) for each in autoencoders]
        logits = model(images, tokens)
        found = generate(model, images)
    for each, predicted in zip(autoencoders, predictions):
        torch.testing.assert_close(predicted.float(), each(images, kept, masked), rtol=0, atol=0.1)
    torch.testing.assert_close(logits.float(), model(images, tokens), rtol=0, atol=0.1)
    for ours, theirs in zip(found, generate(model, images)):
        assert ours[0].score == pytest.approx(theirs[0].score, abs=0.1)


# Sizes that do not fit


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shape(image_size=224, patch_size=15), "patch_size: 15 does not divide image_size 224"),
        (lambda: shape(image_size=224, patch_size=0), "patch_size: 0 does not divide image_size 224"),
        (lambda: patchify(torch.zeros(1, 3, 16, 20), 8), "16×20 does not divide into patches of 8"),
        (lambda: unpatchify(torch.zeros(1, 6, 192), 8), "6 patches do not form a square"),
        (
            lambda: ImageEncoder(shape())(torch.zeros(1, 3, 32, 32)),
            r"expected images of \(3, 24, 24\), got \(3, 32, 32\)",
        ),
        (
            lambda: ImageEncoder(shape())(torch.zeros(1, 1, 24, 24)),
            r"expected images of \(3, 24, 24\), got \(1, 24, 24\)",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_numbers(call, message):
    with pytest.raises(ValueError, match=message):
        call()
