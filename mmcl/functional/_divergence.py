"""Cross-entropy and divergence between rows of logits, where a class that the target rules out adds nothing."""

from __future__ import annotations

from torch import Tensor


def cross_entropy(logits: Tensor, target_logits: Tensor) -> Tensor:
    """(...), -sum_c p_c log q_c of each row, p = softmax(target) and q = softmax(logits); 0 log 0 is 0.

    Args:
        logits: (..., C); minus infinity masks a class.
        target_logits: (..., C), likewise.
    """
    p, log_q = target_logits.softmax(dim=-1), logits.log_softmax(dim=-1)
    if p.requires_grad:  # its gradient, too, would be 0 times infinity
        return -(p * log_q.masked_fill(p == 0, 0.0)).sum(dim=-1)
    return -(p * log_q).masked_fill_(p == 0, 0.0).sum(dim=-1)  # in place: a vocabulary is large


def divergence(logits: Tensor, target_logits: Tensor) -> Tensor:
    """KL(softmax(target) || softmax(logits)) summed over all rows; 0 log 0 is 0.

    Args:
        logits: (..., C); minus infinity masks a class.
        target_logits: (..., C), likewise; no gradient.
    """
    log_p = target_logits.detach().log_softmax(dim=-1)
    p = log_p.exp()
    return (p * (log_p - logits.log_softmax(dim=-1))).masked_fill_(p == 0, 0.0).sum()
