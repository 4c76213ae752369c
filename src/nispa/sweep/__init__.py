"""Many runs: a plan of what to run, jobs made ready, and the ways to carry them out."""
