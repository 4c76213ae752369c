"""A learner's network as a small plain module, and as a file that needs no nispa."""
