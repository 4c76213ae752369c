"""Any PyTorch module made sparse, in plain PyTorch: connections live or dead, kept values held."""
