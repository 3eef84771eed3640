"""Memory for kept gradients: refused before the pass, on one line with the numbers."""

import pytest
import torch

from vlmsel.gradients import Factor
from vlmsel.scorers import DataInf, Exact, HyperINF, LiSSA, Random, TracIn
from vlmsel.scorers.memory import check_kept

BLOCKS = {"a": (64, 4096), "b": (4096, 64), "c": (64, 64)}  # 2.1 MB a sample


def test_what_fits_passes_up_to_the_limit():
    bytes_each = 4 * (2 * 64 * 4096 + 64 * 64)
    check_kept([Exact()], 1000, BLOCKS, limit=1000 * bytes_each)
    with pytest.raises(ValueError):
        check_kept([Exact()], 1001, BLOCKS, limit=1000 * bytes_each)


def test_the_message_says_how_much_for_what_and_how_many_samples_would_do():
    with pytest.raises(ValueError) as refused:
        check_kept([Exact()], 10000, BLOCKS, limit=4e9)
    message = str(refused.value)
    assert message.startswith(
        "Exact would keep every fit sample's gradient: 21.1 GB for 10000 fit samples on 3 blocks (limit 4 GB), the "
        "largest of them a [64, 4096]; use fit_samples=1892 or fewer, "
    )
    assert "LiSSA(batch='stream')" in message and "\n" not in message
    check_kept([Exact()], 1892, BLOCKS, limit=4e9)


def test_keepers_share_the_limit():
    check_kept([Exact()], 1892, BLOCKS, limit=4e9)
    with pytest.raises(ValueError, match="Exact, LiSSA would keep .* use fit_samples=946 or fewer"):
        check_kept([Exact(), LiSSA()], 1892, BLOCKS, limit=4e9)


def test_where_no_sample_fits_none_is_suggested():
    with pytest.raises(ValueError) as refused:
        check_kept([LiSSA()], 10, BLOCKS, limit=1e6)
    assert "fit_samples=" not in str(refused.value)


def test_scorers_that_stream_need_none():
    streaming = [TracIn(), DataInf(), HyperINF(), LiSSA(batch="stream"), Random()]
    check_kept(streaming, 10**9, BLOCKS, limit=0)


def test_kept_gradients_take_what_is_counted():
    accumulator = Exact().accumulator(torch.zeros(1, 3, 5))
    accumulator.update(Factor.from_dense(torch.ones(7, 3, 5)))
    (kept,) = accumulator.state().values()
    with pytest.raises(ValueError):
        check_kept([Exact()], 7, {"w": (3, 5)}, limit=kept.nbytes - 1)
    check_kept([Exact()], 7, {"w": (3, 5)}, limit=kept.nbytes)
