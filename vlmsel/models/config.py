"""What a vision-language model, or a text-only one, is made of: a frozen record that goes to JSON and back anywhere.

Backbones are named, not stored. A source is a hub or open_clip name, a folder, or `assets:<name>` for the tiny
backbones that come with the package, so that a saved model does not depend on where the package is installed.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

HUGGING_FACE = "hf-clip:"  # before a folder with a vision tower in Hugging Face's layout
ASSETS = Path(__file__).parent.parent / "assets"
EVERY: Literal["all-linear"] = "all-linear"
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoraSpec:
    """Low-rank adapters on the language model: W + s·BA with s = alpha / r, or alpha / sqrt(r) when `rslora`.

    With `dora` each row of the sum has a length m of its own, which learns too: m (W + s·BA) / ‖W + s·BA‖, where the
    norm counts as constant. `targets` are last components of module names (`q_proj`, ...); each must exist;
    `all-linear` stands for all linear modules but the head. Defaults are PEFT's: no rsLoRA, no DoRA. Sources: LoRA
    arXiv 2106.09685, rsLoRA arXiv 2312.03732, DoRA arXiv 2402.09353.
    """

    r: int = 16
    alpha: int = 32
    rslora: bool = False
    targets: tuple[str, ...] | Literal["all-linear"] = ALL_LINEAR
    dropout: float = 0.0
    dora: bool = False

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"LoRA rank r must be at least 1, got {self.r}")
        if not self.targets:
            raise ValueError("LoRA needs at least one target, got none; name modules such as q_proj and v_proj")
        if isinstance(self.targets, str) and self.targets != EVERY:
            raise ValueError(f"LoRA's targets are a list of modules' names, or {EVERY}; got {self.targets!r}")
        object.__setattr__(self, "targets", EVERY if self.targets == EVERY else tuple(self.targets))

    @property
    def scale(self) -> float:
        """The factor s before BA.

        >>> LoraSpec(r=64, alpha=128, rslora=True).scale, LoraSpec(r=128, alpha=256).scale
        (16.0, 2.0)
        """
        return self.alpha / (self.r**0.5 if self.rslora else self.r)

    def told(self) -> str:
        """Say what the scale is, and how it comes about.

        >>> LoraSpec(r=64, alpha=128, rslora=True).told(), LoraSpec(r=128, alpha=256).told()
        ('alpha/√r = 16, rsLoRA', 'alpha/r = 2')
        """
        return f"alpha/√r = {self.scale:g}, rsLoRA" if self.rslora else f"alpha/r = {self.scale:g}"

    def options(self) -> str:
        """Write what is not as it is when left out as options of a command, the rank in any case.

        >>> LoraSpec(r=4, targets=("q_proj", "v_proj")).options()
        " --lora.r 4 --lora.targets '[q_proj,v_proj]'"
        """
        plain, said = LoraSpec(), {"r": str(self.r)}
        for one in fields(self):
            value = getattr(self, one.name)
            if value != getattr(plain, one.name):
                said[one.name] = f"'[{','.join(value)}]'" if isinstance(value, tuple) else str(value).lower()
        return "".join(f" --lora.{name} {value}" for name, value in said.items())


@dataclass(frozen=True)
class VLMConfig:
    """The parts of one vision-language model, or of a language model that reads text only.

    Attributes:
        vision: `assets:<name>`, `local-dir:<folder>` (open_clip's layout), `hf-clip:<folder>` (Hugging Face's) or an
            open_clip architecture name; None for a model without vision tower and projector, whose settings of images
            then mean nothing.
        vision_weights: pretrained tag or weight file for an architecture name; the others bring their own.
        quick_gelu: what the tower's activation must be; checked after loading. None makes no claim, which
            a weight file does not allow.
        vision_layer: which block's output is used, counted from the end; -2 is the penultimate block.
        language: `assets:<name>`, a folder or a hub name of a causal language model with its tokenizer.
        projector: `linear` or `mlp<N>x_gelu` (N linear maps with exact GELU between them).
        projector_seed: seed of the projector's own initialisation.
        lora: adapters on the language model, or None.
        template: conversation template the model is trained and asked with.
        image_mode: how pictures are brought to a square: pad, crop, squash or letterbox.
        exif: whether pictures are turned as their EXIF orientation says; LLaVA and others leave them as they are.
        projector_trained: False until the projector was trained; `VLM.require_ready` refuses such a model.
        language_trained: True when the whole language model was trained and is stored with the projector.
    """

    vision: str | None
    language: str
    vision_weights: str | None = None
    quick_gelu: bool | None = None
    vision_layer: int = -2
    projector: str = "mlp2x_gelu"
    projector_seed: int = 0
    lora: LoraSpec | None = None
    template: str = "vicuna_v1"
    image_mode: str = "pad"
    exif: bool = False
    projector_trained: bool = False
    language_trained: bool = False

    @property
    def ready(self) -> bool:
        """Whether there is no projector, or one that was trained."""
        return self.vision is None or self.projector_trained

    @classmethod
    def from_json(cls, content: Any) -> VLMConfig:
        """Read the plain types that `asdict` gives.

        Raises:
            ValueError: a key is unknown, a value of the wrong type, or one of the two backbones missing.
        """
        if isinstance(content, dict) and content.get("lora") is not None:
            content = {**content, "lora": LoraSpec(**checked(LoraSpec, content["lora"], "LoRA"))}
        return cls(**checked(cls, content, "model"))


def checked(kind: type[LoraSpec] | type[VLMConfig], content: Any, what: str) -> dict[str, Any]:
    """Return the settings in `content` if they are those of `kind`; a list will do for a tuple, as JSON has none.

    Raises:
        ValueError: they are not an object, a key is unknown or missing, or a value has the wrong type.
    """
    if not isinstance(content, dict):
        raise ValueError(f"not a {what} configuration: expected an object, got {content!r}")
    hints = {name: _plain(hint) for name, hint in get_type_hints(kind).items()}
    unknown = sorted(set(content) - set(hints))
    missing = sorted(field.name for field in fields(kind) if field.default is MISSING and field.name not in content)
    if unknown or missing:
        raise ValueError(f"not a {what} configuration: unknown keys {unknown}, missing keys {missing}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
    for name, value in values.items():
        if not isinstance(value, (float, int) if hints[name] is float else hints[name]):
            raise ValueError(f"not a {what} configuration: {name} is {content[name]!r}")
    return values


def _plain(hint: Any) -> Any:
    """Return what `isinstance` takes in the place of a type hint."""
    if get_origin(hint) in (Union, UnionType):
        return tuple(map(_plain, get_args(hint)))
    return str if get_origin(hint) is Literal else get_origin(hint) or hint


def resolve(source: str) -> str:
    """Turn `assets:<name>` into the folder it stands for; leave any other source as it is.

    Raises:
        FileNotFoundError: the package has no such asset.
    """
    if not source.startswith("assets:"):
        return source
    folder = ASSETS / source.removeprefix("assets:")
    if not folder.is_dir():
        present = sorted(path.name for path in ASSETS.iterdir() if path.is_dir()) if ASSETS.is_dir() else []
        raise FileNotFoundError(f"{source}: no folder {folder}; the package holds {present or 'no assets'}")
    return str(folder)


def absolute(source: str) -> str:
    """Make a local folder's path absolute, so that it holds from any working directory; leave names as they are."""
    prefix, path = split_source(source)
    return f"{prefix}{Path(path).resolve()}" if Path(path).is_dir() else source


def split_source(source: str) -> tuple[str, str]:
    """Part a source's prefix, which says how a folder is laid out, from its path.

    >>> split_source("hf-clip:./vision"), split_source("ViT-B-32")
    (('hf-clip:', './vision'), ('', 'ViT-B-32'))
    """
    prefix = next((prefix for prefix in ("local-dir:", HUGGING_FACE) if source.startswith(prefix)), "")
    return prefix, source.removeprefix(prefix)


def beside(source: str, folder: Path) -> str:
    """Put `folder` before a path that begins with `./`: a converted model brings its backbones along, wherever it lies.

    >>> beside("hf-clip:./vision", Path("/models/a")), beside("ViT-B-32", Path("/models/a"))
    ('hf-clip:/models/a/vision', 'ViT-B-32')
    """
    prefix, path = split_source(source)
    return f"{prefix}{folder.resolve() / path[2:]}" if path.startswith("./") else source
