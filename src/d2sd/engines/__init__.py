"""Our drafters inside other inference engines; each engine is imported in its own folder only."""
