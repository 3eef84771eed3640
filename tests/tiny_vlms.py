"""Random Hugging Face vision-language models of a few thousand parameters, one of each class, in folders of their own.

Tokenizers know bytes and the tokens that a class needs; chat templates have the shapes of the originals.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.smolvlm import processing_smolvlm

from vlmsel.models.language import quiet_transformers

processing_smolvlm.num2words = str  # spells numbers of video frames, which nothing here has

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
IM = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IM_MASKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'][0]['text'] }}{% endgeneration %}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
UTTERANCE = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}"
    "{% if m['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<image>' }}{% else %}"
    "{{ c['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role'])"
    " + '\n' }}{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<start_of_image>' }}{% else %}"
    "{{ c['text'] | trim }}{% endif %}{% endfor %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<|image|>' }}{% else %}{{ c['text'] | trim }}"
    "{% endif %}{% endfor %}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
PALI = (
    "{% for m in messages %}{% for c in m['content'] if c['type'] == 'image' %}<image>{% endfor %}{% endfor %}"
    "{% for m in messages %}{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}"
    "{{ '<eos>' if m['role'] == 'assistant' else '\n' }}{% endfor %}"
)
TEXT = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 2048, "initializer_range": 0.3,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 4, "initializer_range": 0.3,
}  # fmt: skip
ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
OUT = {"hidden_size": 16}  # what towers give that project by themselves


def special_tokenizer(names: list[str], **named: str) -> PreTrainedTokenizerFast:
    """Bytes (0 to 255), then special tokens; `named` says what some of them are for."""
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(BYTES)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    standard = {name: named.pop(name) for name in ("bos_token", "eos_token", "pad_token") if name in named}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=4096, extra_special_tokens=named, **standard
    )


def _ids(tokenizer: Any) -> dict[str, int]:
    found = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return {**found, "pad_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer)}


def _qwen(kind: str, processor: str, vision: dict[str, Any], chat: str) -> tuple[Any, Any]:
    names = [
        "<|im_start|>",
        "<|im_end|>",
        "<|pad|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ]
    tokenizer = special_tokenizer(names, eos_token="<|im_end|>", pad_token="<|pad|>")
    size = {"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
    own = {"patch_size": vision["patch_size"], "merge_size": 2, "temporal_patch_size": 2, "size": size}
    images = transformers.Qwen2VLImageProcessor(**own)
    videos = (
        transformers.Qwen2VLVideoProcessor(**own) if kind != "Qwen3VL" else transformers.Qwen3VLVideoProcessor(**own)
    )
    shown = chat.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    made = getattr(transformers, processor)(images, tokenizer, videos, chat_template=shown)
    rope: dict[str, Any] = dict(ROPE)
    if kind == "Qwen3VL":
        rope["mrope_interleaved"] = True
    at = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("image_pad", "video_pad", "vision_start", "vision_end")
    }
    config = getattr(transformers, f"{kind}Config")(
        text_config={**TEXT, **_ids(tokenizer), "rope_parameters": rope, "tie_word_embeddings": False},
        vision_config=vision,
        image_token_id=at["image_pad"],
        video_token_id=at["video_pad"],
        vision_start_token_id=at["vision_start"],
        vision_end_token_id=at["vision_end"],
        tie_word_embeddings=False,
    )
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config), made


def qwen2_vl() -> tuple[Any, Any]:
    """Patches of all pictures in one row, and their merger."""
    vision = {
        "depth": 2,
        "embed_dim": 16,
        "hidden_size": 16,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "initializer_range": 0.3,
    }
    return _qwen("Qwen2VL", "Qwen2VLProcessor", vision, IM)


def qwen2_5_vl(chat: str = IM) -> tuple[Any, Any]:
    """The same with windows, whose patches come in another order."""
    vision = {
        "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4, "window_size": 16,
        "spatial_merge_size": 2, "out_hidden_size": OUT["hidden_size"], "fullatt_block_indexes": [1],
        "initializer_range": 0.3,
    }  # fmt: skip
    return _qwen("Qwen2_5_VL", "Qwen2_5_VLProcessor", vision, chat)


def qwen3_vl() -> tuple[Any, Any]:
    """The same with mergers of earlier layers."""
    vision = {
        "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4,
        "spatial_merge_size": 2, "out_hidden_size": OUT["hidden_size"], "deepstack_visual_indexes": [0],
        "num_position_embeddings": 16,
        "initializer_range": 0.3,
    }  # fmt: skip
    return _qwen("Qwen3VL", "Qwen3VLProcessor", vision, IM)


def _siglip(**more: Any) -> dict[str, Any]:
    return {"model_type": "siglip_vision_model", **VISION, **more}


def _idefics(kind: str) -> tuple[Any, Any]:
    rows = [f"<row_{i + 1}_col_{j + 1}>" for i in range(4) for j in range(4)]
    names = [
        "<|im_start|>",
        "<end_of_utterance>",
        "<|pad|>",
        "<fake_token_around_image>",
        "<image>",
        "<global-img>",
        "<video>",
    ]
    tokenizer = special_tokenizer(
        [*names, *rows], bos_token="<|im_start|>", eos_token="<end_of_utterance>", pad_token="<|pad|>"
    )
    images = getattr(transformers, f"{kind}ImageProcessor")(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 16}
    )
    own = {"image_seq_len": 4, "chat_template": UTTERANCE}
    if kind == "SmolVLM":
        own["video_processor"] = transformers.SmolVLMVideoProcessor(
            size={"longest_edge": 16},
            max_image_size={"longest_edge": 16},
            fps=1,
            num_frames=2,
            video_sampling={"fps": 1, "max_frames": 2},
        )
    processor = getattr(transformers, f"{kind}Processor")(images, tokenizer, **own)
    text = {"model_type": "llama", **TEXT, **_ids(tokenizer)}
    settings = {
        "text_config": text,
        "vision_config": dict(VISION),
        "scale_factor": 2,
        "tie_word_embeddings": False,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = getattr(transformers, f"{kind}Config")(
        **settings, image_token_id=tokenizer.convert_tokens_to_ids("<image>")
    )
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config), processor


def smolvlm() -> tuple[Any, Any]:
    """Tiles of a picture and the picture, each in its own row, samples filled up with black ones."""
    return _idefics("SmolVLM")


def idefics3() -> tuple[Any, Any]:
    """The same by its elder."""
    return _idefics("Idefics3")


def llava() -> tuple[Any, Any]:
    """One square per picture."""
    tokenizer = special_tokenizer(
        ["<s>", "<|im_start|>", "<|im_end|>", "<|pad|>", "<image>"],
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        image_token="<image>",
    )
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = transformers.LlavaProcessor(
        images,
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=IM.replace("IMAGE", "<image>\n"),
    )
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **TEXT, **_ids(tokenizer)},
        vision_config={"model_type": "clip_vision_model", **VISION},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return transformers.LlavaForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    """Tiles of one picture, or several pictures without."""
    tokenizer = special_tokenizer(
        ["<|im_start|>", "<|im_end|>", "<|pad|>", "<image>", "<video>"], eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    points = [[16, 16], [16, 32], [32, 16], [32, 32]]
    images = transformers.LlavaOnevisionImageProcessor(size={"height": 16, "width": 16}, image_grid_pinpoints=points)
    videos = transformers.LlavaOnevisionVideoProcessor(size={"height": 16, "width": 16})
    processor = transformers.LlavaOnevisionProcessor(
        images,
        tokenizer,
        videos,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=IM.replace("IMAGE", "<image>\n"),
    )
    config = transformers.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **TEXT, **_ids(tokenizer)},
        vision_config=_siglip(vision_use_head=False),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=points,
        vision_feature_layer=-1,
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config), processor


def internvl() -> tuple[Any, Any]:
    """Tiles of all pictures, whose patches are shuffled into wider ones."""
    names = ["<|im_start|>", "<|im_end|>", "<|pad|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
    tokenizer = special_tokenizer(
        names, eos_token="<|im_end|>", pad_token="<|pad|>", start_image_token="<img>", end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>", video_token="<video>",
    )  # fmt: skip
    size = {"height": 16, "width": 16}
    images = transformers.GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=3)
    videos = transformers.InternVLVideoProcessor(size=size)
    processor = transformers.InternVLProcessor(
        images, tokenizer, videos, image_seq_length=4, chat_template=IM.replace("IMAGE", "<IMG_CONTEXT>\n")
    )
    config = transformers.InternVLConfig(
        text_config={"model_type": "qwen2", **TEXT, **_ids(tokenizer)},
        vision_config={**VISION, "image_size": [16, 16], "patch_size": [4, 4]},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    return transformers.InternVLForConditionalGeneration(config), processor


def gemma3() -> tuple[Any, Any]:
    """Pictures that see themselves whole."""
    names = [
        "<bos>",
        "<eos>",
        "<pad>",
        "<start_of_turn>",
        "<end_of_turn>",
        "<start_of_image>",
        "<end_of_image>",
        "<image_soft_token>",
    ]
    tokenizer = special_tokenizer(
        names, bos_token="<bos>", eos_token="<end_of_turn>", pad_token="<pad>", boi_token="<start_of_image>",
        eoi_token="<end_of_image>", image_token="<image_soft_token>",
    )  # fmt: skip
    images = transformers.Gemma3ImageProcessor(size={"height": 16, "width": 16})
    processor = transformers.Gemma3Processor(images, tokenizer, image_seq_length=4, chat_template=GEMMA)
    at = {
        name: tokenizer.convert_tokens_to_ids(f"<{name}>")
        for name in ("start_of_image", "end_of_image", "image_soft_token")
    }
    config = transformers.Gemma3Config(
        text_config={**TEXT, **_ids(tokenizer), "sliding_window": 64, "query_pre_attn_scalar": 8},
        vision_config=_siglip(vision_use_head=False),
        mm_tokens_per_image=4,
        boi_token_index=at["start_of_image"],
        eoi_token_index=at["end_of_image"],
        image_token_index=at["image_soft_token"],
    )
    return transformers.Gemma3ForConditionalGeneration(config), processor


def paligemma() -> tuple[Any, Any]:
    """A prefix that sees itself whole; the original has no chat template."""
    tokenizer = special_tokenizer(
        ["<bos>", "<eos>", "<pad>", "<image>"],
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        image_token="<image>",
    )
    images = transformers.SiglipImageProcessor(size={"height": 16, "width": 16})
    images.image_seq_length = 16
    processor = transformers.PaliGemmaProcessor(images, tokenizer, chat_template=PALI)
    config = transformers.PaliGemmaConfig(
        text_config={"model_type": "gemma", **TEXT, **_ids(tokenizer)},
        vision_config=_siglip(vision_use_head=False, projection_dim=16, num_image_tokens=16),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=16,
        hidden_size=16,
    )
    return transformers.PaliGemmaForConditionalGeneration(config), processor


def mllama() -> tuple[Any, Any]:
    """Layers that look at pictures beside the text."""
    names = [
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|pad|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|python_tag|>",
        "<|image|>",
    ]
    tokenizer = special_tokenizer(names, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", pad_token="<|pad|>")
    images = transformers.MllamaImageProcessor(size={"height": 16, "width": 16}, max_image_tiles=2)
    processor = transformers.MllamaProcessor(images, tokenizer, chat_template=LLAMA3)
    config = transformers.MllamaConfig(
        text_config={
            **TEXT,
            **_ids(tokenizer),
            "vocab_size": len(tokenizer) - 1,
            "num_hidden_layers": 3,
            "cross_attention_layers": [1],
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
            "max_num_tiles": 2,
            "vision_output_dim": 32,
            "intermediate_layers_indices": [0],
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
            "initializer_range": 0.3,
        },  # fmt: skip
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    return transformers.MllamaForConditionalGeneration(config), processor


CLASSES: dict[str, Callable[[], tuple[Any, Any]]] = {
    one.__name__: one
    for one in (
        llava, qwen2_5_vl, smolvlm, qwen2_vl, qwen3_vl, idefics3, llava_onevision, internvl, gemma3, paligemma, mllama,
    )
}  # fmt: skip


def tiny_vlm(name: str, seed: int = 0) -> tuple[Any, Any]:
    """Make a model and its processor; every parameter is drawn anew, gates included."""
    with torch.random.fork_rng(), quiet_transformers():
        torch.manual_seed(seed)
        model, processor = CLASSES[name]()
        generator = torch.Generator().manual_seed(seed)
        for key, parameter in model.named_parameters():
            if "norm" not in key:
                parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval(), processor


def save_vlm(folder: Path, name: str, seed: int = 0) -> Path:
    """Write a model with its processor."""
    model, processor = tiny_vlm(name, seed)
    with quiet_transformers():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder
