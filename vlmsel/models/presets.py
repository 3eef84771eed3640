"""Named models: the embedded default and the 7B model of the papers, each with and without eyes.

`tiny` stands on the backbones inside the package and needs no network; `tiny-aligned` is it after alignment, as it was
saved. `llava-7b` is CLIP ViT-L/14 at 336 px with
Llama-2-7B; its LoRA is HyperINF's (r 64, alpha 128, rsLoRA on q and v), prompts and padding are LLaVA-1.5's.
`tiny-text` and `llama2-7b` are their language models alone, without adapters: `vlmsel tune --lora.*` adds some.
"""

from __future__ import annotations

from vlmsel.models.config import ALL_LINEAR, LoraSpec, VLMConfig

LLAMA2_7B = "meta-llama/Llama-2-7b-hf"

SAVED = {"tiny-aligned": "assets:aligned"}
PRESETS: dict[str, VLMConfig] = {
    "tiny": VLMConfig(
        vision="assets:clip",
        language="assets:llama",
        quick_gelu=False,
        lora=LoraSpec(r=16, alpha=32, rslora=True, targets=ALL_LINEAR),
        template="pure",
        image_mode="squash",
    ),
    "llava-7b": VLMConfig(
        vision="ViT-L-14-336-quickgelu",
        vision_weights="openai",
        quick_gelu=True,
        language=LLAMA2_7B,
        lora=LoraSpec(r=64, alpha=128, rslora=True, targets=("q_proj", "v_proj")),
        template="vicuna_v1",
        image_mode="pad",
    ),
    "tiny-text": VLMConfig(vision=None, language="assets:llama", template="text"),
    "llama2-7b": VLMConfig(vision=None, language=LLAMA2_7B, template="text"),
}
