"""Per-sample gradients of any model, as factors that are never formed unless asked for."""

from vlmsel.gradients.blocks import Block, select_blocks
from vlmsel.gradients.capture import Capture, capture
from vlmsel.gradients.check import check_capture
from vlmsel.gradients.embedding_factor import LookupFactor
from vlmsel.gradients.factors import DenseFactor, Factor, OuterFactor
from vlmsel.gradients.persample import per_sample_gradients
from vlmsel.gradients.sum_factor import SumFactor

__all__ = [
    "Block",
    "Capture",
    "DenseFactor",
    "Factor",
    "LookupFactor",
    "OuterFactor",
    "SumFactor",
    "capture",
    "check_capture",
    "per_sample_gradients",
    "select_blocks",
]
