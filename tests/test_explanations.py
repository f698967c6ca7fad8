"""Where the decoder looked, word by word, and the sheet that shows it."""

from pathlib import Path

import matplotlib
import pytest
import torch
from PIL import Image, ImageFont
from torchvision.transforms.v2.functional import pil_to_tensor

from coco.tokenizer import SOS, words_of
from image_transforms import central_square, normalize
from scoring import attention_sheet as attention_sheets
from scoring.attention_sheet import PAPER, RED, attention_sheet, fewest_with, font_for, spotlight
from tests.captioner_cases import random_captioner

BLUE = (20, 60, 200)
CAPTION = "a jogger runs, a dog sits."
PICTURE = Image.linear_gradient("L").convert("RGB").resize((50, 40))


def test_pieces_are_put_together_to_words_and_special_tokens_left_out():
    tokenizer = random_captioner().tokenizer
    ids = tokenizer.encode(CAPTION).ids
    words = words_of(tokenizer, ids)
    assert [word for word, _ in words] == ["a", "jogger", "runs,", "a", "dog", "sits."]
    places = [place for _, places in words for place in places]
    assert places == list(range(1, len(ids) - 1))  # <SOS> and <EOS> belong to none
    assert len(words[1][1]) > 2, "this word should have several pieces"
    for word, places in words:
        pieces = [tokenizer.id_to_token(ids[place]) for place in places]
        assert "".join(pieces) == f"Ġ{word}"  # byte pairs write the blank before a word so


def test_no_caption_has_no_words():
    tokenizer = random_captioner().tokenizer
    assert words_of(tokenizer, []) == words_of(tokenizer, tokenizer.encode("").ids) == []


def test_a_word_s_map_is_what_the_last_layer_attends_to_as_it_writes_the_word():
    """The oracle feeds only what was there before each token, and averages over heads and pieces itself."""
    captioner = random_captioner()
    attention = captioner.attention(PICTURE, CAPTION)
    assert attention.words == CAPTION.split()
    assert attention.maps.shape == (6, 4, 4)
    assert attention.maps.sum(dim=(1, 2)).tolist() == pytest.approx([1.0] * 6)

    image = normalize(captioner.transform(PICTURE)[None])
    ids = captioner.tokenizer.encode(CAPTION).ids
    for (_, places), found in zip(words_of(captioner.tokenizer, ids), attention.maps):
        expected = torch.zeros(16)
        for place in places:
            weights = []
            captioner.model(image, torch.tensor([ids[:place]]), weights)
            expected += weights[-1][0, :, -1].mean(dim=0).detach() / len(places)
        assert torch.allclose(found.flatten(), expected, atol=1e-6)


def test_a_planted_attention_is_found_where_it_was_planted():
    """The last layer's heads are made to look at whatever has a large first feature: one patch."""
    captioner = random_captioner()
    memory = torch.zeros(1, 16, 16)
    memory[0, 6, 0] = 100.0  # second row, third column
    captioner.model.encoder.forward = lambda images: memory
    attend = captioner.model.decoder.transformer.layers[-1].cross_attention
    for parameter in (*attend.query_projection.parameters(), *attend.key_projection.parameters()):
        parameter.data.zero_()
    attend.query_projection.bias.data.fill_(1.0)
    attend.key_projection.weight.data[:, 0] = 1.0
    maps = captioner.attention(PICTURE, CAPTION).maps
    expected = torch.zeros(4, 4)
    expected[1, 2] = 1.0
    assert torch.allclose(maps, expected.expand(6, 4, 4), atol=1e-6)


def test_a_hypothesis_is_explained_by_its_own_tokens():
    """Beam search may spell a word with other pieces than the tokenizer would."""
    captioner = random_captioner()
    best = captioner.decode(captioner.transform(PICTURE)[None])[0][0]
    attention = captioner.attention(PICTURE, best)
    assert attention.words == [word for word, _ in words_of(captioner.tokenizer, best.tokens)]
    assert len(attention.words) == len(attention.maps) > 0
    start = captioner.tokenizer.token_to_id(SOS)
    weights = []
    inputs = torch.tensor([[start, *best.tokens[:-1]]])
    captioner.model(normalize(captioner.transform(PICTURE)[None]), inputs, weights)
    first = words_of(captioner.tokenizer, best.tokens)[0][1]
    expected = weights[-1][0].mean(dim=0)[first].mean(dim=0).view(4, 4)
    assert torch.allclose(attention.maps[0], expected, atol=1e-6)


def test_the_fewest_patches_with_half_of_the_attention_are_kept():
    weights = torch.tensor([[0.1, 0.3], [0.25, 0.35]])
    assert fewest_with(weights, 0.5).tolist() == [[False, True], [False, True]]
    assert fewest_with(weights, 0.3).tolist() == [[False, False], [False, True]]
    assert fewest_with(weights, 0.65).tolist() == [[False, True], [False, True]]
    assert fewest_with(weights, 0.7).tolist() == [[False, True], [True, True]]
    assert fewest_with(torch.full((2, 2), 0.25), 0.5).sum() == 2


def test_what_was_looked_at_keeps_its_colour_is_outlined_and_the_rest_fades():
    weights = torch.tensor([[0.0, 0.6], [0.3, 0.1]])
    seen = spotlight(Image.new("RGB", (80, 80), BLUE), weights)
    assert seen.getpixel((60, 20)) == BLUE  # the middle of the patch that holds more than half
    assert seen.getpixel((41, 20)) == seen.getpixel((60, 38)) == seen.getpixel((79, 0)) == RED
    assert RED not in {seen.getpixel((x, y)) for x in range(40) for y in range(80)}
    faded = [sum(seen.getpixel(place)) for place in ((20, 60), (60, 60), (20, 20))]  # 0.3, 0.1, nothing
    assert sum(BLUE) < faded[0] < faded[1] < faded[2] < sum(PAPER)


@pytest.mark.parametrize("count", [0, 1, 6, 7, 40])
def test_a_sheet_has_a_cell_for_every_word(count):
    words = [f"word{number}" for number in range(count)]
    picture = Image.new("RGB", (64, 64), BLUE)
    maps = torch.zeros(count, 4, 4)
    maps[:, 1, 1] = 1.0
    sheet = attention_sheet(picture, words, maps)
    # Each cell outlines one patch of 58 pixels, 4 sides of 3 pixels, and nothing else is red.
    red, blue = (
        (pil_to_tensor(sheet) == torch.tensor(c)[:, None, None]).all(dim=0).sum() for c in (RED, BLUE)
    )
    assert red == count * (58**2 - 52**2)
    assert blue == 478**2 + count * 52**2  # the picture itself, but for its frame, and all those patches


def test_letters_of_other_scripts_are_drawn_where_the_machine_has_them(monkeypatch):
    """Pillow's own font has ASCII alone: every ä was a box."""
    dejavu = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    monkeypatch.setattr(attention_sheets, "FONTS", ("no such font.ttf", str(dejavu)))
    attention_sheets._font_with.cache_clear()
    for text in ("größer", "собака", "σκύλος"):
        font = font_for(text, 20)
        masks = {bytes(font.getmask(letter)) for letter in text}
        assert len(masks) == len(set(text))
        assert bytes(font.getmask("\uffff")) not in masks
    pillow = ImageFont.load_default(20).getname()
    assert (
        font_for("a dog", 20).getname() == font_for("一只狗", 20).getname() == pillow
    )  # DejaVu has no Chinese
    attention_sheets._font_with.cache_clear()
    words = ["ein", "größerer", "Hund"]
    assert attention_sheet(PICTURE, words, torch.ones(3, 2, 2)) != attention_sheet(
        PICTURE, ["ein", "gr\uffff\uffffßerer", "Hund"], torch.ones(3, 2, 2)
    )


def test_the_central_square_is_what_evaluation_sees():
    picture = Image.new("RGB", (100, 40), "red")
    picture.paste("blue", (30, 0, 70, 40))
    assert central_square(picture).size == (40, 40)
    assert central_square(picture).getcolors() == [(1600, (0, 0, 255))]
