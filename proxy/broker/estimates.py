"""How many output tokens a model's calls usually take: what a hold expects (money.md 5).

Owns a short memory per model, filled from End entries. Pure.
"""

from __future__ import annotations

from collections import deque

CALLS_MIN = 100  # before that the floor is used
CALLS_REMEMBERED = 500
MODELS_MAX = 2_000
PERCENT = 95


class Estimates:
    """Model as clients name it -> recent p95 of output tokens."""

    def __init__(self) -> None:
        self._recent: dict[str, deque[int]] = {}

    def add(self, model: str, output_tokens: int) -> None:
        """A call that was closed with usage."""
        recent = self._recent.get(model)
        if recent is None:
            if len(self._recent) >= MODELS_MAX:
                del self._recent[next(iter(self._recent))]
            recent = self._recent[model] = deque(maxlen=CALLS_REMEMBERED)
        recent.append(output_tokens)

    def figures(self) -> dict[str, int]:
        """Arguments of op `estimates`; only models with enough calls."""
        return {
            model: sorted(recent)[len(recent) * PERCENT // 100]
            for model, recent in self._recent.items()
            if len(recent) >= CALLS_MIN
        }
