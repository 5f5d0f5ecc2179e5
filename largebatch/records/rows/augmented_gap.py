"""The mark of a generalization gap between sets of which one augments by itself."""

from __future__ import annotations

AUGMENTED_GAP = "gap/is_augmented"  # 1 in the rows of evaluations that read an augmented set; absent elsewhere


def gap_remark(is_augmented: object) -> str:
    """The remark beside a generalization gap: a data set that augments by itself changes its meaning.

    >>> gap_remark({"gap/loss": 0.1, AUGMENTED_GAP: 1}.get(AUGMENTED_GAP))
    ', one side augmented'
    """
    return ", one side augmented" if is_augmented else ""
