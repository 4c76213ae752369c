"""Settings, seeds, devices and arguments: what every other package uses."""
