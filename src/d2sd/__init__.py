"""Lossless LLM inference acceleration with dual diffusion drafters (D²SD, arXiv 2606.04446)."""

__version__ = "0.1.0"
