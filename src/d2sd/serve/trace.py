"""A step as the page draws it: the tree, who drafted what, what was accepted."""

from __future__ import annotations

from typing import Any

from d2sd.serve.jobs import Progress
from d2sd.tree import TokenTree


def traced(progress: Progress, tokenizer: Any) -> dict[str, Any]:
    """The extension of a chunk under "d2sd"; tokens' texts together are the chunk's text."""
    step = progress.piece.step
    tree, verdict = step.tree, step.verdict
    sources = [*(tree.sources[node].partition("@")[0] for node in verdict.path[1:]), "target"]
    return {
        "step": progress.steps,
        "tokens": [
            {"text": text, "source": source}
            for text, source in zip(
                texts(progress.piece.text, progress.piece.tokens, tokenizer), sources, strict=False
            )
        ],
        "tree": drawn(tree, tokenizer),
        "path": list(verdict.path),
        "bonus": tokenizer.decode([verdict.bonus]),
        "predicted_boundary": None,
        "seconds": progress.step_seconds,
        "acceptance_length": progress.new_tokens / progress.steps,
        "tokens_per_second": progress.new_tokens / progress.seconds,
    }


def drawn(tree: TokenTree, tokenizer: Any) -> dict[str, Any]:
    return {
        "tokens": [tokenizer.decode([token]) for token in tree.tokens],
        "parents": list(tree.parents),
        "sources": list(tree.sources),
    }


def texts(whole: str, tokens: tuple[int, ...], tokenizer: Any) -> list[str]:
    """`whole` cut into one part a token; the last one takes what doesn't fall to any."""
    parts, rest = [], whole
    for token in tokens[:-1]:
        text = tokenizer.decode([token])
        part = text if rest.startswith(text) else ""
        parts.append(part)
        rest = rest[len(part) :]
    return [*parts, rest]
