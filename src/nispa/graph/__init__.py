"""Which units a PyTorch module has, and who writes and reads them, from a trace."""
