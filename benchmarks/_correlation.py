"""How well predicted savings rank the measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from scipy import stats

CORRELATIONS: Final = {
    "rank_correlation": "all cases as timed",
    "rank_correlation_of_programs": "all cases, the same program saving nothing",
    "rank_correlation_of_predicted": "where one is predicted, as timed",
}
"""What the correlations of the summary count, in words."""


def correlations(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Spearman's rank correlations of predicted and measured seconds saved, by the names in `CORRELATIONS`.

    Args:
        rows: a case each. Where `same_program` has "naive" in it, XLA has compiled the same instructions with
            and without Lepton: what was measured is chance, and the second correlation puts 0 in its place.

    Returns:
        Those of at least three different predictions.
    """
    timed = [(row["predicted_saving_seconds"], row["measured_saving_seconds"]) for row in rows]
    is_same = ["naive" in row["same_program"] for row in rows]
    pairs = {
        "rank_correlation": timed,
        "rank_correlation_of_programs": [
            (predicted, 0.0 if same else measured)
            for (predicted, measured), same in zip(timed, is_same, strict=True)
        ],
        "rank_correlation_of_predicted": [pair for pair in timed if pair[0] > 0],
    }
    return {
        key: float(stats.spearmanr(*zip(*found, strict=True)).statistic)
        for key, found in pairs.items()
        if len({predicted for predicted, _ in found}) > 2
    }
