"""The vision-language model: frozen tower, projector, language model with LoRA; its loss, generation and files."""
