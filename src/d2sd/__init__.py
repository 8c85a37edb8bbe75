"""Lossless LLM inference acceleration with dual diffusion drafters (D²SD, arXiv 2606.04446)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from d2sd.decode import Step as Step
    from d2sd.generate import Generation as Generation
    from d2sd.generate import Piece as Piece
    from d2sd.generate import Request as Request
    from d2sd.hf import custom_generate as custom_generate
    from d2sd.interfaces import Context as Context
    from d2sd.interfaces import Drafter as Drafter
    from d2sd.interfaces import Scores as Scores
    from d2sd.interfaces import Target as Target
    from d2sd.networks import load_drafter as load_drafter
    from d2sd.sampling import Sampling as Sampling
    from d2sd.session import ModelChoice as ModelChoice
    from d2sd.session import Session as Session
    from d2sd.session import open_session as open_session
    from d2sd.stages import Stages as Stages
    from d2sd.tree import Branch as Branch
    from d2sd.tree import TokenTree as TokenTree
    from d2sd.verify import Verdict as Verdict

__version__ = "0.1.0"

# Loaded at first use, so that `d2sd --help` need not wait for torch. Functions that are called
# like their module (decode, generate, verify) are imported from it.
_HOMES = {
    "Branch": "tree",
    "Context": "interfaces",
    "Drafter": "interfaces",
    "Generation": "generate",
    "ModelChoice": "session",
    "Piece": "generate",
    "Request": "generate",
    "Sampling": "sampling",
    "Scores": "interfaces",
    "Session": "session",
    "Stages": "stages",
    "Step": "decode",
    "Target": "interfaces",
    "TokenTree": "tree",
    "Verdict": "verify",
    "custom_generate": "hf",
    "load_drafter": "networks",
    "open_session": "session",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'd2sd' has no attribute {name!r}")
    return getattr(import_module(f"d2sd.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
