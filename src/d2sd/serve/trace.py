"""A step as the page draws it: the tree, who drafted what, what was accepted."""

from __future__ import annotations

from typing import Any

from d2sd.decode import Step
from d2sd.interfaces import shared_prefix
from d2sd.serve.jobs import Progress
from d2sd.tree import TokenTree

LACKING = 4
"""Letters before a token's own that fall to it: a space that its decoding lacks, or an earlier
token's, of which it completes the last."""


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
        "bonus": said(verdict.bonus, tokenizer),
        **boundaries(step),
        "seconds": progress.step_seconds,
        "acceptance_length": progress.new_tokens / progress.steps,
        "tokens_per_second": progress.new_tokens / progress.seconds,
    }


def boundaries(step: Step) -> dict[str, int | None]:
    """How many tokens of the first pass's chain were accepted, and how many were expected to be.

    None where no first pass was made. Nothing is expected below the tree's deepest node: a budget
    or an answer's end may have cut the chain.
    """
    tree = step.tree
    if tree.chain is None:
        return {"boundary": None, "predicted_boundary": None}
    return {
        "boundary": shared_prefix(tree.chain.tokens, tree.tokens_on(step.verdict.path)),
        "predicted_boundary": min(tree.chain.boundary, max(tree.depths)),
    }


def drawn(tree: TokenTree, tokenizer: Any) -> dict[str, Any]:
    return {
        "tokens": [said(token, tokenizer) for token in tree.tokens],
        "parents": list(tree.parents),
        "sources": list(tree.sources),
    }


def said(token: int, tokenizer: Any) -> str:
    """One token by itself, as it is."""
    text: str = tokenizer.decode(
        [token], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return text


def texts(whole: str, tokens: tuple[int, ...], tokenizer: Any) -> list[str]:
    """`whole` cut into one part a token; the last one takes what doesn't fall to any."""
    parts, rest = [], whole
    for token in tokens[:-1]:
        text = said(token, tokenizer)
        at = rest.find(text, 0, len(text) + LACKING) if text else -1
        end = at + len(text) if at >= 0 else 0
        parts.append(rest[:end])
        rest = rest[end:]
    return [*parts, rest] if tokens else []
