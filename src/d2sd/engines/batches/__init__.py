"""For engines that run batches: drafting for all requests of one, whoever the engine is."""
