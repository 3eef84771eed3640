"""The vision tower: which features it gives, and which towers are refused."""

import pytest
import torch
from tiny_models import save_backbones, tiny_clip

from vlmsel.models.config import VLMConfig
from vlmsel.models.vision import VisionTower, load_vision, normalise, uses_quick_gelu


def penultimate(visual, pixels):
    """Run all blocks but the last by hand and drop the class token."""
    x = visual._embeds(pixels)
    for block in visual.transformer.resblocks[:-1]:
        x = block(x)
    return x[:, 1:]


def test_bytes_are_normalised_by_the_towers_own_mean_and_deviation():
    visual = tiny_clip().visual
    visual.image_mean, visual.image_std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    expected = (pixels.double() / 255 - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.2, 0.3, 0.4])[
        :, None, None
    ]
    torch.testing.assert_close(normalise(pixels, visual.image_mean, visual.image_std), expected.float())
    tower = VisionTower(visual)
    torch.testing.assert_close(tower(pixels), tower(expected.float()))


def test_features_are_the_penultimate_blocks_patches_without_norm():
    visual = tiny_clip().visual.double()
    tower = VisionTower(visual)
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    features = tower(pixels)
    assert features.shape == (2, tower.patches, tower.width) == (2, 4, 16)
    torch.testing.assert_close(features, penultimate(visual, pixels), rtol=0, atol=1e-12)
    assert not features.requires_grad


def test_the_last_block_is_not_run():
    tower = VisionTower(tiny_clip().visual)
    tower.visual.transformer.resblocks[-1].register_forward_hook(lambda *a: pytest.fail("the last block ran"))
    tower(torch.randn(1, 3, 16, 16))


def test_wrong_image_size_and_layer_are_refused():
    visual = tiny_clip().visual
    with pytest.raises(ValueError, match=r"takes images \[m, \(3, 16, 16\)\], got \[1, 3, 8, 8\]"):
        VisionTower(visual)(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="-1 to -3 here; got -4"):
        VisionTower(visual, layer=-4)
    with pytest.raises(ValueError, match="must be an open_clip vision transformer, got Linear"):
        VisionTower(torch.nn.Linear(1, 1))


def test_loading_a_folder_gives_its_weights_and_normalisation(tmp_path):
    clip, _ = save_backbones(tmp_path)
    tower = load_vision(VLMConfig(f"local-dir:{clip}", "x"))
    pixels = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(tower(pixels), penultimate(tiny_clip().visual, pixels))
    assert tower.image_mean == (0.5, 0.5, 0.5) and tower.image_size == 16
    assert not any(p.requires_grad for p in tower.parameters())


@pytest.mark.parametrize("quick", [False, True])
def test_activation_must_be_the_one_asked_for(tmp_path, quick):
    clip, _ = save_backbones(tmp_path, quick_gelu=quick)
    assert uses_quick_gelu(load_vision(VLMConfig(f"local-dir:{clip}", "x", quick_gelu=quick)).visual) == quick
    with pytest.raises(ValueError, match="asks for .*GELU, the tower has .*GELU"):
        load_vision(VLMConfig(f"local-dir:{clip}", "x", quick_gelu=not quick))


def test_openai_weights_in_a_plain_gelu_tower_are_refused_before_any_download():
    with pytest.raises(ValueError, match="'openai' need QuickGELU, the tower has the exact GELU"):
        load_vision(VLMConfig("RN50", "x", vision_weights="openai"))


def test_a_weight_file_needs_a_word_on_its_activation(tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"cut")
    with pytest.raises(
        ValueError, match="weights.safetensors: a weight file does not tell its activation; set quick_g"
    ):
        load_vision(VLMConfig("ViT-B-32", "x", vision_weights=str(file)))
    with pytest.raises(ValueError, match="weights.safetensors cannot be read .*copy its whole folder again"):
        load_vision(VLMConfig("ViT-B-32", "x", vision_weights=str(file), quick_gelu=False))


def test_sources_that_cannot_be_loaded_are_named(tmp_path):
    clip, _ = save_backbones(tmp_path)
    with pytest.raises(ValueError, match="no architecture 'ViT-Q'"):
        load_vision(VLMConfig("ViT-Q", "x"))
    with pytest.raises(ValueError, match="has no weights; set vision_weights"):
        load_vision(VLMConfig("ViT-B-32", "x"))
    with pytest.raises(FileNotFoundError, match="neither a weight file nor a pretrained tag"):
        load_vision(VLMConfig("ViT-B-32", "x", vision_weights="no-such-tag"))
    with pytest.raises(FileNotFoundError, match="no open_clip_config.json"):
        load_vision(VLMConfig(f"local-dir:{tmp_path / 'nowhere'}", "x"))
    (clip / "open_clip_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no .safetensors weights"):
        load_vision(VLMConfig(f"local-dir:{clip}", "x"))
