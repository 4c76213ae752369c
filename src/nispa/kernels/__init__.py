"""Forward and backward over live connections. ``reference`` is plain PyTorch, and the truth."""
