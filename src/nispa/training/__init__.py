"""Training one data set, leaving it and taking it up again, and samples of earlier tasks."""
