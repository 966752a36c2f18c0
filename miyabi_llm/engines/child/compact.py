"""Score only the tokens that are trained. On a CPU trl 1.16 multiplies every position by the whole vocabulary and then
throws away the ones that are masked; on cards with Triton it does not."""

from __future__ import annotations


def install() -> bool:
    """Have trl leave out masked positions on a CPU too; whether it could be done.

    trl (trainer/utils.py, `add_fused_lm_head`) asks `_use_triton` only to decide this: other devices would compile
    again for each number of positions, a CPU does not. The kernel asks its own module and stays the one for CPUs. Of a
    trl that is built otherwise nothing is changed.
    """
    import torch
    from trl.trainer import utils

    if torch.cuda.is_available() or not hasattr(utils, "_use_triton") or not hasattr(utils, "add_fused_lm_head"):
        return False
    own = utils._use_triton
    utils._use_triton = lambda device: device.type == "cpu" or own(device)
    return True
