"""A learner over HTTP: it answers, and learns new tasks meanwhile. Needs the extra ``serve``."""
